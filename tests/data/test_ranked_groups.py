"""Lists of candidates as ranked groups, from our own files and from published ones."""

import json
import re

import pytest
from PIL import Image

from jrm_plugin import RankedGroup, Sample, read_preferences
from jrm_plugin.data.preference_table import write_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.preferences import PreferencePair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    for shade, name in enumerate("sabcd"):
        Image.new("RGB", (4, 4), (50 * shade, 0, 0)).save(folder / f"{name}.png")
    return folder


def samples(folder, names, source="s"):
    files = [str(folder / f"{name}.png") for name in names]
    return [Sample.edit(source and str(folder / f"{source}.png"), "make it blue", file) for file in files]


def read(folder, rows, columns=None, **options):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_preferences(folder / "rows.jsonl", columns=columns, groups=True, **options)


def test_groups_that_are_written_are_read_back_with_their_critiques(folder):
    critique = Critique("<|bbox_0|> smeared <|global|> dull", (EditRegion(0, "x", (1, 2, 3, 4)),))
    written = [
        RankedGroup(
            samples(folder, "abcd"),
            {"overall": [2, 1, 2, 3], "visual_quality": [1, None, 2, None]},
            {"instruction_following": [4, 3, None, 3]},
            [{"visual_quality": critique}, {}, {"instruction_following": Critique("done")}, {}],
            {"edit": "colour"},
        ),
        RankedGroup(samples(folder, "cab"), scores={"overall": [1, 2, 2]}),
    ]
    back = read_preferences(write_preferences(folder / "groups.jsonl", written), groups=True).examples
    for before, after in zip(written, back, strict=True):
        assert (after.candidates, after.ranks, after.scores) == (before.candidates, before.ranks, before.scores)
        assert after.critiques == before.critiques
    assert back[0].info["edit"] == "colour" and back[1].info["row"] == 2
    pairs = read_preferences(folder / "groups.jsonl").examples
    assert [*map(shown, pairs)] == [shown(pair) for group in back for pair in group.pairs()]
    pair = PreferencePair(*samples(folder, "ab"), {"overall": 1})
    with pytest.raises(JRMError, match="pair 2 does not fit .*: some are pairs and some are groups; write them apart"):
        write_preferences(folder / "both.jsonl", [written[0], pair])


def shown(pair):
    return pair.chosen, pair.rejected, pair.labels, pair.chosen_scores, pair.chosen_critiques, pair.rejected_critiques


@pytest.mark.parametrize(
    ("ranking", "places"),
    [("C>A>B", (2, 3, 1)), ("A=B<C", (2, 2, 1)), ("A=B=C=Bad", (1, 1, 1)), ([3, None, 1], (2, None, 1))],
)
def test_the_local_files_of_edit_reward_bench(folder, ranking, places):
    row = {"prompt": "make it blue", "path_src": "s.png", "paths_generated": ["a.png", "b.png", "c.png"]}
    records = read(folder, [row | {"human_vote": {"ranking": ranking}}])
    (group,) = records.examples
    assert (group.candidates, group.ranks) == (tuple(samples(folder, "abc")), {"overall": places})
    assert "1 groups of images; source=path_src, instruction=prompt, candidates=paths_generated" in records.understood


def test_rows_of_one_candidate_each_with_ranks_and_ratings_as_in_image_reward_db(folder):
    ratings = {"a": (1, 5, 4), "b": (3, 2, None), "c": (2, 4, 4)}
    rows = [
        {"image_path": f"{name}.png", "prompt": "make it blue", "rank": r, "alignment": i, "fidelity": v}
        for name, (r, i, v) in ratings.items()
    ]
    columns = {"source": None, "edited": "image_path", "score_instruction_following": "alignment"}
    (group,) = read(folder, rows, columns | {"score_visual_quality": "fidelity"}).examples
    assert group.candidates == tuple(samples(folder, "abc", source=None))
    assert group.ranks == {"overall": (1, 3, 2), "instruction_following": (1, 3, 2), "visual_quality": (1, None, 1)}


def test_a_row_that_is_no_group_is_named(folder):
    row = {"source": "s.png", "instruction": "make it blue", "candidates": ["a.png", "b.png", "c.png"]}
    for fields, said in (
        ({"ranking": "A>B"}, "ranking must order A, B, C as in B>A, A<B or A=B, not be 'A>B'"),
        ({"ranking": [1, 2]}, "it has 3 candidates and 2 places"),
        ({"ranking_visual_quality": [1, 2]}, "it has 3 candidates and 2 places of visual_quality"),
        ({"scores": [1, 2, "x"]}, "scores: a score must be a number, not 'x'"),
        ({"ranking": [1, 2, 3], "critiques_visual_quality": ["x"]}, "3 candidates and 1 critiques of visual_quality"),
        ({"ranking": [1, None, None]}, "must place two candidates or more"),
    ):
        with pytest.raises(JRMError, match=f"row 1: .*{re.escape(said)}"):
            read(folder, [row | fields])
