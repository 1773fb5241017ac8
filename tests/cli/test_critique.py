"""`jrm critique`: critiques as text and as boxes on the image."""

import json

from PIL import Image, ImageColor

from jrm_plugin.evaluation.drawing import BOXES_SIDE, REGION_COLOURS


def test_critique_gives_the_raw_text_of_what_is_no_critique(jrm, sample):
    finished = jrm("critique", *sample[:-1], "--dimension", "visual_quality", "--json")
    assert (finished.code, finished.err) == (0, "")
    (row,) = json.loads(finished.out)
    assert set(row["critiques"]) == {"visual_quality"}
    assert set(row["critiques"]["visual_quality"]) == {"unparsed", "error"}  # random weights write no JSON


def test_critique_draws_its_boxes(jrm, images, sample, tmp_path):
    drawn, plain = tmp_path / "drawn.png", tmp_path / "plain.png"
    arguments = ("--source", images[0], "--instruction", "remove the red circle", "--edited", images[1])
    finished = jrm("critique", *arguments, "--model", "jrm-tiny", "--draw", drawn, "--json")
    assert (finished.code, finished.err) == (0, "")
    critiques = json.loads(finished.out)[0]["critiques"]
    assert critiques["instruction_following"]["edit_region"]
    finished = jrm("critique", *sample[:-1], "--draw", plain)  # random weights name no region
    assert finished.code == 0 and "has no boxes" in finished.err
    with Image.open(drawn) as with_boxes, Image.open(plain) as without:
        assert with_boxes.size == without.size == (BOXES_SIDE, BOXES_SIDE)
        box = ImageColor.getrgb(REGION_COLOURS[0])
        assert box in {colour for _, colour in with_boxes.getcolors(BOXES_SIDE**2)}
        assert box not in {colour for _, colour in without.getcolors(BOXES_SIDE**2)}


def test_unknown_dimension(refused, sample):
    message = refused("critique", *sample, "--dimension", "beauty")
    assert "'beauty'" in message and "visual_quality" in message


def test_an_image_file_that_cannot_be_drawn(refused, sample, tmp_path):
    assert "drawn" in refused("critique", *sample[:-1], "--draw", tmp_path / "drawn")
    assert "--draw writes one image" in refused("critique", *sample, "--draw", tmp_path / "drawn.png")
