"""`JointRewardTrainer` on a tiny random model: what is learned, what is logged, and what is written."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardTrainer

from jrm_plugin.data.editreward import read_edit_reward, read_language
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import JointRewardConfig, JointRewardTrainer, to_dataset
from jrm_plugin.integrations.trl.joint_reward_trainer import last_whole_checkpoint
from jrm_plugin.model.lora import lora_config
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

DIMENSIONS = ("instruction_following", "visual_quality", "overall")
MAX_PIXELS = 48 * 48


@pytest.fixture(scope="session")
def edits(tmp_path_factory) -> Path:
    return SHAPE_EDITS.write(tmp_path_factory.mktemp("edits"), train=16, heldout=7, language=8, progress=False)


@pytest.fixture(scope="session")
def pairs(edits) -> list[PreferencePair]:
    return read_edit_reward(edits / "train.json", progress=False).examples


@pytest.fixture(scope="session")
def heldout(edits) -> list[PreferencePair]:
    return read_edit_reward(edits / "heldout.json", progress=False).examples


@pytest.fixture(scope="session")
def texts(edits) -> list[CritiqueExample]:
    return read_language(edits / "language.jsonl", progress=False).examples


@pytest.fixture
def make_trainer(make_scorer, tmp_path):
    """`make_trainer(examples, **config)`: a trainer of a new model; `layout` and `trainer` go to model and trainer."""

    def make(examples, *, layout=None, trainer=None, **options) -> JointRewardTrainer:
        layout = {"config": {"reward_head_widths": [32]}} | (layout or {})
        scorer = make_scorer(**layout)
        scorer.model.train()
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "max_pixels": MAX_PIXELS,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "use_cpu": True,
        }
        config = JointRewardConfig(**(defaults | options))
        return JointRewardTrainer(scorer.model, scorer.processor, config, train_dataset=examples, **(trainer or {}))

    return make


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def logged(trainer: JointRewardTrainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# --- what is learned --------------------------------------------------------------------------------------------------


def test_both_losses_fall_and_every_weight_moves(make_trainer, pairs):
    # Two pairs, which a random model can learn by heart.
    trainer = make_trainer(pairs[:2], max_steps=20, per_device_train_batch_size=2, learning_rate=3e-3)
    before = weights_of(trainer.model)
    trainer.train()
    assert moved(before, weights_of(trainer.model)) == before.keys()
    log = logged(trainer)
    for name in ("critique_loss", "rank_loss"):
        assert log[-1][name] < 0.5 * log[0][name], name
    assert log[-1]["accuracy/overall"] == 1
    for entry in log:  # the loss is (1 - alpha) of the one and alpha of the other
        assert entry["loss"] == pytest.approx(0.3 * entry["rank_loss"] + 0.7 * entry["critique_loss"], abs=1e-4)


def test_each_layout_trains(make_trainer, pairs, order, sequences):
    trainer = make_trainer(pairs, max_steps=1, layout={"order": order, "sequences": sequences})
    trainer.train()
    assert np.isfinite(logged(trainer)[0]["loss"])
    assert {f"sigma/{name}" for name in DIMENSIONS} <= logged(trainer)[0].keys()


def test_per_dimension_heads_are_ranked_by_their_own_sequence(make_trainer, pairs):
    """Labels of one dimension leave the other dimension's head as it is."""
    one = [replace(p, labels={"visual_quality": 1}, chosen_scores=None, rejected_scores=None) for p in pairs]
    trainer = make_trainer(one, alpha=0, weight_decay=0.0, layout={"sequences": "per_dimension"})
    before = weights_of(trainer.model.reward_head)
    trainer.train()
    after = weights_of(trainer.model.reward_head)
    assert moved(before, after) == {name for name in before if name.startswith("heads.1.")}


