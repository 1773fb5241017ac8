"""Both edit sets: the same seed gives the same files, and scores, critiques and pictures say the same thing."""

import hashlib
import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jrm_plugin.data.editreward import read_edit_reward, read_language
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import KNOWN_DIMENSIONS
from jrm_plugin.synthetic import photo_edits, shape_edits
from jrm_plugin.synthetic.photo_edits import PHOTO_EDITS
from jrm_plugin.synthetic.preferences import (
    FAILURE_SCORES,
    FAILURE_WEIGHTS,
    GROUPS,
    QUALITY_SCORES,
    QUALITY_WORDS,
    draw_outcomes,
    overall_score,
    spoil,
)
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

SETS = {"shapes": SHAPE_EDITS, "photos": PHOTO_EDITS}
SIZE = {"shapes": dict(train=300, heldout=100, language=200), "photos": dict(train=60, heldout=30, language=50)}


@pytest.fixture(scope="module", params=SETS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return SETS[request.param].write(folder, **SIZE[request.param], progress=False), SIZE[request.param]


def every_side(pairs):
    for pair in pairs:
        yield pair, 1, pair.chosen, pair.chosen_scores, pair.chosen_critiques
        yield pair, 2, pair.rejected, pair.rejected_scores, pair.rejected_critiques


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")}


@pytest.mark.parametrize("kind", SETS)
def test_the_seed_decides_every_byte(kind, tmp_path):
    size = dict(train=12, heldout=6, language=20, tie_rate=0.3, label_noise=0.3, progress=False)
    one, same, other = (
        digests(SETS[kind].write(tmp_path / name, seed=seed, **size)) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert one == same
    assert len(one) == 3 * 18 + 6
    assert all(one[name] != other[name] for name in one if name != "meta.json" and not name.endswith("_source.png"))


@pytest.mark.parametrize("kind", SETS)
def test_heldout_edits_do_not_depend_on_the_number_trained_on(kind, tmp_path):
    few = SETS[kind].write(tmp_path / "few", train=1, heldout=5, language=0, progress=False)
    many = SETS[kind].write(tmp_path / "many", train=9, heldout=5, language=9, progress=False)
    assert (few / "heldout.json").read_text() == (many / "heldout.json").read_text()


def test_scores_and_critiques_are_those_of_the_failures(made):
    folder, size = made
    for split in ("train", "heldout"):
        pairs = read_edit_reward(folder / f"{split}.json").examples
        assert len(pairs) == size[split]
        for pair, k, _, scores, critiques in every_side(pairs):
            failure, quality = pair.info[f"failure{k}"], pair.info[f"quality{k}"]
            assert scores["instruction_following"] == FAILURE_SCORES[failure]
            assert scores["visual_quality"] == QUALITY_SCORES[quality]
            following = critiques["instruction_following"]
            assert Critique.parse(following.to_json()) == following
            (region,) = following.edit_region
            assert set(region.bbox_2d) <= {0, 333, 667, 1000}
            assert region.bbox_2d[0] < region.bbox_2d[2] and region.bbox_2d[1] < region.bbox_2d[3]
            finding, rest = following.reasoning.removeprefix("<|bbox_0|> ").split(" <|global|> ")
            assert ("as asked" in finding) == (failure in ("none", "over_edit"))
            if failure in ("none", "ignored", "partial", "wrong_value"):
                assert rest == "the rest is unchanged"
            if failure == "over_edit":
                assert rest != "the rest is unchanged"
            if failure == "partial":
                assert "only half" in finding or "a copy is still there" in finding
            assert critiques["visual_quality"] == Critique(QUALITY_WORDS[quality])


def test_the_better_image_comes_first_and_ties_are_rare_by_default(made):
    for split in ("train", "heldout"):
        for pair in read_edit_reward(made[0] / f"{split}.json").examples:
            assert pair.labels["overall"] == 1
            assert sum(pair.chosen_scores.values()) > sum(pair.rejected_scores.values())
            assert pair.info["flipped"] is False


@pytest.mark.parametrize("kind", SETS)
def test_consistency_is_one_more_label_on_the_same_pictures(kind, tmp_path):
    size = dict(train=40, heldout=20, language=10, tie_rate=0.2, label_noise=0.2, progress=False)
    two = SETS[kind].write(tmp_path / "two", **size)
    three = SETS[kind].write(tmp_path / "three", **size, dimensions=KNOWN_DIMENSIONS)
    before, after = digests(two), digests(three)
    same = [name for name in before if name.endswith(".png") or name == "language.jsonl"]
    assert len(same) == 181 and all(before[name] == after[name] for name in same)
    assert json.loads((three / "meta.json").read_text())["dimensions"] == [*KNOWN_DIMENSIONS]
    by_image: dict = {}
    for split in ("train", "heldout"):
        for pair, k, sample, _, critiques in every_side(read_edit_reward(two / f"{split}.json").examples):
            by_image[sample.response_images[0].removeprefix(str(two))] = (pair.info[f"failure{k}"], critiques)
    seen = set()
    for split in ("train", "heldout"):
        pairs = read_edit_reward(three / f"{split}.json").examples
        for pair in pairs:
            assert pair.info["flipped"] or sum(pair.chosen_scores.values()) >= sum(pair.rejected_scores.values())
            assert pair.labels["overall"] == (sum(pair.chosen_scores.values()) != sum(pair.rejected_scores.values()))
        for pair, k, sample, scores, critiques in every_side(pairs):
            failure, of_two = by_image[sample.response_images[0].removeprefix(str(three))]
            assert failure == pair.info[f"failure{k}"]
            assert {name: critiques[name] for name in of_two} == of_two
            critique = critiques["consistency"]
            # what the critique of instruction following says of the rest, with the place where it changed
            rest = of_two["instruction_following"].reasoning.split(" <|global|> ")[1]
            assert rest in critique.reasoning
            kept = rest == "the rest is unchanged"
            assert kept == (not critique.edit_region)
            if not pair.info["flipped"]:
                assert scores["consistency"] == 4 if kept else scores["consistency"] in (1, 2)
                assert kept or (scores["consistency"] == 1) == (critique.edit_region[0].bbox_2d == (0, 0, 1000, 1000))
            seen.add((failure, kept))
    assert {("over_edit", False), ("none", True), ("ignored", True), ("wrong_object", False)} <= seen
    assert ("over_edit", True) not in seen and ("none", False) not in seen


@pytest.mark.parametrize("kind", SETS)
def test_over_edits_differ_in_nothing_else_from_what_was_asked(kind):
    pairs = SETS[kind].over_edits(12, dimensions=KNOWN_DIMENSIONS)
    assert pairs == SETS[kind].over_edits(12, dimensions=KNOWN_DIMENSIONS)
    assert pairs != SETS[kind].over_edits(12, seed=1, dimensions=KNOWN_DIMENSIONS)
    for pair in pairs:
        labels = {"instruction_following": 1, "visual_quality": 0, "consistency": 1, "overall": 1}
        assert pair.labels == labels and pair.info["quality1"] == pair.info["quality2"]
        assert (pair.info["failure1"], pair.info["failure2"]) == ("none", "over_edit")


def test_every_kind_of_edit_and_failure_occurs_in_both_splits(made):
    for split in ("train", "heldout"):
        pairs = read_edit_reward(made[0] / f"{split}.json").examples
        assert {pair.info[f"failure{k}"] for pair in pairs for k in (1, 2)} == set(FAILURE_WEIGHTS)
        assert {pair.info[f"quality{k}"] for pair in pairs for k in (1, 2)} == set(QUALITY_SCORES)
        kinds = shape_edits.KINDS if "shape" in pairs[0].info["model1"] else photo_edits.KINDS
        assert {pair.info["edit"] for pair in pairs} == set(kinds)
        for group in GROUPS.values():
            assert all(key in pair.info for pair in pairs for key in group["keys"])


def test_an_ignored_clean_edit_is_the_source_and_no_other_clean_edit_is(made):
    seen = Counter()
    for pair, k, sample, _, _ in every_side(read_edit_reward(made[0] / "train.json").examples):
        if pair.info[f"quality{k}"] == "clean":
            source, edited = (np.asarray(load_image(i)) for i in (*sample.prompt_images, *sample.response_images))
            ignored = pair.info[f"failure{k}"] == "ignored"
            assert np.array_equal(source, edited) == ignored
            seen[ignored] += 1
    assert seen[True] > 3 and seen[False] > 3


def test_language_rows_are_captions_first_then_both_kinds_of_changes(made):
    folder, size = made
    rows = read_language(folder / "language.jsonl").examples
    kinds = [row.info["kind"] for row in rows]
    captions = round(0.14 * size["language"])
    assert kinds[:captions] == ["caption"] * captions
    share = Counter(kinds[captions:])
    assert set(share) == {"diff", "objdiff"}
    middle = len(kinds[captions:]) / 2
    assert all(abs(count - middle) < 4 * math.sqrt(middle / 2) for count in share.values())
    for row in rows:
        assert row.sample.task == ("generation" if row.info["kind"] == "caption" else "edit")
        if row.info["kind"] != "caption":
            assert row.text.startswith(tuple(QUALITY_WORDS.values()))
    truth = {}
    for pair, k, sample, _, critiques in every_side(read_edit_reward(folder / "train.json").examples):
        truth[sample.response_images[0]] = critiques["visual_quality"].reasoning, pair.info[f"failure{k}"]
    for row in rows[captions:]:
        quality, failure = truth[row.sample.response_images[0]]
        assert row.text.startswith(quality)
        if row.info["kind"] == "diff":
            told = set(row.text.removeprefix(quality).split()) - {"top", "left", "right", "bottom", "middle"}
            assert ({word for word in told if "-" not in word} == {"same"}) == (failure == "ignored")


@pytest.mark.parametrize("kind", SETS)
def test_tie_rate_and_label_noise(kind, tmp_path):
    rate, count = 0.3, 400 if kind == "shapes" else 120
    folder = SETS[kind].write(
        tmp_path, train=count, heldout=40, language=0, tie_rate=rate, label_noise=rate, progress=False
    )
    pairs = read_edit_reward(folder / "train.json").examples
    ties = [pair for pair in pairs if pair.labels["overall"] == 0]
    flipped = [pair for pair in pairs if pair.info["flipped"]]
    five_sigma = 5 * math.sqrt(rate * (1 - rate) * count)
    assert abs(len(ties) - rate * count) < five_sigma
    assert abs(len(flipped) - rate * count) < five_sigma
    for pair in pairs:
        true = [overall_score(pair.info[f"failure{k}"], pair.info[f"quality{k}"]) for k in (1, 2)]
        told = [sum(scores.values()) for scores in (pair.chosen_scores, pair.rejected_scores)]
        assert told == (true[::-1] if pair.info["flipped"] else true)
        assert (told[0] == told[1]) == (pair.labels["overall"] == 0)
        # The critique tells what is seen, however the pair is labelled.
        assert pair.chosen_critiques["visual_quality"].reasoning == QUALITY_WORDS[pair.info["quality1"]]
    assert not any(pair.info["flipped"] for pair in read_edit_reward(folder / "heldout.json").examples)


@pytest.mark.parametrize("kind", SETS)
def test_failures_come_by_their_weights(kind, tmp_path):
    weights = {"none": 1.0, "partial": 1.0, "ignored": 0.0}
    folder = SETS[kind].write(tmp_path, train=30, heldout=0, language=0, failures=weights, progress=False)
    records = json.loads((folder / "train.json").read_text())
    assert {record[key] for record in records for key in ("failure1", "failure2")} == {"none", "partial"}
    assert json.loads((folder / "meta.json").read_text())["failures"] == weights


def test_several_copies_are_drawn_where_they_are_asked_for(tmp_path):
    with pytest.raises(JRMError, match="photo-edits has no failure 'several_copies'; it draws none, "):
        PHOTO_EDITS.write(tmp_path / "photos", failures={"none": 1, "several_copies": 1})
    weights = FAILURE_WEIGHTS | {"several_copies": 1.0}
    folder = SHAPE_EDITS.write(tmp_path, train=40, heldout=0, language=0, failures=weights, progress=False)
    records = json.loads((folder / "train.json").read_text())
    drawn = {(record["edit"], record[key]) for record in records for key in ("failure1", "failure2")}
    assert {(edit, "several_copies") for edit in ("add", "move", "remove", "recolour")} < drawn


@pytest.mark.parametrize("weights", [{}, {"none": 0.0}, {"none": -1.0, "ignored": 2.0}, {"none": float("nan")}])
def test_weights_of_failures_that_are_none(weights, tmp_path):
    with pytest.raises(JRMError, match="failures must have weights of 0 or more, and one above it"):
        SHAPE_EDITS.write(tmp_path, failures=weights)


def test_outcomes_of_a_tie_differ():
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, two = draw_outcomes(rng, tie=True)
        assert one != two and overall_score(*one) == overall_score(*two)


@pytest.mark.parametrize("quality", QUALITY_SCORES)
def test_flaws_can_be_seen_and_leave_the_image_alone(quality):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    before = image.copy()
    spoiled = spoil(image, quality, rng)
    assert np.array_equal(image, before)
    assert spoiled.shape == image.shape and spoiled.dtype == np.uint8
    assert np.array_equal(spoiled, image) == (quality == "clean")


def test_images_are_what_their_generator_drew(tmp_path):
    folder = SHAPE_EDITS.write(tmp_path, train=3, heldout=0, language=0, seed=11, progress=False)
    rng = np.random.default_rng([11, 0])
    for index in range(3):
        edit = SHAPE_EDITS.draw(rng, heldout=False, tie=rng.random() < 0)
        rng.random()  # label noise
        for name, drawn in zip("ab", edit.candidates, strict=True):
            with Image.open(folder / "images" / f"train_{index:06d}_{name}.png") as image:
                image.verify()
            assert np.array_equal(np.asarray(load_image(image.filename)), drawn.image)


def test_meta_says_what_was_made(made):
    folder, size = made
    meta = json.loads((folder / "meta.json").read_text())
    assert {**size, "seed": 0, "tie_rate": 0.0, "label_noise": 0.0}.items() <= meta.items()
    assert meta["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(train=-1), "train"),
        (dict(heldout=1.5), "heldout"),
        (dict(seed=-3), "seed"),
        (dict(tie_rate=1.2), "tie_rate"),
        (dict(label_noise=-0.1), "label_noise"),
        (dict(train=0, language=5), "language"),
        (dict(dimensions=["mood"]), "mood"),
        (dict(dimensions=["visual_quality"] * 2), "each once"),
    ],
)
def test_options_out_of_range(options, word, tmp_path):
    with pytest.raises(JRMError, match=word):
        SHAPE_EDITS.write(tmp_path, **{"train": 1, "heldout": 1, "language": 1, **options})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JRMError, match="file.*cannot be written"):
        SHAPE_EDITS.write(tmp_path / "file", train=1, heldout=0, language=0, progress=False)
