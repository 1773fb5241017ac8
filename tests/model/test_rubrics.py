import json
import re

import pytest

from jrm_plugin.errors import JRMError
from jrm_plugin.model.rubrics import data_prompt, default_rubrics
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.samples import CONSISTENCY, DIMENSIONS, KNOWN_DIMENSIONS, TASKS

EACH = [(task, dimension) for task in TASKS for dimension in DIMENSIONS] + [("edit", CONSISTENCY)]
SHOWS_PLACES = ("instruction_following", CONSISTENCY)


@pytest.mark.parametrize("kind", ["full", "short"])
def test_every_task_and_dimension_has_a_rubric_of_its_own(kind):
    rubrics = default_rubrics(kind)
    assert {task: tuple(by_dimension) for task, by_dimension in rubrics.items()} == dict.fromkeys(TASKS, DIMENSIONS)
    texts = [rubric_of(task, dimension, kind) for task, dimension in EACH]
    assert len(set(texts)) == len(texts) and all(text == text.strip() != "" for text in texts)


def rubric_of(task: str, dimension: str, kind: str = "full") -> str:
    return default_rubrics(kind, [dimension])[task][dimension]


def test_consistency_is_of_edits_alone():
    with_it = default_rubrics("short", KNOWN_DIMENSIONS)
    assert [*with_it] == ["edit"] and tuple(with_it["edit"]) == KNOWN_DIMENSIONS
    assert with_it["edit"].items() >= default_rubrics("short")["edit"].items()


@pytest.mark.parametrize(("task", "dimension"), EACH)
def test_full_rubrics_say_scale_criteria_tags_and_form(task, dimension):
    rubric = rubric_of(task, dimension)
    assert re.findall(r"^- ([1-4]), very|^- ([1-4]), rather", rubric, flags=re.M) == [
        ("4", ""),
        ("", "3"),
        ("", "2"),
        ("1", ""),
    ]
    criteria = rubric.split("## What to look at")[1].split("##")[0]
    assert criteria.count("\n- ") == 3
    for needed in ("<|bbox_0|>", "<|bbox_1|>", "<|global|>", '"edit_region"', '"bbox_2d": [x1, y1, x2, y2]', "1000"):
        assert needed in rubric


@pytest.mark.parametrize(("task", "dimension"), EACH)
def test_rubrics_leave_the_instruction_to_the_prompt(task, dimension):
    assert not re.search(r"\{\w*\}", rubric_of(task, dimension))


@pytest.mark.parametrize(("task", "dimension"), EACH)
def test_short_rubrics_are_a_few_plain_words(task, dimension):
    assert re.fullmatch(r"[a-z]+( [a-z]+){0,5}", rubric_of(task, dimension, "short"))


def example_in(text: str) -> Critique:
    """The JSON example of a text, its places filled in."""
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    return Critique.parse(line.replace("x1, y1, x2, y2", "1, 2, 3, 4"))


@pytest.mark.parametrize(("task", "dimension"), EACH)
def test_the_form_a_rubric_asks_for_is_the_form_that_is_read(task, dimension):
    regions = example_in(rubric_of(task, dimension)).edit_region
    assert len(regions) == (1 if dimension in SHOWS_PLACES else 0)


@pytest.mark.parametrize("dimension", KNOWN_DIMENSIONS)
def test_data_prompts_take_any_instruction_and_ask_for_what_is_read(dimension):
    instruction = 'write "{score}" {in} {{braces}}'
    filled = data_prompt(dimension).format(instruction=instruction, score=3)
    assert "3 of 4" in filled and "deserves a 3" in filled
    assert (instruction in filled) == (dimension in SHOWS_PLACES)  # appendix A.2 shows no instruction
    assert "{{" not in filled.replace(instruction, "")
    example = example_in(filled.replace(instruction, ""))
    assert "<|global|>" in example.reasoning
    assert len(example.edit_region) == (2 if dimension in SHOWS_PLACES else 0)
    assert all(re.search(rf"^- {score}: ", filled, flags=re.M) for score in (1, 2, 3, 4))


def test_unknown_names():
    with pytest.raises(JRMError, match="full, short, not 'medium'"):
        default_rubrics("medium")
    with pytest.raises(JRMError, match="not for 'mood'"):
        data_prompt("mood")
    with pytest.raises(JRMError, match="there are rubrics for .*, not for 'mood'; give rubrics of your own"):
        default_rubrics("full", ["mood"])


def test_rubrics_are_plain_data():
    assert json.loads(json.dumps(default_rubrics())) == default_rubrics()
    default_rubrics()["edit"].clear()
    assert default_rubrics()["edit"]