def test_gradient_checkpointing_changes_nothing(make_trainer, pairs, tmp_path):
    runs = []
    for checkpointing in (False, True):
        trainer = make_trainer(pairs, gradient_checkpointing=checkpointing)
        assert trainer.args.gradient_checkpointing_kwargs == {"use_reentrant": False}
        trainer.train()
        runs.append(weights_of(trainer.model))
    for name, tensor in runs[0].items():
        assert torch.allclose(tensor, runs[1][name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("count", [4, 3])
def test_accumulated_gradients_equal_one_batch(make_trainer, pairs, count):
    """Both losses are means over the whole update, with critiques of uneven lengths and a last batch that is short."""
    long = Critique("the red circle is blue as asked and " * 12)
    uneven = [replace(pair, chosen_critiques={"visual_quality": long} if k < 2 else {}) for k, pair in enumerate(pairs)]
    no_dropout = {"config": {"reward_head_widths": [32], "reward_head_dropout": 0.0}}
    weights = {}
    for steps in (1, 2):
        trainer = make_trainer(
            uneven[:count],
            layout=no_dropout,
            per_device_train_batch_size=4 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,  # clipping would hide a wrong scale
            weight_decay=0.0,
        )
        before = weights_of(trainer.model)
        trainer.train()
        weights[steps] = weights_of(trainer.model)
    change = {name: (weights[1][name] - before[name]).abs().max().item() for name in before}
    assert max(change.values()) > 1e-2
    for name in before:
        assert torch.allclose(weights[1][name], weights[2][name], rtol=0, atol=2e-6), name


@pytest.mark.parametrize("layout", [{"order": "rubric_first"}, {"sequences": "per_dimension"}])
def test_sharing_prefixes_changes_nothing(make_trainer, pairs, heldout, layout):
    """Nor does it with accumulation and checkpointing, or with the fused cross-entropy."""
    layout |= {"config": {"reward_head_widths": [32], "reward_head_dropout": 0.0}}
    weights, metrics, encoded = [], [], []
    for shared in (False, True):
        trainer = make_trainer(
            pairs[:4],
            layout=layout,
            share_prefixes=shared,
            fused_cross_entropy=shared,
            gradient_checkpointing=shared,
            per_device_train_batch_size=2 if shared else 4,
            gradient_accumulation_steps=2 if shared else 1,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            weight_decay=0.0,
        )
        patches = []
        trainer.model.backbone.model.visual.register_forward_hook(
            lambda module, x, y, seen=patches: seen.append(len(x[0]))
        )
        before = weights_of(trainer.model)
        trainer.train()
        weights.append(weights_of(trainer.model))
        encoded.append(sum(patches))
        metrics.append({k: v for k, v in trainer.evaluate(heldout).items() if "runtime" not in k and "second" not in k})
    assert encoded[1] < encoded[0]
    assert max((weights[0][name] - before[name]).abs().max() for name in before) > 1e-2
    for name in before:
        assert torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=2e-6), name
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)


def test_alpha_one_learns_texts_and_leaves_the_head_to_weight_decay(make_trainer, texts):
    trainer = make_trainer(texts, alpha=1.0, learning_rate=1e-2, weight_decay=0.1)
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    for name in before:
        if not name.startswith("reward_head"):
            assert not torch.equal(before[name], after[name]), name
        else:
            decay = 1.0 if name.endswith("bias") else (1 - 1e-2 * 0.1) ** 2
            assert torch.allclose(after[name], before[name] * decay, rtol=1e-6, atol=0), name
    assert logged(trainer)[-1]["critique_loss"] == pytest.approx(logged(trainer)[-1]["loss"], abs=1e-4)
    assert "rank_loss" not in logged(trainer)[-1]


def test_alpha_zero_does_not_depend_on_critiques(make_trainer, pairs):
    bare = [replace(pair, chosen_critiques={}, rejected_critiques={}) for pair in pairs]
    weights = []
    for examples in (pairs, bare):
        trainer = make_trainer(examples, alpha=0.0)
        trainer.train()
        weights.append(weights_of(trainer.model))
        assert "critique_loss" not in logged(trainer)[0]
        assert logged(trainer)[0]["loss"] == pytest.approx(logged(trainer)[0]["rank_loss"], abs=1e-4)
    assert moved(*weights) == set()


def test_pairs_without_critiques_train_the_ranking_alone(make_trainer, pairs):
    bare = [replace(pair, chosen_critiques={}, rejected_critiques={}) for pair in pairs]
    trainer = make_trainer(bare, alpha=0.7)
    trainer.train()
    assert logged(trainer)[0]["loss"] == pytest.approx(0.3 * logged(trainer)[0]["rank_loss"], abs=1e-4)


def test_overall_labels_alone_train_every_head(make_trainer, pairs):
    overall = [replace(pair, labels={"overall": 1}, chosen_scores=None, rejected_scores=None) for pair in pairs]
    trainer = make_trainer(overall, alpha=0.0)
    before = weights_of(trainer.model.reward_head)
    trainer.train()
    assert moved(before, weights_of(trainer.model.reward_head)) == before.keys()
    assert "accuracy/overall" in logged(trainer)[0] and "accuracy/visual_quality" not in logged(trainer)[0]


