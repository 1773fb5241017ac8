"""A generative model as a judge, against a server on this machine that answers well, badly and slowly."""

import time

import pytest
from judge_server import brightness, by_content, pictures, serving, texts
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.generative_judge import GenerativeJudge, parse_score, parse_vote
from jrm_plugin.evaluation.judges import Comparison
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.protocol import Scorer


def edit(light: int, instruction: str = "make it lighter") -> Sample:
    return Sample.edit(Image.new("RGB", (8, 8), "black"), instruction, Image.new("RGB", (8, 8), (light,) * 3))


def judge(server, **options) -> GenerativeJudge:
    return GenerativeJudge("m", base_url=server.url, **options)


def light_as_score(request: dict) -> str:
    return f'{{"reasoning": "light", "score": {1 + brightness(pictures(request)[-1]) // 64:.0f}}}'


def test_it_is_a_scorer_asked_with_the_rubric_of_each_dimension():
    with serving(light_as_score) as server:
        scorer = judge(server)
        assert isinstance(scorer, Scorer)
        scores = scorer.score([edit(10), edit(200)])
        assert [place.position for place in scorer.rank([edit(10), edit(200)])] == [1, 0]
    assert [score.mu["overall"] for score in scores] == [1.0, 4.0]
    assert scores[0].sigma["overall"] == 0.0
    asked = "\n".join(map(texts, server.requests[:4]))
    assert "how faithfully the instruction was carried out" in asked and "how real, clean and pleasing" in asked
    assert "make it lighter" in asked and "bbox" not in asked
    assert len(pictures(server.requests[0])) == 2


def test_passes_give_a_mean_and_a_deviation():
    values = iter("13" * 2)
    with serving(lambda request: f'{{"score": {next(values)}}}') as server:
        (score,) = judge(server, passes=2, concurrency=1).score([edit(0)])
    assert score.mu["visual_quality"] == 2.0 and score.sigma["visual_quality"] == pytest.approx(2**0.5)


def test_pairs_are_judged_in_both_orders():
    def prefers_the_first(request):
        return '{"winner": "A"}'

    question = Comparison(edit(10), edit(200), "overall")
    with serving(by_content) as server:
        ((_, row),) = [each for rows in judge(server, compares=True).answer([question]) for each in rows]
        assert row["votes"] == [[-1], [-1]]
        lights = [[brightness(picture) for picture in pictures(request)[-2:]] for request in server.requests]
        assert lights == [[10.0, 200.0], [200.0, 10.0]]
    with serving(prefers_the_first) as server:
        ((_, row),) = [each for rows in judge(server, compares=True).answer([question]) for each in rows]
        assert row["votes"] == [[1], [-1]]
    assert "Instruction following" in texts(server.requests[0]) and "Visual quality" in texts(server.requests[0])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reasoning": "a", "score": 3}', 3),
        ('```json\n{"reasoning": "a", "score": "2.5"}\n```', 2.5),
        ('It is fine. {"reasoning": "a {b}", "score": 4', 4),
        ("<think>score: 1?</think>\n**Score**: 3/4", 3),
        ('{"reasoning": "score: 1 would be harsh", "score": 2}', 2),
        ('{"score": 1}\n{"score": 3}', 3),
        ("Score: 3/10", None),
        ('{"score": 7}', None),
        ('{"score": true}', None),
        ("I cannot judge this.", None),
        ("", None),
        ("<think>score: 3", None),
    ],
)
def test_a_score_is_read_out_of_what_models_write(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ('{"winner": "A"}', 1),
        ('```json\n{"reasoning": "x", "winner": "Result B"}```', -1),
        ('{"winner": "tie"', 0),
        ("My verdict: [[B]]", -1),
        ("The winner is B.", -1),
        ("Better: image A", 1),
        ("Both are fine; winner: neither", 0),
        ('{"winner": "C"}', None),
        ("I like them.", None),
    ],
)
def test_a_verdict_is_read_out_of_what_models_write(text, vote):
    assert parse_vote(text) == vote


def test_an_answer_without_a_score_is_asked_for_again_and_then_is_the_samples_error():
    answers = iter(["hm", "", "no idea"])

    def reply(request):
        dark = brightness(pictures(request)[-1]) < 100
        return next(answers, "still none") if dark else '{"score": 3}'

    with serving(reply) as server:
        first, second = judge(server, concurrency=1).score([edit(10), edit(200)], on_error="return")
    assert isinstance(first, JRMError) and "no score in its answer 'no idea'" in str(first)
    assert second.mu["overall"] == 3.0
    assert len(server.requests) == 3 + 2


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"retry-after-ms": "1"}, '{"error": "slow down"}'),
        (503, {"retry-after-ms": "1"}, "busy"),
        (200, {"Content-Type": "text/html"}, "<html>no answer</html>"),
        (200, {"Content-Type": "application/json"}, '{"choices": []}'),
        (200, {"Content-Type": "application/json"}, '{"choices": [{"message": {"content": null}}]}'),
    ],
)
def test_a_server_that_fails_once_is_asked_again(bad):
    replies = iter([bad])
    with serving(lambda request: next(replies, '{"score": 2}')) as server:
        (score,) = judge(server).score([edit(0)])
    assert score.mu["overall"] == 2.0 and len(server.requests) == 3


def test_a_slow_answer_is_given_up_and_asked_for_again():
    waits = iter([1.0])

    def reply(request):
        time.sleep(next(waits, 0.0))
        return '{"score": 2}'

    with serving(reply) as server:
        (score,) = judge(server, timeout=0.3).score([edit(0)])
    assert score.mu["overall"] == 2.0


def test_what_a_request_is_refused_for_is_the_samples_error():
    with serving(lambda request: (400, {"Content-Type": "application/json"}, '{"error": "too large"}')) as server:
        (error,) = judge(server).score([edit(0)], on_error="return")
    assert "400" in str(error) and "too large" in str(error)


def test_a_server_that_cannot_be_used_ends_the_run_and_what_was_answered_stays():
    def reply(request):
        dark = brightness(pictures(request)[-1]) < 100
        return (401, {}, "no key") if dark else '{"score": 3}'

    with serving(reply) as server:
        rows = judge(server, concurrency=1).answer([edit(200), edit(10), edit(200)])
        assert next(rows)[0][0] == 0
        with pytest.raises(JRMError, match="openai:m answers with 401"):
            list(rows)
    with pytest.raises(JRMError, match="the same command goes on"):
        GenerativeJudge("m", base_url="http://127.0.0.1:9/v1", retries=0).score([edit(0)])


def test_an_image_that_cannot_be_read_is_one_samples_error():
    broken = Sample.edit(b"no image", "x", Image.new("RGB", (8, 8)))
    with serving(light_as_score) as server:
        error, score = judge(server).score([broken, edit(0)], on_error="return")
    assert "is not an image" in str(error) and score.mu["overall"] == 1.0


def test_large_images_are_scaled_down_to_what_is_wanted():
    large = Sample.edit(Image.new("RGB", (64, 32)), "x", Image.new("RGB", (64, 32)))
    with serving(by_content) as server:
        judge(server, max_pixels=512).score([large])
    assert {picture.shape[:2] for picture in pictures(server.requests[0])} == {(16, 32)}


def test_without_a_key_or_a_server_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(JRMError, match="set OPENAI_API_KEY, or name its server"):
        GenerativeJudge("m")
