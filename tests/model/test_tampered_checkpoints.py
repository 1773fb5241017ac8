"""Checkpoints are somebody else's files: whatever they say, they load or are refused in a sentence, and run no code."""

import contextlib
import json
from pathlib import Path
from shutil import copytree

import checkpoints
import pytest
from PIL import Image

from jrm_plugin import RewardScorer, Sample
from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import built_in_folder, load_config


@pytest.fixture
def folder(tmp_path) -> Path:
    return copytree(built_in_folder("jrm-tiny"), tmp_path / "checkpoint")


def change(folder: Path, file: str, place: str, value) -> None:
    content = at = json.loads((folder / file).read_text())
    *steps, last = place.split(".")
    for step in steps:
        at = at[step]
    at[last] = value
    (folder / file).write_text(json.dumps(content))


def test_whatever_is_changed_it_scores_or_is_refused_in_a_sentence(tmp_path):
    ended, faults = checkpoints.run(tmp_path, seed=0, count=40, report=None)
    assert faults == []
    assert ended["refused"] > ended["scored"] > 0


TEXT = "backbone_config.text_config"


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        (
            "config.json",
            f"{TEXT}.num_hidden_layers",
            10**6,
            "num_hidden_layers must be a whole number between 1 and 512",
        ),
        ("config.json", f"{TEXT}.hidden_act", "loud", "hidden_act must be the name of an activation"),
        ("config.json", f"{TEXT}.dtype", "float7", "dtype must be float32"),
        ("config.json", f"{TEXT}.return_dict", False, "return_dict must not be False"),
        ("config.json", f"{TEXT}.to_dict", 5, "to_dict is not a key of a config"),
        ("config.json", "backbone_config.num_labels", 10**9, "num_labels must be a whole number between 0 and 1024"),
        ("config.json", "backbone_config", None, "backbone_config must hold keys and values, not None"),
        ("config.json", "reward_head_widths", [0.5], "config.json: reward_head_widths must be a list of whole numbers"),
        ("config.json", "dimensions", 5, "config.json: dimensions must be a list of distinct names, not 5"),
        ("config.json", "quantization_config", {"quant_method": "gptq"}, "quantization_config must not be"),
        ("jrm_processor.json", "order", [], r"jrm_processor.json: unknown layout order=\[\]"),
        ("jrm_processor.json", "rubrics", {"edit": 5}, "jrm_processor.json: the rubrics for task 'edit' must be texts"),
        ("jrm_processor.json", "rubrics", {"draw": {}}, "unknown task 'draw'"),
        ("jrm_processor.json", "image_token", "nope", "image_token must be a token of the tokenizer, not 'nope'"),
        ("preprocessor_config.json", "image_std", [1, 0, 1], "image_std must be three numbers"),
        ("preprocessor_config.json", "merge_size", 1, "the model's merge_size is 2 and its processor's is 1"),
        ("preprocessor_config.json", "do_resize", False, "do_resize must be true"),
        (
            "preprocessor_config.json",
            "size",
            {"shortest_edge": 10**8, "longest_edge": 10**8},
            "the largest size in pix",
        ),
        ("preprocessor_config.json", "size.shortest_edge", 10**8, "the smallest size in pixels must be"),
        ("tokenizer_config.json", "tokenizer_class", "evil.Evil", "tokenizer_class must be one of"),
        ("tokenizer_config.json", "vocab_file", "/etc/passwd", "vocab_file names a file of its own"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(folder, file, place, value, message):
    change(folder, file, place, value)
    with pytest.raises(JRMError, match=message):
        RewardScorer.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("key", ["image_token", "dimensions", "order", "sequences", "rubrics"])
def test_no_default_stands_in_for_what_the_checkpoint_was_trained_with(folder, key):
    path = folder / "jrm_processor.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(
        JRMError, match="jrm_processor.json must hold image_token, dimensions, order, sequences, rubrics"
    ):
        RewardScorer.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 3_000_000), ("intermediate_size", 1_000_000)])
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_asked_for(folder, key, value):
    change(folder, "config.json", f"{TEXT}.{key}", value)
    before = checkpoints.peak_memory()
    with pytest.raises(JRMError, match=f"mismatched: .* not .*{value}"):
        RewardScorer.from_pretrained(folder, device="cpu")
    assert checkpoints.peak_memory() - before < checkpoints.GIB // 4


# --- nobody's code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mark(folder) -> Path:
    (folder / "evil.py").write_text(f"open({str(folder / 'mark')!r}, 'w')\nclass Evil: pass\n")
    return folder / "mark"


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("config.json", "auto_map"),
        ("config.json", "backbone_config.auto_map"),
        ("tokenizer_config.json", "auto_map"),
        ("preprocessor_config.json", "auto_map"),
    ],
)
def test_python_that_a_file_names_is_neither_run_nor_asked_about(folder, mark, monkeypatch, file, place):
    change(folder, file, place, checkpoints.REMOTE)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks a question"))
    with contextlib.suppress(JRMError):
        RewardScorer.from_pretrained(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("place", ["", "backbone_config.", f"{TEXT}."])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["kernels-community/flash-attn", "flash_attention_2"])
def test_a_kernel_is_not_fetched_because_a_config_names_it(folder, place, key, value):
    change(folder, "config.json", place + key, value)
    with pytest.raises(JRMError, match=f"config.json.*{key} must not be '{value}'"):
        load_config(folder)


def test_pickled_weights_are_not_read(folder, mark):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(checkpoints.pickled(mark))
    with pytest.raises(JRMError, match="no file named model.safetensors"):
        RewardScorer.from_pretrained(folder, device="cpu")
    assert not mark.exists()


def test_a_sequence_beyond_the_models_positions_is_that_samples_error(folder):
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    picture = Image.new("RGB", (48, 48))
    good, long = Sample.edit(picture, "make it blue", picture), Sample.edit(picture, "blue " * 9000, picture)
    (score,) = scorer.score([good])
    scored = scorer.score([good, long], on_error="return")
    assert scored[0].mu == pytest.approx(score.mu, abs=1e-5)
    assert "tokens and the model positions for 8192" in str(scored[1])
    with pytest.raises(JRMError, match="sample 1 cannot be scored: its sequence has"):
        scorer.score([good, long])
