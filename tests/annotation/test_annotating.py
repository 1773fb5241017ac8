"""Annotation of a whole set: complete, each question asked once, and what it leaves for trainers and reviewers."""

import json
import re
from dataclasses import replace

import pytest
from critic_server import Critic
from judge_server import serving

from jrm_plugin import read_preferences
from jrm_plugin.annotation.annotating import annotate
from jrm_plugin.annotation.critics import ModelCritic, ServedCritic
from jrm_plugin.annotation.review import write_review
from jrm_plugin.chat_client import ChatClient
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl.examples import checked_examples
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[PreferencePair]:
    """ShapeEdits pairs without critiques."""
    folder = SHAPE_EDITS.write(tmp_path_factory.mktemp("edits"), train=12, heldout=0, language=0, progress=False)
    (folder / "train_critiques.jsonl").unlink()
    return read_preferences(folder / "train.json").examples


def critic(server, *, attempts: int = 3, **options) -> ServedCritic:
    return ServedCritic(ChatClient("m", base_url=server.url, **options), attempts=attempts)


def run(pairs, asked, folder, **options):
    return annotate(pairs, asked, folder, progress=False, **options)


def test_every_critique_is_asked_once_and_the_set_is_what_trainers_read(pairs, tmp_path):
    with serving(Critic()) as server:
        annotation = run(pairs, critic(server), tmp_path / "out", prices=(1.0, 2.0))
        assert len(server.requests) == annotation.summary["questions"] == 4 * len(pairs)
        again = run(pairs, critic(server), tmp_path / "out")
        assert len(server.requests) == 4 * len(pairs) and again.pairs == annotation.pairs
    examples = checked_examples(tmp_path / "out" / "pairs.jsonl", None, "train_dataset", lambda example: None)
    assert len(examples) == len(pairs)
    for before, after in zip(pairs, examples, strict=True):
        assert (after.chosen, after.rejected, after.labels) == (before.chosen, before.rejected, before.labels)
        for scores, critiques in (
            (before.chosen_scores, after.chosen_critiques),
            (before.rejected_scores, after.rejected_critiques),
        ):
            assert critiques.keys() == {*DIMENSIONS}
            for dimension, critique in critiques.items():
                assert f"worth {scores[dimension]:g}." in critique.reasoning
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["critiques"] == {"in_the_data": 0, "written": 48, "missing": 0, "without_a_score": 0}
    assert summary["prompt_tokens"] == 4800 and annotation.summary["cost"] == pytest.approx(5760e-6)


def test_a_server_that_answers_badly_slowly_and_not_at_all_still_gives_a_whole_set(pairs, tmp_path):
    with serving(Critic(bad=0.4, failing=0.25, slow=1.0, knows_schemas=False)) as server:
        for attempts in (3, 9):
            annotation = run(pairs, critic(server, attempts=attempts, timeout=0.8), tmp_path / "out")
    assert annotation.missing == {} and annotation.summary["critiques"]["written"] == 48
    assert annotation.summary["repaired"] > 0
    assert {"no JSON object", "cut off"} <= annotation.summary["faults_of_answers"].keys()
    assert {"status 429", "status 500", "no connection"} <= annotation.summary["unanswered_requests"].keys()


def test_consistency_is_asked_about_where_it_is_asked_for(pairs, tmp_path):
    scored = [
        replace(pair, chosen_scores={**pair.chosen_scores, "consistency": 4}, rejected_scores={"consistency": 2})
        for pair in pairs[:2]
    ]
    with serving(Critic()) as server:
        asked = ServedCritic(ChatClient("m", base_url=server.url), dimensions=["consistency"])
        run(scored, asked, tmp_path / "out")
        (first, *_) = server.requests
    assert sum(part["type"] == "image_url" for part in first["messages"][0]["content"]) == 2  # the source as well
    examples = read_preferences(tmp_path / "out" / "pairs.jsonl").examples
    for pair in examples:
        assert pair.labels["consistency"] == 1
        assert "worth 4." in pair.chosen_critiques["consistency"].reasoning
        assert "worth 2." in pair.rejected_critiques["consistency"].reasoning


def test_samples_of_several_pairs_are_asked_about_once(pairs, tmp_path):
    with serving(Critic()) as server:
        annotation = run([pairs[0]] * 3 + [pairs[1]], critic(server), tmp_path / "out")
    assert len(server.requests) == annotation.summary["questions"] == 8
    assert annotation.summary["critiques"]["written"] == 16


def test_critiques_of_the_data_are_kept(pairs, tmp_path):
    own = {DIMENSIONS[0]: Critique("as I say")}
    with serving(Critic()) as server:
        annotation = run([replace(pairs[0], chosen_critiques=own)], critic(server), tmp_path / "out")
    assert len(server.requests) == 3
    assert annotation.pairs[0].chosen_critiques[DIMENSIONS[0]] == own[DIMENSIONS[0]]
    assert annotation.summary["critiques"]["in_the_data"] == 1