def test_dropout_of_the_head_is_on_in_training_and_off_in_evaluation(make_trainer, pairs, heldout):
    trainer = make_trainer(pairs, max_steps=1, trainer={"eval_dataset": heldout})
    (dropout,) = {m for m in trainer.model.reward_head.heads[0] if isinstance(m, nn.Dropout)}
    assert dropout.p == 0.05
    modes = []
    dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train()
    assert modes == [True]
    first, second = trainer.evaluate(), trainer.evaluate()
    assert not any(modes[1:])
    timing = ("_runtime", "_per_second")
    assert {k: v for k, v in first.items() if not k.endswith(timing)} == {
        k: v for k, v in second.items() if not k.endswith(timing)
    }


def test_muon_moves_matrices_by_its_own_rate(make_trainer, pairs):
    trainer = make_trainer(pairs, max_steps=1, learning_rate=0.0, muon_learning_rate=0.01)
    before = weights_of(trainer.model)
    trainer.train()
    changed = moved(before, weights_of(trainer.model))
    assert changed and all(before[name].ndim == 2 for name in changed)
    assert not any("reward_head" in name or "embed" in name for name in changed)


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_evaluation_of_sets_by_name_equals_the_scorer(make_trainer, pairs, heldout, tmp_path):
    tied = [replace(pair, labels={**pair.labels, "overall": 0}) for pair in heldout[:2]]
    sets = {"heldout": heldout, "tied": tied}
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3, "max_steps": 1}
    trainer = make_trainer(pairs, trainer={"eval_dataset": sets}, **options)
    trainer.train()
    found = trainer.evaluate()
    kinds = ("accuracy", "sigma", "brier", "calibration_error")
    expected = {f"eval_heldout_{kind}/{name}" for kind in kinds for name in DIMENSIONS}
    expected |= {
        "eval_heldout_rank_loss",
        "eval_heldout_critique_loss",
        "eval_tied_rank_loss",
        "eval_tied_sigma/overall",
    }
    assert expected <= found.keys()
    assert "eval_tied_accuracy/overall" not in found  # there is nothing to get right
    during = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    for name in expected:
        assert during[name] == pytest.approx(found[name], abs=1e-6)

    trainer.save_model(tmp_path / "saved")
    scorer = RewardScorer.from_pretrained(tmp_path / "saved", device="cpu")
    chosen, rejected = (scorer.score([getattr(pair, side) for pair in heldout]) for side in ("chosen", "rejected"))
    for name in DIMENSIONS:
        decided = [k for k, pair in enumerate(heldout) if pair.labels[name]]
        right = [(chosen[k].mu[name] - rejected[k].mu[name]) * heldout[k].labels[name] > 0 for k in decided]
        assert found[f"eval_heldout_accuracy/{name}"] == pytest.approx(np.mean(right))
        sigma = np.mean([score.sigma[name] for score in (*chosen, *rejected)])
        assert found[f"eval_heldout_sigma/{name}"] == pytest.approx(sigma, abs=1e-5)


def test_training_logs_every_metric_over_all_pairs_since_the_last_log(make_trainer, pairs):
    seen = []

    class Listener(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            seen.append(len(trainer._outcomes["train"]["groups_NGCK"][-1]))

        on_step_end = on_substep_end

    # Five batches of three pairs and one of one: the last update of the epoch takes the last two.
    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 3}
    trainer = make_trainer(pairs, trainer={"callbacks": [Listener()]}, **options)
    trainer.train()
    (entry,) = logged(trainer)
    for kind in ("accuracy", "sigma", "brier", "calibration_error"):
        assert {f"{kind}/{name}" for name in DIMENSIONS} <= entry.keys()
    assert seen == [3, 3, 3, 3, 3, 1]


def test_examples_as_json_text_are_the_same_examples(make_trainer, pairs):
    losses = []
    for given in (pairs, to_dataset(pairs), to_dataset(pairs).to_iterable_dataset()):
        trainer = make_trainer(given, train_sampling_strategy="sequential")
        trainer.train()
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert losses == [losses[0]] * 3


def test_evaluation_takes_new_examples(make_trainer, pairs, heldout):
    trainer = make_trainer(pairs)
    assert "eval_accuracy/overall" in trainer.evaluate(heldout)
    assert "eval_other_accuracy/overall" in trainer.evaluate({"other": heldout})


