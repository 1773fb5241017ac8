"""The built-in model, as shipped: what the README says of it."""

import pytest

from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.critiques import evaluate_critiques
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.records.samples import Sample
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

SEED = 20_261_121  # no data of this seed was trained on


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    SHAPE_EDITS.write(folder, train=0, heldout=1000, language=0, seed=SEED, progress=False)
    return read_edit_reward(folder / "heldout.json", progress=False).examples


def test_it_orders_fresh_held_out_pairs(tiny, heldout):
    accuracy = summarize(evaluate_pairs(tiny, heldout))["accuracy"]
    assert accuracy["overall"]["value"] >= 0.90
    assert accuracy["visual_quality"]["value"] >= 0.95
    assert accuracy["instruction_following"]["value"] >= 0.80


def test_its_critiques_parse(tiny, heldout):
    assert evaluate_critiques(tiny, heldout, 50)["parsed"]["value"] >= 0.95


def test_it_has_the_default_layout(tiny):
    assert (tiny.processor.order, tiny.processor.sequences) == ("images_first", "joint")


@pytest.mark.parametrize(
    "instruction", ["把红色圆圈变成蓝色", "rends le cercle bleu, s'il te plaît 🙂", "\x00\x01", "z" * 500]
)
def test_it_reads_any_instruction(tiny, heldout, instruction):
    pair = heldout[0]
    sample = Sample.edit(list(pair.chosen.prompt_images), instruction, pair.chosen.response_images[0])
    assert abs(tiny.score([sample])[0].mu["overall"]) < float("inf")
