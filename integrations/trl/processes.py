"""When one of a run's processes fails: one of them says why, and the others end without a word of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.integrations.trl.checkpoints import last_checkpoint_in_words


@contextmanager
def lost_process_in_words(run_folder: str | Path) -> Iterator[None]:
    """What is raised where processes wait for each other, and one of them is gone, becomes a [`JRMError`]."""
    try:
        yield
    except RuntimeError as error:
        is_of_a_connection = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if not (distributed.is_initialized() and is_of_a_connection):
            raise
        why = reason(error).split(". ")[0]  # torch goes on with advice
        raise JRMError(
            f"another process of this run has ended ({why}); {last_checkpoint_in_words(run_folder)}, and the same "
            "command goes on."
        ) from error


def is_first_to_fail() -> bool:
    """Whether no other process of this run has failed before this one, which then says why. Ask once, after failing.

    Before the processes know of each other, what fails does so in all alike, and the first of each machine says it.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return _get_default_store().add("jrm/failed", 1) == 1
    except RuntimeError:  # it was kept by a process that is gone
        return True
