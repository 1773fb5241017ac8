"""What the fields of a record may be called, and what is refused because it may be one of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.names import ACCEPTED, refuse_hidden_source, refuse_near_names, value_of

EVERY = [(field, name) for field, names in ACCEPTED.items() for name in names]


@pytest.mark.parametrize(("field", "name"), EVERY)
def test_a_field_is_read_under_each_of_its_names(field, name):
    assert value_of({name: "x", "id": 7}, field) == "x"
    assert value_of({"id": 7}, field) is None
    refuse_near_names({name: "x", "id": 7, "seed": 1})


def test_two_names_for_one_thing_are_refused():
    with pytest.raises(JRMError, match="it has both 'source' and 'path_src', which mean the same; leave one out"):
        value_of({"path_src": "a.png", "source": "a.png"}, "source")


@pytest.mark.parametrize("name", ["Source", "source-image", "sourceimage", "SOURCE_IMAGES", "souce", "instructions"])
def test_a_near_name_is_refused_and_told_what_it_may_mean(name):
    with pytest.raises(JRMError, match=f"it has '{name}', which means nothing; write '.*', or rename it"):
        refuse_near_names([name])


@given(st.sampled_from(EVERY), st.integers(0, 30), st.sampled_from("abcxyz_-S"))
def test_a_name_with_one_letter_more_is_never_carried_along(field_and_name, place, letter):
    _, name = field_and_name
    changed = name[:place] + letter + name[place:]
    accepted = {other for _, other in EVERY}
    if changed not in accepted:
        with pytest.raises(JRMError, match="which means nothing"):
            refuse_near_names([changed])


def test_names_that_differ_in_a_number_are_two_names():
    refuse_near_names(["model1_score", "model3_score"], known=["model2_score"])


@pytest.mark.parametrize("name", ["source_1", "source2", "edited_2"])
def test_a_second_source_is_no_key_of_its_own(name):
    with pytest.raises(JRMError, match="which means nothing"):
        refuse_near_names(["source", "edited", name])


@pytest.mark.parametrize("value", ["a.png", ["a.JPG", "b.webp"], "data:image/png;base64,AA"])
def test_an_image_under_an_unknown_name_may_be_the_source(value):
    with pytest.raises(JRMError, match="it has no source, and an image in 'input'; call that one 'source'"):
        refuse_hidden_source({"edited": "b.png", "input": value})
    refuse_hidden_source({"edited": "b.png", "note": "a png"})
