"""The self-correction loop: what it records, how it goes on, and the arithmetic of its table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jrm_plugin.correction.diffusers_editor import DiffusersEditor
from jrm_plugin.correction.editing import EditRequest
from jrm_plugin.correction.loop import self_correct
from jrm_plugin.correction.rounds import CONTROL, CRITIQUE, START, CorrectionRound, best_round, read_rounds
from jrm_plugin.correction.shape_editor import draw_samples, edit_shapes
from jrm_plugin.correction.table import correction_table, initial_quantiles
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion, UnparsedCritique
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """More than are handled at once."""
    return draw_samples(18, seed=3)


@pytest.fixture(scope="module")
def finished(tiny, samples, tmp_path_factory) -> Path:
    """The output of a run of two rounds that nothing interrupted."""
    output = tmp_path_factory.mktemp("finished")
    self_correct(tiny, samples, edit_shapes, 2, output=output)
    return output


def forbidden(request: EditRequest):
    raise AssertionError("everything was edited already")


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_every_round_of_every_arm_is_recorded_in_order(tiny, samples, finished):
    rounds = self_correct(tiny, samples, forbidden, 2, output=finished)
    places = [(START, 0), (CRITIQUE, 1), (CRITIQUE, 2), (CONTROL, 1), (CONTROL, 2)]
    assert [(one.sample, one.arm, one.number) for one in rounds] == [(k, *p) for k in range(18) for p in places]
    assert sorted(p.name for p in (finished / "images").iterdir()) == sorted(Path(one.image).name for one in rounds)
    for one in rounds:
        assert one.error is None and one.edited == (None if one.arm == START else one.number - 1)
        assert bool(one.critiques) == (one.arm == CRITIQUE)


def test_scores_and_critiques_are_the_scorers_own(tiny, samples, finished):
    rounds = read_rounds(finished)
    by_key = {(one.sample, one.arm, one.number): one for one in rounds}

    def shown(one):
        return Sample(samples[one.sample].prompt, ({"type": "image", "image": str(finished / one.image)},))

    for one, score in zip(rounds, tiny.score([shown(one) for one in rounds]), strict=True):
        assert one.score.mu == pytest.approx(score.mu, abs=1e-5)
        assert one.score.sigma == pytest.approx(score.sigma, abs=1e-5)
    guided = [one for one in rounds if one.arm == CRITIQUE][:12]
    before = [by_key[one.sample, START if one.edited == 0 else CRITIQUE, one.edited] for one in guided]
    for one, written in zip(guided, tiny.critique([shown(one) for one in before]), strict=True):
        assert one.critiques == {name: found.to_json() for name, found in written.items()}


def test_the_start_is_a_copy_of_the_image_given(samples, finished):
    for one in read_rounds(finished):
        if one.arm == START:
            given_image = np.asarray(load_image(samples[one.sample].response_images[0]))
            assert (np.asarray(load_image(finished / one.image)) == given_image).all()


def test_what_the_editor_is_asked(tiny, samples, tmp_path):
    asked = []

    def editor(request):
        asked.append(request)
        return request.image

    self_correct(tiny, samples[:2], editor, 2, output=tmp_path)
    guided, control = asked[:4], asked[4:]
    for one, two in zip(guided, control, strict=True):
        assert one.instruction == two.instruction == two.prompt
        assert one.seed == two.seed
        assert set(one.critiques) == set(tiny.dimensions) and one.critique and not two.critique
        assert one.prompt.startswith(one.instruction) and one.critique in one.prompt
    assert len({request.seed for request in guided}) == 4


def test_a_critique_as_plain_text():
    regions = (EditRegion(0, "red cat", (0, 0, 10, 10)), EditRegion(12, "sky", (0, 0, 10, 10)))
    critiques = {
        "instruction_following": Critique("<|bbox_12|> is blue <|bbox_0|> is gone <|global|> fine", regions),
        "visual_quality": UnparsedCritique("no JSON", "not valid"),
    }
    image = Image.new("RGB", (4, 4))
    text = EditRequest((), "do it", image, critiques, 0).critique
    assert text == "instruction following: [sky] is blue [red cat] is gone [whole image] fine\nvisual quality: no JSON"
    assert EditRequest((), "do it", image, {}, 0).prompt == "do it"


def test_keep_better_edits_the_best_image_so_far(tiny, samples, tmp_path):
    chosen = samples[:4]

    def spoil(request):
        noise = np.random.default_rng(request.seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    rounds = self_correct(tiny, chosen, spoil, 3, output=tmp_path, keep_better=True, control=False)
    for k in range(len(chosen)):
        history = [one for one in rounds if one.sample == k]
        assert [one.arm for one in history] == [START, CRITIQUE, CRITIQUE, CRITIQUE]
        for position, one in enumerate(history[1:], 1):
            assert one.edited == best_round(history[:position]).number


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_editor_that_fails_for_one_sample_stops_no_other(tiny, samples, finished, tmp_path):
    def editor(request):
        if request.instruction == samples[5].prompt_text and request.sources[0] == samples[5].prompt_images[0]:
            raise RuntimeError("out of paint")
        return edit_shapes(request)

    rounds = self_correct(tiny, samples, editor, 2, output=tmp_path)
    failed = [one for one in rounds if one.error]
    assert [(one.sample, one.arm, one.number) for one in failed] == [(5, CRITIQUE, 1), (5, CONTROL, 1)]
    assert failed[0].error == "the editor raised RuntimeError: out of paint"
    assert failed[0].critiques and failed[0].image is None and failed[0].score is None
    others = [one for one in rounds if one.sample != 5]
    expected = [one for one in read_rounds(finished) if one.sample != 5]
    assert {(o.sample, o.arm, o.number): o.critiques for o in others} == {
        (o.sample, o.arm, o.number): o.critiques for o in expected
    }
    assert correction_table(rounds)["left_out"] == [5]
    assert correction_table(rounds)["rows"][0]["samples"] == 17
    # Errors are results: they are read back, and not tried again.
    assert self_correct(tiny, samples, forbidden, 2, output=tmp_path) == rounds


@pytest.mark.parametrize("made", [None, "nowhere.png", np.zeros((3, 3, 7)), Image.new("RGB", (1, 900))])
def test_an_editor_that_gives_no_image(tiny, samples, tmp_path, made):
    rounds = self_correct(tiny, samples[:1], lambda request: made, 1, output=tmp_path, control=False)
    assert "the editor's image" in rounds[-1].error and rounds[-1].image is None


def test_an_image_that_cannot_be_read_is_recorded(tiny, samples, tmp_path):
    broken = Sample.edit(None, "make it blue", str(tmp_path / "nowhere.png"))
    rounds = self_correct(tiny, [broken, samples[0]], edit_shapes, 1, output=tmp_path / "run")
    assert [(one.sample, one.arm) for one in rounds] == [(0, START), (1, START), (1, CRITIQUE), (1, CONTROL)]
    assert "nowhere.png" in rounds[0].error
    table = correction_table(rounds)
    assert (table["left_out"], table["rows"][0]["samples"]) == ([0], 1)


def test_mistakes(tiny, samples, finished, tmp_path):
    for rounds in (0, True, 1.5):
        with pytest.raises(JRMError, match="rounds must be"):
            self_correct(tiny, samples, edit_shapes, rounds, output=tmp_path / "x")
    with pytest.raises(JRMError, match="sample 1 cannot be corrected"):
        text = Sample.text_response(None, "what is it?", "a cat")
        self_correct(tiny, [samples[0], text], edit_shapes, 1, output=tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(JRMError, match="cannot be written"):
        self_correct(tiny, samples, edit_shapes, 1, output=tmp_path / "file")
    for changes, name in (
        ({"rounds": 3}, "rounds"),
        ({"samples": samples[:-1]}, "samples"),
        ({"control": False, "seed": 1}, "control, seed"),
        ({"settings": {"model": "other"}}, "model"),
    ):
        options = {"samples": samples, "rounds": 2, **changes}
        with pytest.raises(JRMError, match=f"another {name};"):
            self_correct(tiny, editor=forbidden, output=finished, **options)
    for left_over in ("rounds.jsonl", "images/000000_critique_1.png"):
        folder = tmp_path / left_over[:3]
        (folder / "images").mkdir(parents=True)
        (folder / left_over).write_text("{}\n")
        with pytest.raises(JRMError, match="unknown run"):
            self_correct(tiny, samples, edit_shapes, 1, output=folder)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [3, 57])
def test_goes_on_from_any_line_to_the_same_records(tiny, samples, finished, tmp_path, left):
    lines = (finished / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rounds.jsonl").write_bytes(b"".join(lines[:left]) + lines[left][:30])
    (tmp_path / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    (tmp_path / "images").mkdir()
    for line in lines[:left]:
        name = json.loads(line)["image"]
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    self_correct(tiny, samples, edit_shapes, 2, output=tmp_path)
    assert (tmp_path / "rounds.jsonl").read_bytes() == b"".join(lines)
    for path in (finished / "images").iterdir():
        assert (tmp_path / "images" / path.name).read_bytes() == path.read_bytes()


def test_an_edit_that_was_saved_is_not_made_again(tiny, samples, tmp_path):
    asked = []

    def stops(request):
        asked.append(request)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return edit_shapes(request)

    with pytest.raises(KeyboardInterrupt):
        self_correct(tiny, samples[:4], stops, 1, output=tmp_path, control=False)
    self_correct(tiny, samples[:4], stops, 1, output=tmp_path, control=False)
    assert len(asked) == 3 + 2  # the third again, and the fourth


def test_a_damaged_record_is_named(finished, tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"sample": 1}\n')
    with pytest.raises(JRMError, match="line 1 is no record"):
        read_rounds(tmp_path)


# --- the table --------------------------------------------------------------------------------------------------------


def round_of(sample: int, arm: str, number: int, mu: float | None) -> CorrectionRound:
    score = None if mu is None else RewardScore({"quality": mu}, {"quality": 1.0})
    edited = None if arm == START else number - 1
    return CorrectionRound(sample, arm, number, edited, {}, "x.png", score, None if score else "it broke")


def run_of(*samples: tuple) -> list[CorrectionRound]:
    """Each sample as (start, scores with critiques, scores without)."""
    rounds = []
    for k, (start, guided, control) in enumerate(samples):
        rounds.append(round_of(k, START, 0, start))
        rounds += [round_of(k, CRITIQUE, number, mu) for number, mu in enumerate(guided, 1)]
        rounds += [round_of(k, CONTROL, number, mu) for number, mu in enumerate(control, 1)]
    return rounds


def test_the_table_of_a_run_by_hand():
    rounds = run_of((1.0, [4.0, 2.0], [0.0, 3.0]), (3.0, [2.0, 1.0], [3.5, 3.0]), (9.0, [None], [9.0, 9.0]))
    table = correction_table(rounds, [3.0, 0.5], oracle=lambda one: 10 * one.score.mu["quality"] + one.number)
    assert (table["rounds"], table["arms"], table["left_out"]) == (2, [CRITIQUE, CONTROL], [2])
    everything, low, none = table["rows"]
    assert (everything["below"], everything["samples"]) == (None, 2)
    # Changes 1 and -2; half width 1.96 · sd / √2 with sd = 3 / √2.
    assert everything[CRITIQUE]["last"]["delta"] == pytest.approx({"mean": -0.5, "half_width": 1.96 * 1.5})
    assert everything[CRITIQUE]["kept"]["delta"]["mean"] == pytest.approx((3 + 0) / 2)
    assert everything[CONTROL]["last"]["delta"]["mean"] == pytest.approx((2 + 0) / 2)
    assert everything[CONTROL]["kept"]["delta"]["mean"] == pytest.approx((2 + 0.5) / 2)
    assert everything["oracle_before"]["mean"] == pytest.approx(20)
    assert everything[CRITIQUE]["last"]["oracle_delta"]["mean"] == pytest.approx((12 - 18) / 2)
    assert everything[CONTROL]["kept"]["oracle_delta"]["mean"] == pytest.approx((22 + 6) / 2)
    # Strictly below: the sample that began at 3.0 does not count.
    assert low["samples"] == 1
    assert low[CRITIQUE]["last"]["delta"] == {"mean": pytest.approx(1.0), "half_width": None}
    assert none["samples"] == 0 and none[CONTROL]["kept"]["delta"] is None


MU = st.floats(-20, 20)
RUNS = st.lists(st.tuples(MU, st.lists(MU, min_size=2, max_size=2), st.lists(MU, min_size=2, max_size=2)), min_size=1)


@given(runs=RUNS, threshold=MU, shift=MU)
def test_contracts_of_the_table(runs, threshold, shift):
    table = correction_table(run_of(*runs), [threshold, 100.0])
    everything, below, above_all = table["rows"]
    assert below["samples"] == sum(start < threshold for start, _, _ in runs)
    assert {**above_all, "below": None} == everything  # a threshold above all scores leaves none out
    for arm in (CRITIQUE, CONTROL):
        last, kept = (everything[arm][end]["delta"]["mean"] for end in ("last", "kept"))
        assert kept >= -1e-12 and kept >= last - 1e-9  # the start is among what can be kept
    moved = [(start + shift, [x + shift for x in one], [x + shift for x in two]) for start, one, two in runs]
    last = correction_table(run_of(*moved))["rows"][0][CRITIQUE]["last"]["delta"]["mean"]
    assert last == pytest.approx(everything[CRITIQUE]["last"]["delta"]["mean"], abs=1e-9)  # only differences count


def test_quantiles_of_the_initial_scores():
    rounds = run_of(*((float(k), [50.0], [60.0]) for k in range(5)))
    assert initial_quantiles(rounds, [0.75, 0.5]) == [3.0, 2.0]
    assert initial_quantiles(rounds, []) == [] and initial_quantiles([], [0.5]) == []
    with pytest.raises(JRMError, match="between 0 and 1"):
        initial_quantiles(rounds, [50])


def test_the_earliest_of_equal_rounds_is_kept():
    history = [round_of(0, START, 0, 1.0), round_of(0, CRITIQUE, 1, 2.0), round_of(0, CRITIQUE, 2, 2.0)]
    assert best_round(history).number == 1


@given(mu=MU, text=st.text(max_size=30))
def test_a_round_is_read_back_as_it_was_written(mu, text):
    score = RewardScore({"a": mu, "b": 1.5}, {"a": 0.25, "b": 3.0})
    for one in (
        CorrectionRound(3, CRITIQUE, 2, 1, {"a": text}, "images/x.png", score, None),
        CorrectionRound(0, START, 0, None, {}, None, None, text or "error"),
    ):
        assert CorrectionRound.from_record(json.loads(json.dumps(one.to_record()))) == one


# --- diffusers --------------------------------------------------------------------------------------------------------


class FakePipeline:
    """With the signature and the result of diffusers' image-editing pipelines."""

    def __init__(self):
        self.calls = []

    def __call__(self, image=None, prompt=None, *, num_inference_steps=50, generator=None, output_type="pil"):
        self.calls.append((image, prompt, num_inference_steps, generator.initial_seed()))

        class Output:
            images = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]

        return Output()


