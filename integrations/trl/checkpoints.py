"""Checkpoints of a training run that are whole, told by the digests of their files."""

import sys
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from jrm_plugin.errors import JRMError
from jrm_plugin.files import content_digest, read_json, write_json

# Beside a checkpoint's files: a damaged file, or a missing one, is noticed before training goes on.
DIGESTS_FILE = "digests.json"


def last_whole_checkpoint(run_folder: str | Path) -> str | None:
    """The last checkpoint of a run; a damaged one is named on stderr and passed over. None where there is none at all.

    Raises:
        JRMError: there are checkpoints, and all of them are damaged.
    """
    checkpoints = _checkpoints(run_folder)
    for checkpoint in reversed(checkpoints):
        if (damage := damage_of(checkpoint)) is None:
            return str(checkpoint)
        print(f"jrm: {checkpoint} is passed over: {damage}.", file=sys.stderr)
    if checkpoints:
        raise JRMError(
            f"{run_folder} holds no whole checkpoint (in {checkpoints[-1].name}, {damage_of(checkpoints[-1])}); "
            "remove its checkpoints to begin anew."
        )
    return None


def damage_of(checkpoint: str | Path) -> str | None:
    """What is wrong with the files of a checkpoint, by the digests that stand beside them; None if nothing is."""
    try:
        digests = read_json(Path(checkpoint, DIGESTS_FILE))
    except JRMError:
        digests = None
    if not isinstance(digests, dict):
        return f"its {DIGESTS_FILE} is missing or damaged"
    for name, digest in digests.items():
        if not (path := Path(checkpoint, name)).is_file():
            return f"its file {name} is missing"
        try:
            if content_digest(path).hex() != digest:
                return f"its file {name} is damaged or cut off"
        except JRMError as error:
            return str(error).rstrip(".")
    return None


def _checkpoints(run_folder: str | Path) -> list[Path]:
    """In the order of their steps."""
    steps = {
        int(path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")): path
        for path in Path(run_folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()
    }
    return [steps[step] for step in sorted(steps)]


def last_checkpoint_in_words(run_folder: str | Path) -> str:
    """A clause for errors: which checkpoint is the last, or that there is none."""
    checkpoints = _checkpoints(run_folder)
    return f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved before"


def write_digests(checkpoint: Path) -> None:
    """The last of a checkpoint's files: what all others hold."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    digests = {str(path.relative_to(checkpoint)): content_digest(path).hex() for path in files}
    write_json(checkpoint / DIGESTS_FILE, digests)
