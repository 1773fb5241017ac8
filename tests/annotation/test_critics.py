"""What critics are asked, and what is read out of what they write."""

import json

import pytest
from critic_server import Critic, critique_of
from hypothesis import given
from hypothesis import strategies as st
from judge_server import pictures, serving, texts
from PIL import Image

from jrm_plugin.annotation.answers import Answers, CriticAnswer
from jrm_plugin.annotation.critics import BOXES, Question, ServedCritic, number_in, read_critique
from jrm_plugin.chat_client import ChatClient
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.samples import Sample

REGION = {"id": 0, "label": "door", "bbox_2d": [100, 200, 300, 400]}
GOOD = {"edit_region": [REGION], "reasoning": "<|bbox_0|> red as asked. <|global|> the rest is kept."}
FOLLOWING, QUALITY = "instruction_following", "visual_quality"


def edit(light: int = 200, instruction: str = "make it lighter", size=(20, 10)) -> Sample:
    return Sample.edit(Image.new("RGB", size, "black"), instruction, Image.new("RGB", size, (light,) * 3))


def critic(server, *, options=None, **more) -> ServedCritic:
    return ServedCritic(ChatClient("m", base_url=server.url, **(options or {})), **more)


def question(asked: ServedCritic, sample: Sample, dimension: str, score: float = 3) -> Question:
    return Question(asked.key(sample, dimension, score, SampleDigests()), sample, dimension, score)


def answers_to(asked: ServedCritic, path, *questions: Question) -> list[list[CriticAnswer]]:
    with Answers(path) as answers:
        list(asked.answer(questions, answers))
        return [answers.of(each.key) for each in questions]


def read(text: str) -> tuple[Critique, bool]:
    return read_critique(text, lambda corners: tuple(round(number_in(corner)) for corner in corners))


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_the_two_prompts_of_the_paper_are_asked_with_the_score_and_its_images(tmp_path):
    with serving(Critic()) as server:
        asked = critic(server)
        both = [question(asked, edit(), FOLLOWING, 2), question(asked, edit(), QUALITY, 3.5)]
        following, quality = (answers[-1].critique for answers in answers_to(asked, tmp_path / "a.sqlite", *both))
    first, second = sorted(server.requests, key=lambda request: -len(pictures(request)))
    assert "Instruction: make it lighter" in texts(first) and "Score: 2 of 4" in texts(first)
    assert "Score: 3.5 of 4" in texts(second) and "make it lighter" not in texts(second)
    assert (len(pictures(first)), len(pictures(second))) == (2, 1)  # appendix A.2 shows the edited image alone
    assert first["response_format"]["json_schema"]["schema"]["required"] == ["edit_region", "reasoning"]
    assert second["response_format"]["json_schema"]["schema"]["required"] == ["reasoning"]
    assert following.edit_region[0].label == "shape" and "worth 3.5" in quality.reasoning


def test_questions_that_show_the_same_have_one_key():
    with serving(Critic()) as server:
        asked, digests = critic(server), SampleDigests()

        def key(sample, dimension, score=3.0):
            return asked.key(sample, dimension, score, digests)

        assert key(edit(), FOLLOWING) == key(edit(), FOLLOWING)
        assert key(edit(), QUALITY) == key(edit(instruction="another"), QUALITY)  # which does not show it
        others = [key(edit(), FOLLOWING, 2), key(edit(instruction="x"), FOLLOWING), key(edit(9), FOLLOWING)]
        assert len({*others, key(edit(), FOLLOWING), key(edit(), QUALITY)}) == 5


def test_a_bad_answer_is_told_what_is_wrong_with_it(tmp_path):
    def reply(request):
        return json.dumps({**critique_of(request), "edit_region": []}) if len(request["messages"]) == 1 else good

    with serving(reply) as server:
        asked = critic(server)
        one = question(asked, edit(), FOLLOWING)
        good = json.dumps(GOOD)
        (answers,) = answers_to(asked, tmp_path / "a.sqlite", one)
    assert [answer.fault for answer in answers] == ["no valid critique", ""]
    said, again = server.requests[1]["messages"][1:]
    assert said["role"] == "assistant" and "<|bbox_0|>" in said["content"]
    assert "refers to <|bbox_0|>, and no edit region has that id" in again["content"][0]["text"]


def test_half_a_surrogate_pair_is_stored_and_sent_back_as_its_escape(tmp_path):
    odd = '{"choices": [{"message": {"role": "assistant", "content": "no \\ud800"}, "finish_reason": "stop"}]}'
    replies = iter([(200, {"Content-Type": "application/json"}, odd)])
    with serving(lambda request: next(replies, '{"reasoning": "<|global|> fine"}')) as server:
        asked = critic(server)
        ((first, second),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), QUALITY))
    assert first.text == r"no \ud800" and second.critique is not None
    assert server.requests[1]["messages"][1]["content"] == first.text


