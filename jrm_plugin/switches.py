"""Switches of the whole process that others may have set, held where a computation needs them and given back."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Switch:
    """One value that all threads of the process share, such as an attribute of a library's module.

    Several threads may hold it at once: the last one to leave gives back what the first one found. Nothing is touched
    where it has the value already. What somebody else sets meanwhile stays, where it can be told from the value: 0 and
    False are equal, and of different types.

    Example:
        >>> truncated = Switch(lambda: ImageFile.LOAD_TRUNCATED_IMAGES, partial(setattr, ImageFile, "LOAD_TRUNC…"))
        >>> with truncated.held(0):
        ...     image.load()
    """

    def __init__(self, get: Callable[[], Any], set_: Callable[[Any], None]):
        self._get, self._set = get, set_
        self._lock = threading.Lock()
        self._holders = 0
        self._before: list[Any] = []  # what is to be given back, if anything

    @contextmanager
    def held(self, value: Any) -> Iterator[None]:
        with self._lock:
            self._holders += 1
            current = self._get()
            if current != value:
                self._before = [current]
                self._set(value)
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders and self._before:
                    (before,), self._before = self._before, []
                    current = self._get()
                    if current == value and type(current) is type(value):
                        self._set(before)


@contextmanager
def kept_environment() -> Iterator[None]:
    """At its end the environment variables are those of its beginning: what a run sets is for that run alone."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _filters_that_raise() -> tuple[list, list] | None:
    """Python's list of warning filters and what is in it, if one of them turns warnings into errors."""
    filters = warnings.filters
    return (filters, filters[:]) if any(entry[0] == "error" for entry in filters) else None


def _set_filters(given: tuple[list, list] | None) -> None:
    """In place, so that whoever put the list aside gets it back with the same filters in it."""
    filters, content = given or (
        warnings.filters,
        [("ignore", *e[1:]) if e[0] == "error" else e for e in warnings.filters],
    )
    filters[:] = content


# Held at None, no warning is an error: what a library has to say of an image or a tensor must not decide about a score.
WARNINGS_AS_ERRORS = Switch(_filters_that_raise, _set_filters)
