"""Several judges on several benchmarks: what is shared, what is kept, and what comes out."""

import json
import math
from dataclasses import replace

import pytest
from pictures import png

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation import judging
from jrm_plugin.evaluation.agreement import accuracy, accuracy_with_ties
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column, Published
from jrm_plugin.evaluation.judges import Comparison, ScorerJudge, dimension_for
from jrm_plugin.evaluation.judging import judge_all
from jrm_plugin.evaluation.results import pair_records, summarize_run, worst_mistakes
from jrm_plugin.evaluation.results_table import notes_of, rows_of
from jrm_plugin.records.images import load_image
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore


class Redness:
    """A scorer that likes red: how much of it the response has."""

    dimensions = ["visual_quality"]

    def __init__(self, sigma: float = 1.0, sign: float = 1.0):
        self.sigma, self.sign, self.samples = sigma, sign, []

    def score(self, samples, *, on_error="raise", progress=False):
        self.samples += samples
        reds = [load_image(sample.response_images[0]).getpixel((0, 0))[0] / 100 for sample in samples]
        return [RewardScore({"visual_quality": self.sign * red}, {"visual_quality": self.sigma}) for red in reds]

    def rank(self, samples, **options):
        raise NotImplementedError


class Coin:
    """A judge of pairs: it says what `votes` says of a pair's number, by the order of asking."""

    name, settings, dimensions, compares = "coin", {}, ["visual_quality"], True

    def __init__(self, votes):
        self.votes, self.asked = iter(votes), []

    def answer(self, questions):
        assert all(isinstance(question, Comparison) for question in questions)
        self.asked += questions
        yield [(k, {"votes": next(self.votes), "seconds": [0.5], "prompt_tokens": 10}) for k in range(len(questions))]


def pair(source: int, first: int, second: int, label: int, **info) -> PreferencePair:
    samples = [Sample.edit(png(source), "make it red", png(k)) for k in (first, second)]
    return PreferencePair(*samples, labels={OVERALL: label}, info=info)


@pytest.fixture
def benchmark() -> Benchmark:
    """Three pairs over three images, of which 2 is the reddest and 0 has no red."""
    pairs = [pair(0, 1, 0, 1, kind="x"), pair(0, 2, 1, 1, kind="y"), pair(0, 0, 2, 1, kind="y")]
    return Benchmark("b", "B", pairs, (Column("All", accuracy, OVERALL),), divisions=("kind",))


