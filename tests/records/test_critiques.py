import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion, RepairedCritique, UnparsedCritique

BOX = EditRegion(0, "cat", (10, 20, 30, 40))
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
corners = st.tuples(*[st.integers(0, 1000)] * 4).map(lambda c: (*sorted(c[:2]), *sorted(c[2:])))
boxes = corners.map(lambda c: (c[0], c[2], c[1], c[3]))


@st.composite
def critiques(draw):
    ids = draw(st.lists(st.integers(0, 20), unique=True, max_size=4))
    regions = tuple(EditRegion(k, draw(texts), draw(boxes)) for k in ids)
    # `<` is left out of free text so that no tag can arise in it by chance
    words = [draw(texts).replace("<", "(") for _ in range(len(ids) + 1)]
    tags = [f"<|bbox_{k}|>" for k in draw(st.permutations(ids))] + ["<|global|>"]
    return Critique(" ".join(f"{tag} {word}" for tag, word in zip(tags, words, strict=True)), regions)


@given(critiques())
def test_critiques_survive_json(critique):
    assert Critique.parse(critique.to_json()) == critique
    record = json.loads(critique.to_json())
    assert list(record) == (["edit_region", "reasoning"] if critique.edit_region else ["reasoning"])


def test_json_is_compact_and_keeps_its_order():
    critique = Critique("<|bbox_0|> blau & größer. <|global|> kept", [BOX])
    assert critique.to_json() == (
        '{"edit_region":[{"id":0,"label":"cat","bbox_2d":[10,20,30,40]}],'
        '"reasoning":"<|bbox_0|> blau & größer. <|global|> kept"}'
    )
    assert Critique("fine").to_json() == '{"reasoning":"fine"}'
    assert Critique.parse('{"edit_region": [], "reasoning": "fine"}') == Critique("fine")


@given(critiques())
def test_appendix_a_boxes_are_turned(critique):
    record = json.loads(critique.to_json())
    for region in record.get("edit_region", []):
        x1, y1, x2, y2 = region["bbox_2d"]
        region["bbox_2d"] = [y1, x1, y2, x2]  # ymin, xmin, ymax, xmax
    assert Critique.from_appendix_a(record) == critique


def region_json(**changes) -> str:
    region = {"id": 0, "label": "cat", "bbox_2d": [1, 2, 3, 4], **changes}
    return json.dumps({"edit_region": [region], "reasoning": "<|bbox_0|> x"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("the cat is blue", "Expecting value"),
        ('{"reasoning": "x"', "Expecting ',' delimiter"),
        ('{"reasoning": "x"} and more', "Extra data"),
        ('```json\n{"reasoning": "x"}\n```', "Expecting value"),
        ('["reasoning"]', r"must be an object with the keys \['reasoning'\], not a list"),
        ("{}", r"a critique must have the keys \['edit_region', 'reasoning'\], not \[\]"),
        ('{"reasoning": "x", "score": 4}', "not .*'score'"),
        ('{"reasoning": "x", "reasoning": "y"}', "a key occurs twice"),
        ('{"reasoning": 7}', "reasoning of a critique must be text, not a int"),
        ('{"reasoning": " "}', "reasoning of a critique is empty"),
        ('{"reasoning": "\\ud800"}', "half a surrogate pair"),
        ('{"reasoning": "x", "edit_region": null}', "edit_region of a critique must be a list, not nothing"),
        ('{"reasoning": "x", "edit_region": [7]}', "an edit region must be an object"),
        ('{"reasoning": "<|bbox_1|> x"}', r"refers to <\|bbox_1\|>, and no edit region has that id"),
        ('{"reasoning": "<|bbox_0|> x", "edit_region": []}', r"refers to <\|bbox_0\|>"),
        ('{"reasoning": "<|bbox_00|> x", "edit_region": [{"id":0,"label":"a","bbox_2d":[1,2,3,4]}]}', "bbox_00"),
        (region_json(id="0"), "id of an edit region must be a whole number, not '0'"),
        (region_json(id=True), "must be a whole number, not True"),
        (region_json(id=-1), "must be 0 or more, not -1"),
        (region_json(label=""), "label of edit region 0 is empty"),
        (region_json(score=1), "an edit region must have the keys"),
        (region_json(bbox_2d=[1, 2, 3]), "must be a list of 4 whole numbers"),
        (region_json(bbox_2d="1234"), "must be a list of 4 whole numbers"),
        (region_json(bbox_2d=[1, 2, 3, 4.5]), "a coordinate of edit region 0 must be a whole number, not 4.5"),
        (region_json(bbox_2d=[3, 2, 1, 4]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[1, 4, 3, 2]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[1, 2, 3, 1001]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[-1, 2, 3, 4]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        ("[" * 100_000, ""),  # deeper than any parser goes
        ("9" * 5000, ""),  # longer than Python reads
    ],
)
def test_broken_critiques_are_quoted(text, says):
    with pytest.raises(JRMError, match=f"^not a valid critique: .*{says}") as caught:
        Critique.parse(text)
    assert str(caught.value).endswith(f"it begins {text[:80]!r}.")


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json.dumps))
def test_any_text_parses_or_is_the_one_error(text):
    try:
        critique = Critique.parse(text)
    except JRMError as error:
        assert str(error).startswith("not a valid critique")
    else:
        assert Critique.parse(critique.to_json()) == critique


