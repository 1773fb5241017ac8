"""Checks that the records share: what they raise is one sentence."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from jrm_plugin.errors import JRMError


def checked_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise JRMError(f"the {what} must be text, not {kind_of(text)}.")
    if not text.strip():
        raise JRMError(f"the {what} is empty.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise JRMError(f"the {what} holds half a surrogate pair, which is no character: {text[:80]!r}.") from None
    return text


def check_whole(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise JRMError(f"{what} must be a whole number, not {value!r}.")


def check_keys(
    record: object, what: str, *, required: AbstractSet[str], optional: AbstractSet[str] = frozenset()
) -> None:
    if not isinstance(record, Mapping):
        raise JRMError(f"{what} must be an object with the keys {sorted(required)}, not {kind_of(record)}.")
    if not required <= set(record) <= required | optional:
        raise JRMError(f"{what} must have the keys {sorted(required | optional)}, not {sorted(map(str, record))}.")


def kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