def test_attempts_are_counted_over_all_runs(tmp_path):
    with serving(lambda request: "no idea") as server:
        for attempts in (2, 2, 3):
            asked = critic(server, attempts=attempts)
            (answers,) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), QUALITY))
    assert len(server.requests) == len(answers) == 3


def test_an_answer_that_was_cut_off_is_no_critique_though_it_could_be_repaired(tmp_path):
    with serving(Critic(bad=1.0)) as server:
        server.reply._kind = lambda question, times: "cut off"
        asked = critic(server, attempts=1)
        ((answer,),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), QUALITY))
    assert answer.critique is None and answer.fault == "cut off" and answer.prompt_tokens is None


def test_a_request_that_is_refused_is_the_questions_own_failure(tmp_path):
    with serving(lambda request: (400, {}, "too many tokens")) as server:
        asked = critic(server, attempts=1)
        ((answer,),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), QUALITY))
    assert answer.fault == "refused by the server" and "too many tokens" in answer.problem


def test_a_question_that_the_server_never_answers_does_not_end_the_others(tmp_path):
    def reply(request):
        dark = pictures(request)[-1].mean() < 100
        return (500, {}, "boom") if dark else json.dumps(GOOD)

    with serving(reply) as server:
        asked = critic(server, options={"retries": 0, "concurrency": 1})
        questions = [question(asked, edit(light), FOLLOWING) for light in (10, 200, 20, 210)]
        first, second, third, fourth = answers_to(asked, tmp_path / "a.sqlite", *questions)
        assert first == third == [] and second[0].critique == fourth[0].critique
        gone = [question(asked, edit(light), FOLLOWING) for light in (30, 40, 50)]
        with pytest.raises(JRMError, match="openai:m answers with 500"):
            answers_to(asked, tmp_path / "a.sqlite", *gone)


def test_a_prompt_of_ones_own_is_for_any_task_and_dimension(tmp_path):
    with serving(lambda request: '{"reasoning": "<|global|> fine"}') as server:
        asked = critic(server, prompts={"mood": "Why {score} for mood? {{JSON}}"}, dimensions=["mood"])
        sample = Sample.generation("a sad cat", Image.new("RGB", (8, 8)))
        ((answer,),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, sample, "mood", 1))
    assert answer.critique == Critique("<|global|> fine") and "Why 1 for mood? {JSON}" in texts(server.requests[0])
    with serving(Critic()) as server:
        with pytest.raises(JRMError, match="about edits of an image, and it is a generation"):
            question(critic(server), sample, FOLLOWING)
        with pytest.raises(JRMError, match="its slots are {score} and {instruction}"):
            critic(server, prompts={"mood": "Why {nothing}?"})
        with pytest.raises(JRMError, match="for mood, and it is none of visual_quality"):
            critic(server, prompts={"mood": "Why?"}, dimensions=[QUALITY])
        with pytest.raises(JRMError, match="not for 'mood'"):
            critic(server, dimensions=["mood"])


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "box", "asks"),
    [
        ("xyxy", [100, 200, 300, 400], "left, top, right and bottom edge, each a whole number from 0 to 1000"),
        ("yxyx", [200, 100, 400, 300], "top, left, bottom and right edge, each a whole number from 0 to 1000"),
        ("pixels", [2, 2, 6, 4], "left, top, right and bottom edge, in pixels"),
    ],
)
def test_boxes_are_asked_for_and_converted_in_the_critics_own_form(boxes, box, asks, tmp_path):
    with serving(lambda request: json.dumps({**GOOD, "edit_region": [{**REGION, "bbox_2d": box}]})) as server:
        asked = critic(server, boxes=boxes)
        ((answer,),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), FOLLOWING))
    assert answer.critique.edit_region == (EditRegion(0, "door", (100, 200, 300, 400)),)
    assert asks in texts(server.requests[0]) and texts(server.requests[0]).count(BOXES[boxes].names) == 2


def test_boxes_in_pixels_are_those_of_the_image_as_it_was_shown(tmp_path):
    with serving(lambda request: json.dumps({**GOOD, "edit_region": [{**REGION, "bbox_2d": [1, 1, 5, 5]}]})) as server:
        asked = critic(server, boxes="pixels", options={"max_pixels": 50})
        ((answer,),) = answers_to(asked, tmp_path / "a.sqlite", question(asked, edit(), FOLLOWING))
    assert pictures(server.requests[0])[-1].shape[:2] == (5, 10)
    assert answer.critique.edit_region[0].bbox_2d == (100, 200, 500, 1000)


