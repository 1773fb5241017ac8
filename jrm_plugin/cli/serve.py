"""`jrm serve`: a model behind HTTP, for training jobs that keep their judge on other machines."""

import argparse
import gc
import hashlib
import logging
import os
import sys
from functools import partial
from pathlib import Path

from jrm_plugin.cli.common import PLACEMENT, add_model_arguments, make_scorer
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import read_text
from jrm_plugin.scoring.loading import model_digest, named_model
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.scoring.remote import TOKEN_VARIABLE

PACKAGES = "fastapi uvicorn python_multipart prometheus_client"
INSTALL = "jrm-plugin[server]"
MODEL_OPTIONS = ("model", *PLACEMENT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    where.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    where.add_argument("--ui", action="store_true", help="a page at /ui on which images are scored by hand")
    where.add_argument("--ray", action="store_true", help="behind Ray Serve, on RAY_ADDRESS's cluster or a new one")
    where.add_argument("--replicas", type=int, help="of the model, with --ray (default: 1)")
    where.add_argument("--gpus-per-replica", type=float, metavar="N", help="(default: 1 if there is one)")
    who = parser.add_argument_group("what is allowed")
    who.add_argument(
        "--token-file", type=Path, help=f"file with the token that requests must carry (or {TOKEN_VARIABLE})"
    )
    who.add_argument(
        "--allow-urls",
        nargs="?",
        const="public",
        choices=["public", "any"],
        help="fetch images by URL; any: from private addresses too",
    )
    who.add_argument("--allow-paths", type=Path, metavar="FOLDER", help="read images of this folder as file:PATH")
    who.add_argument("--log-requests", action="store_true", help="the log has what requests ask for, without images")
    pickles = parser.add_argument_group(
        "forms that send pickles", "They are read without pickle: nothing in them is imported or called."
    )
    pickles.add_argument("--flow-grpo", action="store_true", help="POST /flow_grpo: flow_grpo, and verl-omni's client")
    pickles.add_argument("--edit-r1", action="store_true", help="POST /mode/MODE: Edit-R1 (UniWorld-V2)")
    pickles.add_argument("--omnigen2-rl", action="store_true", help="POST / and GET /ping: OmniGen2-RL (EditScore)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--timeout", type=float, metavar="SECONDS", help="of a request (default: 240)")
    limits.add_argument("--max-body", type=int, metavar="MIB", help="of a request (default: 64)")
    limits.add_argument("--max-samples", type=int, metavar="N", help="of a request (default: 256)")
    limits.add_argument("--max-waiting", type=int, metavar="N", help="samples that wait; past it 503 (default: 4096)")
    limits.add_argument("--max-image-pixels", type=int, metavar="N", help="of an image (default: 33,554,432)")
    limits.add_argument("--max-text", type=int, metavar="N", help="characters of a sample (default: 32,768)")
    limits.add_argument("--batch-tokens", type=int, metavar="N", help="computed at once (default: 32,768)")


def run(options: argparse.Namespace) -> int:
    require(PACKAGES, "jrm serve", install=INSTALL)
    if options.ray:
        require("ray.serve", "jrm serve --ray", install="jrm-plugin[server]' 'ray[serve]")
    elif options.replicas is not None or options.gpus_per_replica is not None:
        raise JRMError("--replicas and --gpus-per-replica belong to --ray.")
    logging.basicConfig(stream=sys.stderr, format="jrm: %(message)s", level=logging.WARNING)
    logging.getLogger("jrm_plugin.server").setLevel(logging.INFO)
    options.model = named_model(options.model)
    from jrm_plugin.server.app import PICKLE_WIRES, create_app
    from jrm_plugin.server.settings import MIB, ServerSettings

    given = {
        "timeout": options.timeout,
        "max_body_bytes": None if options.max_body is None else options.max_body * MIB,
        "max_samples": options.max_samples,
        "max_waiting": options.max_waiting,
        "max_image_pixels": options.max_image_pixels,
        "max_text": options.max_text,
        "batch_tokens": options.batch_tokens,
    }
    settings = ServerSettings(
        model=options.model,
        digest=_digest(options),
        token=_token(options.token_file),
        allow_urls=options.allow_urls,
        allow_paths=options.allow_paths,
        pickle_wires=tuple(name for name in PICKLE_WIRES if getattr(options, name)),
        ui=options.ui,
        log_requests=options.log_requests,
        **{name: value for name, value in given.items() if value is not None},
    )
    load = partial(_load, argparse.Namespace(**{name: getattr(options, name) for name in MODEL_OPTIONS}))
    if options.ray:
        from jrm_plugin.server.ray_serve import run as run_on_ray

        replicas = 1 if options.replicas is None else options.replicas
        where = {"host": options.host, "port": options.port, "gpus_per_replica": options.gpus_per_replica}
        run_on_ray(settings, load, replicas=replicas, **where)
        return 0
    from jrm_plugin.server.running import run as run_here

    run_here(create_app(settings, load), options.host, options.port)
    return 0


def _load(options: argparse.Namespace) -> Scorer:
    """The scorer, in a process that keeps it to its end."""
    scorer = make_scorer(options)
    # Python would search all that is loaded for garbage while it serves, again and again: a twentieth of its time.
    gc.collect()
    gc.freeze()
    return scorer


def _digest(options: argparse.Namespace) -> str:
    """Of all that scores depend on: the model's files, and how they are loaded."""
    return hashlib.sha256(model_digest(options.model) + f"{options.dtype} {options.max_pixels}".encode()).hexdigest()


def _token(file: Path | None) -> str | None:
    """The token, never from the command line, which every user of a machine can read."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    if not file.is_file():
        raise JRMError(f"the token file {file} is not there; name one.")
    token = read_text(file).strip()
    if not token:
        raise JRMError(f"the token file {file} is empty; write a token into it, or leave it out.")
    return token
