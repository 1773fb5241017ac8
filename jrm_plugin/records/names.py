"""What the fields of a record may be called: one table for every reader and adapter.

A name that is near one of the table's is refused and never carried along: an image that is passed over turns an edit
into a generation, whose score means something else.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import is_data_url

# By what a field holds; the first name is ours, and the one that the output has.
ACCEPTED: dict[str, tuple[str, ...]] = {
    "source": ("source", "sources", "source_image", "source_images", "source_img", "source_path", "path_src"),
    "instruction": ("instruction", "edit_instruction"),
    "edited": ("edited", "edited_image", "edited_img", "edited_path"),
}
_IMAGE_ENDING = re.compile(r"\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|ppm)$", re.IGNORECASE)


def names_in(record: Mapping[str, Any] | Collection[str], field: str) -> list[str]:
    """The names of `field` that a record has, the first of the table first."""
    return [name for name in ACCEPTED[field] if name in record]


def value_of(record: Mapping[str, Any], field: str) -> Any:
    """What a record holds in `field`, under whichever of its names; None where it has none.

    Raises:
        JRMError: the record has it under two names.
    """
    names = names_in(record, field)
    if len(names) > 1:
        raise JRMError(f"it has both {names[0]!r} and {names[1]!r}, which mean the same; leave one out.")
    return record[names[0]] if names else None


def refuse_near_names(names: Collection[str], known: Collection[str] = ()) -> None:
    """Refuses names that look like a name of the table, or of `known`, and are none.

    Raises:
        JRMError: names the first such name and what it probably means.
    """
    accepted = {name for field in ACCEPTED.values() for name in field} | {*known}
    plain = {_plain(name): name for name in accepted}
    for name in names:
        if name in accepted:
            continue
        near = get_close_matches(_plain(name), plain, n=1, cutoff=0.85)
        # names of `known` that differ in a number only, such as the first and the second score's, are two names; a
        # second source has no name of its own
        if near and (plain[near[0]] not in known or _differs(name, near[0])):
            raise JRMError(f"it has {name!r}, which means nothing; write {plain[near[0]]!r}, or rename it.")


def refuse_hidden_source(record: Mapping[str, Any]) -> None:
    """For a record without a source: an image under an unknown name may be one.

    Raises:
        JRMError: names the key.
    """
    accepted = {name for field in ACCEPTED.values() for name in field}
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        if name not in accepted and any(
            is_data_url(v) or (isinstance(v, str) and _IMAGE_ENDING.search(v)) for v in values
        ):
            raise JRMError(
                f"it has no source, and an image in {name!r}; call that one 'source', or write \"source\": null for an "
                "image that was made from text alone."
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _differs(name: str, other: str) -> bool:
    one, two = _plain(name), _plain(other)
    return one == two or re.sub(r"\d", "", one) != re.sub(r"\d", "", two)