def test_samples_without_a_score_are_counted_and_scores_of_another_scale_refused(pairs, tmp_path):
    bare = replace(pairs[0], chosen_scores=None, rejected_scores=None)
    with serving(Critic()) as server:
        annotation = run([bare, pairs[1]], critic(server), tmp_path / "out")
        assert annotation.summary["critiques"] == {"in_the_data": 0, "written": 4, "missing": 0, "without_a_score": 4}
        assert "no score to explain" in annotation.missing[0, "chosen", DIMENSIONS[0]]
        with pytest.raises(JRMError, match="no pair has scores in instruction_following"):
            run([bare], critic(server), tmp_path / "none")
        ten = replace(pairs[0], chosen_scores={DIMENSIONS[0]: 9.0}, rejected_scores={DIMENSIONS[0]: 2.0})
        with pytest.raises(JRMError, match=r"train.json, row 1, chosen, .*its score is 9, .*scores of 1 to 4"):
            run([ten], critic(server), tmp_path / "ten")


def test_answers_of_another_critic_are_not_mixed_in(pairs, tmp_path):
    with serving(Critic()) as server:
        run(pairs[:1], critic(server), tmp_path / "out")
        with pytest.raises(JRMError, match="another options"):
            run(pairs[:1], critic(server, temperature=0.5), tmp_path / "out")
        run(pairs[:2], critic(server), tmp_path / "out")  # further pairs are no other run
        assert len(server.requests) == 8


def test_pairs_of_somebody_else_are_not_written_over(pairs, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")
    with serving(Critic()) as server, pytest.raises(JRMError, match="choose another output folder"):
        run(pairs[:1], critic(server), tmp_path)
    assert (tmp_path / "pairs.jsonl").read_text() == "{}"


class SmallJRM:
    """What a JRM has, as far as a critic is concerned; of one sample it writes no critique."""

    dimensions = ["visual_quality"]

    def score(self, samples, *, on_error="raise", progress=False):
        return [RewardScore({"visual_quality": 0.0}, {"visual_quality": 1.0}) for _ in samples]

    def critique(self, samples: list[Sample], *, on_error: str):
        return [
            JRMError("it cannot be read")
            if "red" in sample.prompt_text
            else {"visual_quality": Critique(sample.prompt_text)}
            for sample in samples
        ]


def test_a_jrm_annotates_and_needs_no_scores(pairs, tmp_path):
    bare = [replace(pair, chosen_scores=None, rejected_scores=None) for pair in pairs]
    annotation = run(bare, ModelCritic("jrm:small", SmallJRM(), {}), tmp_path / "out")
    for number, pair in enumerate(annotation.pairs):
        text = pair.chosen.prompt_text
        if "red" in text:
            assert annotation.missing[number, "chosen", "visual_quality"] == "it cannot be read"
        else:
            assert pair.chosen_critiques == {"visual_quality": Critique(text)}
    assert annotation.summary["critiques"]["missing"] == len(annotation.missing) > 0
    assert "seconds_median" not in annotation.summary and annotation.summary["answers_without_token_counts"] == 0
    with pytest.raises(JRMError, match="gives scores and no critiques"):
        ModelCritic("jrm:x", object(), {})
    with pytest.raises(JRMError, match="has no dimension 'mood', only visual_quality"):
        ModelCritic("jrm:x", SmallJRM(), {}, dimensions=["mood"])


def test_the_page_shows_boxes_critiques_and_what_is_missing_first(pairs, tmp_path):
    with serving(Critic(bad=0.5)) as server:
        annotation = run(pairs, critic(server, attempts=1), tmp_path / "out")
    page = write_review(tmp_path / "out" / "review.html", annotation, pairs=9).read_text()
    incomplete = {number for number, *_ in annotation.missing}
    shown = [int(number) - 1 for number in re.findall(r"<h2>Pair (\d+)</h2>", page)]
    first = sorted(incomplete)[:9]
    assert shown == [*first, *[k for k in range(12) if k not in incomplete]][:9]
    assert "The page shows 9 pairs. Those that miss a critique stand first." in page
    assert page.count('class="no"') == sum(place[0] in first for place in annotation.missing)
    assert "Its JSON was repaired." in page
    box = next(
        critique.edit_region[0].bbox_2d
        for number in shown
        for critique in annotation.pairs[number].chosen_critiques.values()
        if critique.edit_region
    )
    width = (box[2] - box[0]) / 10
    assert f"left:{box[0] / 10}%;top:10.0%;width:{width}%;height:40.0%" in page