def test_each_sample_is_scored_once_and_each_image_decoded_once_for_all_judges(benchmark, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(judging, "load_image", lambda image, **options: loaded.append(image) or load_image(image))
    first, second = Redness(), Redness(sign=-1)
    judges = [ScorerJudge("red", first, {}), ScorerJudge("not red", second, {})]
    verdicts = judge_all([benchmark], judges, tmp_path, progress=False)
    assert len(first.samples) == len(second.samples) == 3
    assert len(loaded) == 3
    results = summarize_run([benchmark], judges, verdicts, resamples=20)["benchmarks"]["b"]
    assert [of["columns"]["All"]["value"] for of in results["judges"].values()] == pytest.approx([2 / 3, 1 / 3])
    assert results["differences"][0]["columns"]["All"]["value"] == pytest.approx(1 / 3)
    assert results["judges"]["red"]["dimensions"][OVERALL]["divisions"]["kind"]["y"]["value"] == 0.5
    assert results["judges"]["red"]["dimensions"][OVERALL]["calibration"]["n"] == 3
    assert json.loads(json.dumps(results)) == results
    assert worst_mistakes(verdicts["b"]["red"], OVERALL, 5) == [2]


def test_what_is_answered_is_not_asked_again_and_benchmarks_and_judges_may_come(benchmark, tmp_path):
    first, again = Redness(), Redness()
    judge_all([benchmark], [ScorerJudge("red", first, {})], tmp_path, progress=False)
    more = Benchmark("more", "More", [pair(0, 1, 3, 1)], benchmark.columns)
    both = [ScorerJudge("red", again, {}), Coin([[[1], [1]]] * 4)]
    verdicts = judge_all([benchmark, more], both, tmp_path, progress=False)
    assert len(again.samples) == 1
    assert len((tmp_path / "answers" / "red.jsonl").read_text().splitlines()) == 4
    assert set(verdicts) == {"b", "more"}


def test_another_judge_of_that_name_is_refused(benchmark, tmp_path):
    judge_all([benchmark], [ScorerJudge("red", Redness(), {"weights": "a"})], tmp_path, progress=False)
    with pytest.raises(JRMError, match="holds a run with another weights"):
        judge_all([benchmark], [ScorerJudge("red", Redness(), {"weights": "b"})], tmp_path, progress=False)


def test_a_judge_of_pairs_has_margins_of_its_votes_and_a_consistency(benchmark, tmp_path):
    coin = Coin([[[1, 1], [1, -1]], [[1, 1], [-1, -1]], [[-1, -1], [-1, -1]]])
    verdicts = judge_all([benchmark], [coin], tmp_path, progress=False)
    assert verdicts["b"]["coin"].judged[OVERALL].margin_N.tolist() == [0.5, 0.0, -1.0]
    result = summarize_run([benchmark], [coin], verdicts, resamples=20, prices=(2.0, 8.0))["benchmarks"]["b"]
    of = result["judges"]["coin"]
    assert of["columns"]["All"]["value"] == pytest.approx(1 / 3)
    assert of["consistency"]["correct"] == 3 and of["consistency"]["n"] == 6
    assert of["answers"]["requests"] == 3 and of["answers"]["cost"] == pytest.approx(30 * 2 / 1e6)
    notes = notes_of(result)
    assert "coin: no sigma, so no calibration." in notes
    assert "coin: the same verdict in both orders in 50.0 %." in notes


def test_a_sample_without_a_score_counts_as_wrong_and_is_told(benchmark, tmp_path):
    class Failing(Redness):
        def score(self, samples, **options):
            scores = super().score(samples)
            return [JRMError("too dark") if score.mu[OVERALL] == 0 else score for score in scores]

    judges = [ScorerJudge("red", Failing(), {})]
    verdicts = judge_all([benchmark], judges, tmp_path, progress=False)
    result = summarize_run([benchmark], judges, verdicts, resamples=20)["benchmarks"]["b"]
    assert result["judges"]["red"]["failed"] == 2
    assert result["judges"]["red"]["columns"]["All"]["value"] == pytest.approx(1 / 3)
    assert result["judges"]["red"]["dimensions"][OVERALL]["accuracy"]["correct"] == 1
    records = [*pair_records(benchmark, judges, verdicts["b"])]
    assert records[0]["second"] == {"error": "too dark"} and records[0]["margin"] is None
    assert records[1]["right"] is True and math.isfinite(records[1]["margin"])


def test_ties_count_in_a_column_that_is_about_them_alone(benchmark, tmp_path):
    columns = (*benchmark.columns, Column("With ties", accuracy_with_ties, OVERALL, ties=True))
    tied = replace(benchmark, pairs=[*benchmark.pairs, pair(0, 1, 1, 0, kind="x")], columns=columns)
    judges = [ScorerJudge("red", Redness(), {})]
    verdicts = judge_all([tied], judges, tmp_path, progress=False)
    figures = summarize_run([tied], judges, verdicts, resamples=20)["benchmarks"]["b"]["judges"]["red"]["columns"]
    assert (figures["All"]["value"], figures["All"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (figures["With ties"]["value"], figures["With ties"]["n"]) == (0.75, 4)


def test_a_scorer_without_sigma_has_no_calibration(benchmark, tmp_path):
    judges = [ScorerJudge("red", Redness(sigma=0.0), {})]
    verdicts = judge_all([benchmark], judges, tmp_path, progress=False)
    result = summarize_run([benchmark], judges, verdicts, resamples=20)["benchmarks"]["b"]
    assert "calibration" not in result["judges"]["red"]["dimensions"][OVERALL]
    assert "red: no sigma, so no calibration." in notes_of(result)


def test_an_image_that_cannot_be_decoded_is_named_by_its_pair(benchmark, tmp_path):
    broken = PreferencePair(*[Sample.edit(png(0), "x", content) for content in (png(1), b"none")], labels={OVERALL: 1})
    with pytest.raises(JRMError, match="b, pair 2 .*is not an image"):
        judge_all(
            [Benchmark("b", "B", [benchmark.pairs[0], broken], benchmark.columns)],
            [ScorerJudge("red", Redness(), {})],
            tmp_path,
            progress=False,
        )


def test_which_dimension_answers_for_which():
    there = ["instruction_following", "visual_quality"]
    assert dimension_for("prompt_following", there) == "instruction_following"
    assert dimension_for("visual_quality", there) == "visual_quality"
    assert dimension_for("consistency", there) == OVERALL
    assert dimension_for("consistency", ["consistency"]) == "consistency"
    assert dimension_for("consistency", there, {"consistency": "visual_quality"}) == "visual_quality"
    with pytest.raises(JRMError, match="no judge's dimension 'taste' can answer for consistency"):
        dimension_for("consistency", there, {"consistency": "taste"})


def test_published_rows_stand_below_ours_and_say_so(benchmark, tmp_path):

    published = replace(benchmark, published=Published("a paper", {"JRM": (0.9,), "other": (None,)}))
    judges = [ScorerJudge("red", Redness(), {})]
    verdicts = judge_all([published], judges, tmp_path, progress=False)
    rows = rows_of(summarize_run([published], judges, verdicts, resamples=20)["benchmarks"]["b"])
    assert rows[0][0] == "red" and rows[0][1].startswith("0.667 (")
    assert rows[1:] == [["JRM (published)", "0.900"], ["other (published)", "–"]]
