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
    except BaseException as error:
        kind = type(error).__name__
        # A panic inside tokenizers is no `Exception`; an interrupt is none either, and goes on. The other is torch's,
        # of a GPU. Nothing here imports either library.
        if kind == "OutOfMemoryError" or not (isinstance(error, Exception) or kind == "PanicException"):
            raise
        raise JRMError(f"{what}: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """The error in one line, with its type where the message alone would not be understood."""
    line = " ".join(str(error).split())[:300].rstrip(". ")
    if isinstance(error, (OSError, ValueError)) and line:
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def shortened(value: object) -> str:
    """A value as it stands in an error: never long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
