"""`jrm convert`: from another project's files to scores, and back, as a user types it."""

import json

import pytest
from foreign_peers import make_peer
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def peer(backbone_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    peer = make_peer("editreward", "qwen2_5_vl", backbone_folder("qwen2_5_vl"), folder)
    peer.write(folder / "theirs")
    return peer, folder


def test_convert_score_and_convert_back(jrm, refused, peer, images):
    peer, folder = peer
    arguments = ("--base", peer.base, "--prompts", *peer.prompts)
    finished = jrm("convert", "--from", "auto", folder / "theirs", folder / "ours", *arguments, "--verify")
    assert finished.code == 0 and finished.err == ""
    assert "EditReward over qwen2_5_vl, scores instruction_following, visual_quality of edit samples." in finished.out
    assert "overall is the mean of the dimensions" in finished.out and "It writes no critiques." in finished.out
    assert "no difference above" in finished.out
    sample = ("--model", folder / "ours", "--source", images[0], "--instruction", "blue", "--edited", images[1])
    scores = jrm("score", *sample, "--json")
    assert scores.code == 0 and "instruction_following" in json.dumps(json.loads(scores.out))
    assert "writes no critiques" in refused("critique", *sample)
    assert jrm("convert", "--to", "editreward", folder / "ours", folder / "back").code == 0
    assert load_file(folder / "back" / "model.safetensors").keys() == peer.weights.keys()


def test_wrong_uses_are_one_sentence(refused, peer, tmp_path):
    peer, folder = peer
    theirs = folder / "theirs"
    assert "give its EditReward/dataset/prompts.py and EditReward/dataset/data_collator_qwen_edit.py" in refused(
        "convert", "--from", "editreward", theirs, tmp_path / "ours", "--base", peer.base
    )
    assert "is not there" in refused("convert", "--from", "auto", tmp_path / "nowhere", tmp_path / "ours")
    assert "belong to --from" in refused("convert", "--to", "hpsv3", theirs, tmp_path / "back", "--base", peer.base)
    assert "is there already and is no empty folder" in refused("convert", "--from", "auto", theirs, theirs)
    assert "HPSv3 was built on qwen2_vl, not on qwen2_5_vl" in refused(
        "convert", "--from", "hpsv3", theirs, tmp_path / "ours", "--base", peer.base
    )