# --- what is refused --------------------------------------------------------------------------------------------------


def test_pair_that_is_too_long_is_named_before_training(make_trainer, pairs, heldout):
    long = replace(heldout[3], rejected_critiques={"visual_quality": Critique("noise left of the square " * 100)})
    with pytest.raises(JRMError, match="1 of 7 examples of the test set .* max_length=512 .* example 3 with [0-9]{3}"):
        make_trainer(pairs, max_length=512, trainer={"eval_dataset": {"test": [*heldout[:3], long, *heldout[4:]]}})
    make_trainer([long], max_length=512, alpha=0.0)  # without critiques it is short enough
    trainer = make_trainer([long], max_length=None)
    length = trainer.get_train_dataloader().collate_fn([*trainer.train_dataset])["input_ids"].shape[1]
    make_trainer([long], max_length=length)  # the length that is checked is the length that is trained
    with pytest.raises(JRMError, match=f"example 0 with {length}"):
        make_trainer([long], max_length=length - 1)


def test_what_would_train_whole_where_parts_are_asked_for_is_refused(make_trainer, pairs, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(JRMError, match="FSDP is asked for, which accelerate has on GPUs only"):
        make_trainer(pairs)
    with pytest.raises(JRMError, match="muon_learning_rate needs whole matrices, which FSDP divides"):
        make_trainer(pairs, muon_learning_rate=0.01)


@pytest.mark.parametrize("kind", ["text without alpha 1", "two kinds", "unknown dimension", "other column"])
def test_examples_that_do_not_fit(make_trainer, pairs, texts, kind):
    unknown = replace(pairs[0], labels={"beauty": 1, "overall": 1}, chosen_scores=None, rejected_scores=None)
    examples, alpha, said = {
        "text without alpha 1": (texts, 0.7, "example 0 of the train set has no preference"),
        "two kinds": ([*texts, pairs[0]], 1.0, "example 8 of the train set is of another kind"),
        "unknown dimension": ([pairs[0], unknown], 0.7, "example 1 of the train set is labelled in beauty;"),
        "other column": (Dataset.from_dict({"chosen": ["a"]}), 0.7, "the train set .* has the columns chosen, and"),
    }[kind]
    with pytest.raises(JRMError, match=said):
        make_trainer(examples, alpha=alpha)


# --- what is written --------------------------------------------------------------------------------------------------


def test_checkpoints_are_whole_limited_and_keep_the_best(make_trainer, pairs, heldout, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    options |= {"save_total_limit": 2, "metric_for_best_model": "eval_rank_loss", "greater_is_better": True}
    options |= {"load_best_model_at_end": True, "learning_rate": 3e-3}
    trainer = make_trainer(pairs, trainer={"eval_dataset": heldout}, **options)
    trainer.train()
    losses = {e["step"]: e["eval_rank_loss"] for e in trainer.state.log_history if "eval_rank_loss" in e}
    best = tmp_path / "run" / f"checkpoint-{max(losses, key=losses.get)}"
    assert trainer.state.best_model_checkpoint == str(best)
    kept = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert len(kept) == 2 and kept >= {best.name, "checkpoint-4"}
    assert not (tmp_path / "run" / ".saving").exists()
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    assert f'RewardScorer.from_pretrained("{tmp_path / "run"}")' in (tmp_path / "run" / "README.md").read_text()
    for folder in (best, tmp_path / "run" / "checkpoint-4"):
        config = RewardScorer.from_pretrained(folder, device="cpu").model.config
        assert (config.trained_tasks, config.trained_pixels) == (["edit"], [48 * 48] * 2)  # what ShapeEdits are
    saved = load_file(best / "model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], saved[name]) for name in saved)


def test_best_step_without_a_checkpoint_has_no_path(make_trainer, pairs, heldout):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    options |= {"metric_for_best_model": "eval_sigma/overall", "greater_is_better": True}
    trainer = make_trainer(pairs, trainer={"eval_dataset": heldout}, **options)
    evaluated = iter([3.0, 2.0, 1.0])  # the best is step 1, which is not saved
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: evaluate(*args, **kwargs) | {"eval_sigma/overall": next(evaluated)}
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.state.best_model_checkpoint is None


def test_checkpoint_that_fails_half_way_is_not_found(make_trainer, pairs, tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = make_trainer(pairs, **options)
    save_rng_state = trainer._save_rng_state

    def fail_at_two(folder):
        if trainer.state.global_step == 2:
            raise OSError("no space left")  # what stands in the staging folder by now is half a checkpoint
        save_rng_state(folder)

    trainer._save_rng_state = fail_at_two
    run = tmp_path / "run"
    told = f"checkpoint-2 cannot be saved: no space left .* the last checkpoint is {run / 'checkpoint-1'}"
    with pytest.raises(JRMError, match=told):
        trainer.train()
    assert not (run / ".saving").exists()  # the room that it takes may be what is missing
    assert get_last_checkpoint(run) == str(run / "checkpoint-1")

    def refuse(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(JRMError, match="no space left"):
        patch.setattr(os, "replace", refuse)
        make_trainer(pairs, **options).train(resume_from_checkpoint=True)
    assert get_last_checkpoint(run) == str(run / "checkpoint-1")
    make_trainer(pairs, **options).train(resume_from_checkpoint=True)
    assert get_last_checkpoint(run) == str(run / "checkpoint-3")
    assert not (run / ".saving").exists()


def test_lora_trains_adapters_head_and_new_tokens_and_resumes(make_trainer, pairs, heldout, backbone_folder, tmp_path):
    def make(**options):
        scorer_options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **options}
        trainer = make_trainer(pairs, layout={"config": {}}, **scorer_options)  # a head as `from_backbone` makes it
        trainer.model.name_or_path = str(backbone_folder("qwen3_vl"))
        return JointRewardTrainer(
            trainer.model,
            trainer.processor,
            trainer.args,
            train_dataset=pairs,
            peft_config=lora_config(trainer.processor, r=4, lora_alpha=8),
        )

    trainer = make()
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    changed = moved(before, after)
    parts = ("lora_", "reward_head.modules_to_save", "token_adapter.trainable_tokens")
    assert all(any(part in name for part in parts) for name in changed), changed
    assert all(any(part in name for name in changed) for part in parts)

    trainer.save_model(tmp_path / "saved")
    scorer = RewardScorer.from_pretrained(tmp_path / "saved", device="cpu")
    assert scorer.model.config.trained_tasks == ["edit"] and scorer.model.config.trained_pixels is not None
    scores = scorer.score([pair.chosen for pair in heldout])
    trainer.model.eval()
    own = RewardScorer(trainer.model, trainer.processor).score([pair.chosen for pair in heldout])
    for one, other in zip(scores, own, strict=True):
        assert one.mu == pytest.approx(other.mu, abs=1e-5) and one.sigma == pytest.approx(other.sigma, abs=1e-5)

    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert moved(after, weights_of(resumed.model)) == set()


def test_any_lora_config_saves_what_scores_the_same(make_trainer, pairs, heldout, tmp_path):
    # As one writes it without knowing of the reward token and the head; the model is named by nobody.
    fresh = make_trainer(pairs[:4], layout={"config": {}})
    plain = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = JointRewardTrainer(fresh.model, fresh.processor, fresh.args, train_dataset=pairs[:4], peft_config=plain)
    assert plain.modules_to_save is None
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    samples = [pair.chosen for pair in heldout]
    scores = RewardScorer.from_pretrained(tmp_path / "saved", device="cpu").score(samples)
    for score, own in zip(scores, RewardScorer(trainer.model, trainer.processor).score(samples), strict=True):
        assert score.mu == pytest.approx(own.mu, abs=1e-5)


def test_a_peft_model_that_leaves_out_the_head_is_refused(make_trainer, pairs):
    fresh = make_trainer(pairs[:4])
    adapted = get_peft_model(fresh.model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(JRMError, match="does not train the reward head; make it with lora_config"):
        JointRewardTrainer(adapted, fresh.processor, fresh.args, train_dataset=pairs[:4])


@pytest.mark.parametrize("given", [None, 24 * 24])
def test_the_callers_processor_and_its_image_size_stay(make_scorer, make_trainer, pairs, given):
    scorer = make_scorer()
    before = scorer.processor.image_processor.to_dict()
    args = replace(make_trainer(pairs[:4]).args, max_pixels=given)
    trainer = JointRewardTrainer(scorer.model, scorer.processor, args, train_dataset=pairs[:4])
    assert scorer.processor.image_processor.to_dict() == before
    assert trainer.processor.max_pixels == (given or scorer.processor.max_pixels)


def test_an_example_beyond_the_models_positions_is_refused(make_trainer, make_scorer, pairs):
    scorer = make_scorer()
    scorer.model.config.get_text_config().max_position_embeddings = 32
    with pytest.raises(JRMError, match="longer than the model's max_position_embeddings=32 tokens"):
        JointRewardTrainer(scorer.model, scorer.processor, make_trainer(pairs[:4]).args, train_dataset=pairs[:4])


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_breaks_during_training_is_named_with_file_and_row(make_trainer, edits, tmp_path, workers):
    shutil.copytree(edits, tmp_path / "edits")
    pairs = read_edit_reward(tmp_path / "edits" / "train.json", progress=False).examples
    trainer = make_trainer(pairs[:4], dataloader_num_workers=workers, trainer={"eval_dataset": pairs[:4]})
    Path(pairs[2].rejected.response_images[0]).unlink()
    sentence = r".*edits/train\.json, row 3: .*image '.*train_000002_.\.png' does not exist: .*"
    for act in (trainer.train, trainer.evaluate, lambda: trainer.evaluate(pairs[2:3])):
        with pytest.raises(JRMError) as error:
            act()
        assert re.fullmatch(sentence, str(error.value))  # in one line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
    ],
)
def test_worker_that_is_killed_is_told(make_trainer, pairs, monkeypatch, error):
    """What torch raises then; a real kill would leave torch's signal handler to raise in whatever runs next."""
    monkeypatch.setattr(RewardTrainer, "train", lambda *args, **kwargs: (_ for _ in ()).throw(error))
    trainer = make_trainer(pairs, dataloader_num_workers=1)
    with pytest.raises(JRMError, match="a worker of the data loader was ended from outside .* dataloader_num_workers"):
        trainer.train()
    with pytest.raises(type(error)):  # nothing of a worker, where there is none
        make_trainer(pairs, dataloader_num_workers=0).train()


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}, {"alpha": 1.0}])
def test_divergence_ends_training_and_leaves_the_last_checkpoint(make_trainer, pairs, tmp_path, options):
    """Too high a rate makes weights so large that the next forward pass overflows."""
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 6, "save_strategy": "steps"} | options
    options |= {"per_device_train_batch_size": 2, "save_steps": 1}
    with pytest.raises(
        JRMError, match=r"training diverged: .* not finite in step [123]; .* learning_rate \(it is 1e\+30"
    ):
        make_trainer(pairs, **options).train()
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        weights = load_file(checkpoint / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "run" / ".saving").exists()