def test_a_diffusers_pipeline_is_called_with_image_and_prompt():
    pipeline = FakePipeline()
    source, edited = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")
    critiques = {"visual_quality": Critique("there is a seam")}
    request = EditRequest((source,), "make it blue", edited, critiques, 2**32 - 1)
    made = DiffusersEditor(pipeline, options={"num_inference_steps": 4})(request)
    assert made.getpixel((0, 0)) == (255, 0, 0)
    assert pipeline.calls == [(edited, request.prompt, 4, 2**32 - 1)]
    assert "there is a seam" in request.prompt
    DiffusersEditor(pipeline, image="source")(request)
    assert pipeline.calls[1][0] is source
    DiffusersEditor(pipeline, image="source")(EditRequest((source, edited), "mix", edited, {}, 0))
    assert pipeline.calls[2][:2] == ([source, edited], "mix")


def test_a_diffusers_pipeline_in_the_loop(tiny, samples, tmp_path):
    rounds = self_correct(tiny, samples[:2], DiffusersEditor(FakePipeline()), 1, output=tmp_path)
    assert len(rounds) == 6 and all(one.error is None for one in rounds)
    assert load_image(tmp_path / rounds[-1].image).size == (8, 8)


def test_mistakes_with_diffusers(monkeypatch):
    with pytest.raises(JRMError, match="edited or source"):
        DiffusersEditor(FakePipeline(), image="both")
    with pytest.raises(JRMError, match="no source to start over from"):
        DiffusersEditor(FakePipeline(), image="source")(EditRequest((), "x", Image.new("RGB", (4, 4)), {}, 0))
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    with pytest.raises(JRMError) as caught:
        DiffusersEditor("some/pipeline")
    assert str(caught.value) == "to load the editor some/pipeline, install diffusers: pip install diffusers."