# --- what is read out of an answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        (json.dumps(GOOD), False),
        (f"```json\n{json.dumps(GOOD)}\n```", False),
        (f"<think>score: {{1}}?</think>{json.dumps(GOOD)}", False),
        (json.dumps({**GOOD, "score": 3}), False),
        (json.dumps({**GOOD, "edit_region": [{**REGION, "id": "0", "bbox_2d": ["100", 200.4, 300.0, 400]}]}), False),
        (f"Here it is: {json.dumps(GOOD)} I hope it helps.", True),
        (json.dumps(GOOD)[:-1], True),
        (json.dumps(GOOD).replace('"', "'"), True),
    ],
)
def test_a_critique_is_read_out_of_what_models_write(text, repaired):
    critique, was_repaired = read(text)
    assert critique == Critique(GOOD["reasoning"], (EditRegion(0, "door", (100, 200, 300, 400)),))
    assert was_repaired == repaired


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"edit_region": []}, "refers to <|bbox_0|>"),
        ({"edit_region": [REGION, {**REGION, "id": 1}]}, "no <|bbox_1|>"),
        ({"edit_region": [REGION, REGION]}, "different ids"),
        ({"reasoning": "<|bbox_0|> red as asked."}, "no <|global|>"),
        ({"reasoning": " "}, "reasoning"),
        ({"reasoning": ["a"]}, "reasoning"),
        ({"reasoning": "<|bbox_0|> <|global|> \ud800"}, "half a surrogate pair"),
        ({"edit_region": [{**REGION, "bbox_2d": [100, 200, 1300, 400]}]}, "0..1000"),
        ({"edit_region": [{**REGION, "bbox_2d": [300, 200, 100, 400]}]}, "x1 <= x2"),
        ({"edit_region": [{**REGION, "bbox_2d": [100, 200, 100, 400]}]}, "no area"),
        ({"edit_region": [{**REGION, "bbox_2d": [100, 200, 300]}]}, "4 numbers"),
        ({"edit_region": [{**REGION, "bbox_2d": "100, 200, 300, 400"}]}, "4 numbers"),
        ({"edit_region": [{**REGION, "bbox_2d": [100, 200, None, 400]}]}, "no number"),
        ({"edit_region": [{**REGION, "id": True}]}, "no number"),
        ({"edit_region": [{"id": 0, "label": "door"}]}, "id, label and bbox_2d"),
        ({"edit_region": "the door"}, "must be a list"),
        (
            {"edit_region": [{**REGION, "id": 10}], "reasoning": "<|bbox_10|> red. <|global|> kept."},
            "ids of regions go from 0 to 9",
        ),
    ],
)
def test_what_is_no_valid_critique_is_said(change, problem):
    with pytest.raises(JRMError) as caught:
        read(json.dumps({**GOOD, **change}))
    assert problem in str(caught.value)


@pytest.mark.parametrize("end", [-3, -9, -20])
def test_an_answer_that_ends_in_the_middle_of_its_reasoning_is_not_repaired(end):
    with pytest.raises(JRMError, match="ends in the middle of its reasoning"):
        read(json.dumps(GOOD)[:end])


@pytest.mark.parametrize(
    "text",
    ["", "<think>hm", "It looks fine.", "[1, 2]", '{"verdict": 3}', "null", pytest.param("{" * 2000, id="deep")],
)
def test_an_answer_without_an_object_holds_no_critique(text):
    with pytest.raises(JRMError):
        read(text)


@given(st.text() | st.text().map(lambda text: json.dumps(GOOD)[: len(text)] + text))
def test_whatever_is_written_is_a_critique_or_none(text):
    try:
        critique, _ = read(text)
    except JRMError:
        return
    assert Critique.parse(critique.to_json()) == critique


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_answers_are_read_back_and_summed_up(tmp_path):
    region = EditRegion(0, "Tür ⛩", (1, 2, 3, 4))
    bad = CriticAnswer("hm?", None, False, "no JSON object", "it holds none", 10, None, 1.0)
    good = CriticAnswer("x", Critique("<|bbox_0|> <|global|>", (region,)), True, "", "", 20, 5, 3.0)
    with Answers(tmp_path / "a.sqlite") as answers:
        for answer in (bad, good):
            answers.add("key", answer)
        answers.count("status 429")
    with Answers(tmp_path / "a.sqlite") as answers:
        answers.count("status 429")
        assert answers.of("key")[1] == good and answers.of("other") == []
        summary = answers.summary((1.0, 2.0))
    assert summary["answers"] == 2 and summary["seconds_median"] == 2.0
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (30, 5)
    assert summary["answers_without_token_counts"] == 1 and summary["cost"] == pytest.approx(40e-6)
    assert summary["faults_of_answers"] == {"no JSON object": 1}
    assert summary["unanswered_requests"] == {"status 429": 2}


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "a.sqlite").write_text("no database, but long enough to be looked at " * 20)
    with pytest.raises(JRMError, match="a.sqlite cannot be used"):
        Answers(tmp_path / "a.sqlite")