def test_critiques_check_themselves_however_they_are_made():
    with pytest.raises(JRMError, match=r"refers to <\|bbox_3\|>"):
        Critique("<|bbox_3|> x", [BOX])
    with pytest.raises(JRMError, match=r"different ids, not \[0, 0\]"):
        Critique("x", [BOX, BOX])
    with pytest.raises(JRMError, match="must hold EditRegions"):
        Critique("x", [{"id": 0}])
    with pytest.raises(JRMError, match="must be a list of regions, not a EditRegion"):
        Critique("x", BOX)
    with pytest.raises(JRMError, match=r"must be \[x1, y1, x2, y2\]"):
        EditRegion(0, "cat", (1, 2, 3))


# --- what a model wrote -----------------------------------------------------------------------------------------------


def test_a_critique_that_is_whole_is_read_as_it_is():
    critique = Critique.parse_leniently('{"reasoning":"fine"}')
    assert critique == Critique("fine") and type(critique) is Critique


def test_a_broken_critique_is_repaired_and_marked():
    text = '{"edit_region":[{"id":0,"label":"cat","bbox_2d":[1,2,3,4]}],"reasoning":"<|bbox_0|> is blue"'
    repaired = Critique.parse_leniently(text)
    assert isinstance(repaired, RepairedCritique) and repaired.text == text
    assert repaired.reasoning == "<|bbox_0|> is blue" and repaired.edit_region[0].bbox_2d == (1, 2, 3, 4)
    assert type(Critique.parse_leniently(text + "}")) is Critique


@pytest.mark.parametrize("text", ['{"reasoning":', "nothing of the kind", "", "[" * 100_000])
def test_what_cannot_be_repaired_stays_as_it_was_written(text):
    broken = Critique.parse_leniently(text)
    assert isinstance(broken, UnparsedCritique)
    assert broken.text == broken.plain_text() == text and "not a valid critique" in broken.error


# --- a reasoning and its tags -----------------------------------------------------------------------------------------


def test_plain_text_names_regions_by_their_labels():
    regions = [EditRegion(0, "red cat", (0, 0, 10, 10)), EditRegion(12, "sky <|global|>", (0, 0, 10, 10))]
    critique = Critique("<|bbox_12|> is blue <|bbox_0|> is gone <|global|> fine, <|bbox_x|>", regions)
    assert critique.plain_text() == "[sky <|global|>] is blue [red cat] is gone [whole image] fine, <|bbox_x|>"
    assert Critique("no tag at all").plain_text() == "no tag at all"


def test_a_reasoning_is_split_at_the_global_tag():
    assert Critique("<|bbox_0|> a <|global|> b ", [BOX]).split_at_global() == ("<|bbox_0|> a", "b")
    assert Critique("no tag at all").split_at_global() == ("no tag at all", "")
