"""Shards of samples scored by workers of a Ray cluster, through Ray Data, which sends, spreads and retries them."""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Scorer


def score_shards(
    load: Callable[[], Scorer], shards: Sequence[Sequence[Sample]], *, replicas: int | None, on_cpu: bool
) -> Iterator[list[RewardScore | JRMError]]:
    """The scores of each shard, in order, as soon as it and all before it are scored.

    The cluster is that of `RAY_ADDRESS`, or a new one of this machine. A shard whose worker dies is scored again, by
    another or by its successor.

    Args:
        load: makes the scorer, once in each worker, in the working directory of this process.
        shards: the samples, as they are scored together.
        replicas: how many workers; None for one for each GPU of the cluster, or for each CPU where there is no GPU.
        on_cpu: whether GPUs are left alone.

    Raises:
        JRMError: the cluster is too small, the model cannot be loaded, or the cluster is gone.
    """
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") and not on_cpu else "CPU"
    workers = max(1, int(there.get(kind, 0))) if replicas is None else replicas
    if workers > there.get(kind, 0):
        raise JRMError(
            f"{workers} workers with a {kind} each are asked for, and the Ray cluster has {there.get(kind, 0):g}; "
            "lower --replicas."
        )
    rows = [{"samples": pickle.dumps(list(shard))} for shard in shards]
    samples = ray.data.from_items(rows, override_num_blocks=len(rows))  # a block is what is scored again
    samples.context.execution_options.preserve_order = True
    samples.context.enable_progress_bars = False
    scored = samples.map(
        _Worker,
        fn_constructor_args=(load, os.getcwd()),
        concurrency=workers,
        num_cpus=1,
        num_gpus=float(kind == "GPU"),
    )
    try:
        for row in scored.iter_rows():
            scores = pickle.loads(row["scores"])
            if isinstance(scores, JRMError):
                raise scores
            yield scores
    except RayError as error:
        raise JRMError(
            f"the workers on the Ray cluster cannot go on: {reason(error)}; see Ray's logs; the same command goes on."
        ) from error


class _Worker:
    """Holds a scorer. What is wrong is its answer: of Ray's errors a user could not read the sentence."""

    def __init__(self, load: Callable[[], Scorer], folder: str):
        self.scorer: Scorer | JRMError
        try:
            os.chdir(folder)  # names of files in the input and of the model may be relative
            self.scorer = load()
        except FileNotFoundError:
            self.scorer = JRMError(
                f"the folder {folder} is not on {socket.gethostname()}, a machine of the Ray cluster; run the command "
                "in a folder that all of them have."
            )
        except JRMError as error:
            self.scorer = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.scorer, JRMError):
            return {"scores": pickle.dumps(self.scorer)}
        return {"scores": pickle.dumps(self.scorer.score(pickle.loads(row["samples"]), on_error="return"))}