def test_weights_that_are_no_numbers_are_never_saved(make_trainer, texts, tmp_path):
    """Not even where the loss does not show it: a row of the embedding that no text uses."""
    trainer = make_trainer(texts, alpha=1.0)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[-1] = float("nan")
    with pytest.raises(JRMError, match="weights are not finite in step 0; no checkpoint was saved before"):
        trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_one_process_of_several_saves(make_trainer, pairs, tmp_path, monkeypatch):
    """Two that write the same file at once take it from each other; newer transformers asks each to save."""
    trainer = make_trainer(pairs)
    monkeypatch.setattr(JointRewardConfig, "should_save", False)
    trainer.save_model(tmp_path / "saved")
    assert not [*tmp_path.glob("saved/*")]


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(make_trainer, pairs, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(pairs, max_steps=3, **options).train()
    run = tmp_path / "run"
    names = {path.name for path in (run / "checkpoint-3").iterdir()}
    assert names > {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    for name in sorted(names):
        path = run / "checkpoint-3" / name
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], bytes([content[0] ^ 1]) + content[1:], b"", None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            assert last_whole_checkpoint(run) == str(run / "checkpoint-2"), (name, damaged)
            assert re.search(rf"checkpoint-3 is passed over: its (file )?{name}", capsys.readouterr().err)
            path.write_bytes(content)
    assert last_whole_checkpoint(run) == str(run / "checkpoint-3")
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(JRMError, match=r"checkpoint-3 cannot be gone on from: its file optimizer\.pt is damaged"):
        make_trainer(pairs, max_steps=4, **options).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    trainer = make_trainer(pairs, max_steps=4, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and last_whole_checkpoint(run) == str(run / "checkpoint-4")
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(
        JRMError, match=r"holds no whole checkpoint \(in checkpoint-4, its file trainer_state\.json is miss"
    ):
        last_whole_checkpoint(run)
