"""The one error a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class JRMError(ValueError):
    """Something the user gave is wrong; the message is one sentence that says what, where and what to do.

    The command line prints the message to stderr and exits with 2, without a traceback.
    """


@contextmanager
def as_jrm_error(what: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever is raised inside becomes a [`JRMError`] that begins with `what`; one that is raised stays as it is.

    Exceptions of the types `but` pass, and so does having no memory left, which is no fault of what is read.
    """
    passing: tuple[type[Exception], ...] = (JRMError, MemoryError, *but)
    try:
        yield
    except passing:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; nothing here imports torch
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        reason = reason if len(reason) <= 300 else reason[:300] + "…"
        raise JRMError(f"{what} ({type(error).__name__}{': ' if reason else ''}{reason}).") from error
