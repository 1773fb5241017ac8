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
    "instruction": ("instruction", "edit_instruction", "prompt", "instruct_prompt", "question"),
    "edited": ("edited", "edited_image", "edited_img", "edited_path"),
}
# Of a preference: two columns whose names say which is better, and two that need a label or scores beside them.
CHOSEN_AND_REJECTED: tuple[tuple[str, str], ...] = (
    ("chosen", "rejected"),
    ("chosen_image", "rejected_image"),
    ("chosen_img", "rejected_img"),
    ("chosen_path", "rejected_path"),
    ("preferred", "dispreferred"),
    ("winner", "loser"),
    ("path1", "path2"),
)
A_AND_B: tuple[tuple[str, str], ...] = (
    ("a", "b"),
    ("image_a", "image_b"),
    ("edited_a", "edited_b"),
    ("output_a", "output_b"),
    ("response_a", "response_b"),
    ("left", "right"),
    ("left_image", "right_image"),
    ("left_output_image", "right_output_image"),
    ("candidate_1", "candidate_2"),
    ("edited_1", "edited_2"),
    ("image_1", "image_2"),
    ("image_0", "image_1"),
    ("jpg_0", "jpg_1"),
)
# What else a preference may say. Those of `BY_DIMENSION` are also taken with a dimension's name behind them,
# `label_visual_quality`, under that name and these.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "label": ("label", "preference", "vote", "vote_type", "choice", "better", "human_preference", "winner"),
    "tie": ("tie", "tie_case"),
    "ranked": ("ranked", "ranked_images", "best_first"),
    "candidates": (
        "candidates",
        "candidate_images",
        "edited_images",
        "output_images",
        "responses",
        "paths_generated",
    ),
    "ranking": ("ranking", "ranks", "places", "human_vote"),
    "scores": ("scores", "ratings"),
    "score": ("score", "rating"),
    "rank": ("rank", "place"),
    "chosen_score": ("chosen_score", "score_chosen", "left_overall_score", "score_a", "score_1"),
    "rejected_score": ("rejected_score", "score_rejected", "right_overall_score", "score_b", "score_2"),
    "chosen_score_instruction_following": ("left_instruction_following_score", "model1_dim1_score"),
    "rejected_score_instruction_following": ("right_instruction_following_score", "model2_dim1_score"),
    "chosen_score_visual_quality": ("left_quality_aesthetic_score", "model1_dim2_score"),
    "rejected_score_visual_quality": ("right_quality_aesthetic_score", "model2_dim2_score"),
    "text": ("text", "critique"),
}
BY_DIMENSION = (
    *("label", "score", "scores", "rank", "ranking", "critique", "critiques"),
    *("chosen_score", "rejected_score", "chosen_critique", "rejected_critique"),
)
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


def is_near(name: str, field: str) -> bool:
    """Whether a name looks like one of `field`'s names."""
    return bool(get_close_matches(_plain(name), [_plain(accepted) for accepted in ACCEPTED[field]], n=1, cutoff=0.85))


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


def names_an_image(value: object) -> bool:
    """Whether a text is a `data:` URL or ends as the name of an image file does."""
    return is_data_url(value) or (isinstance(value, str) and _IMAGE_ENDING.search(value) is not None)


def refuse_hidden_source(record: Mapping[str, Any]) -> None:
    """For a record without a source: an image under an unknown name may be one.

    Raises:
        JRMError: names the key.
    """
    accepted = {name for field in ACCEPTED.values() for name in field}
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        if name not in accepted and any(map(names_an_image, values)):
            raise JRMError(
                f"it has no source, and an image in {name!r}; call that one 'source', or write \"source\": null for an "
                "image that was made from text alone."
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _differs(name: str, other: str) -> bool:
    one, two = _plain(name), _plain(other)
    return one == two or re.sub(r"\d", "", one) != re.sub(r"\d", "", two)
