"""`dimensions` in a training config is all it takes: labels, critiques, rubrics and heads follow, up to the rewards."""

import pytest

from jrm_plugin import JRMError, RewardScorer
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments, jrm_rewards, train
from jrm_plugin.records.samples import DIMENSIONS, KNOWN_DIMENSIONS
from jrm_plugin.synthetic.preferences import GROUPS
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ShapeEdits with all three."""
    folder = tmp_path_factory.mktemp("three")
    return SHAPE_EDITS.write(folder, train=4, heldout=12, language=0, dimensions=KNOWN_DIMENSIONS, progress=False)


@pytest.fixture(scope="module")
def run_of(data, backbone_folder, tmp_path_factory):
    """`run_of(**arguments)`: the trainer of a step on these edits."""

    def run(**arguments):
        given = {"model": str(backbone_folder("qwen3_vl")), "train_data": str(data / "train.json")}
        if "model" not in arguments:
            given |= {"rubrics": "short", "reward_head_widths": [8]}
        options = {"output_dir": str(tmp_path_factory.mktemp("run") / "model"), "max_steps": 1, "use_cpu": True}
        options |= {"report_to": "none", "gradient_accumulation_steps": 1, "save_strategy": "no"}
        if "eval_data" in arguments:
            options |= {"eval_strategy": "steps", "eval_steps": 1}
        return train(TrainArguments(**given | arguments), JointRewardConfig(**options))

    return run


@pytest.fixture(scope="module")
def trained(run_of, data):
    return run_of(dimensions=[*KNOWN_DIMENSIONS], eval_data=[f"held_out={data / 'heldout.json'}"])


def test_three_are_trained_scored_ranked_and_evaluated(trained, data):
    log = {name: value for row in trained.state.log_history for name, value in row.items()}
    assert 0 <= log["eval_held_out_accuracy/consistency"] <= 1 and log["eval_held_out_critique_loss"] > 0
    folder = trained.args.output_dir
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    assert scorer.dimensions == [*KNOWN_DIMENSIONS] and [*scorer.processor.rubrics] == ["edit"]
    pairs = read_edit_reward(data / "heldout.json", progress=False).examples
    results = evaluate_pairs(scorer, pairs)
    assert summarize(results, GROUPS)["dimensions"] == [*KNOWN_DIMENSIONS, "overall"]
    mu = results[0].chosen.mu
    assert mu["overall"] == pytest.approx(sum(mu[name] for name in KNOWN_DIMENSIONS) / 3, abs=1e-6)
    one, other = scorer.rank([pairs[0].chosen, pairs[0].rejected], dimension="consistency")
    assert one.score.mu["consistency"] >= other.score.mu["consistency"]
    with open(f"{folder}/README.md", encoding="utf-8") as card:
        assert "| dimensions | instruction_following, visual_quality, consistency |" in card.read()


def test_each_of_three_is_a_reward_of_its_own(trained, data):
    rewards = jrm_rewards(trained.args.output_dir, device="cpu", floor=-9.0, render=lambda text, row: row["edited"])
    pairs = read_edit_reward(data / "heldout.json", progress=False).examples[:2]
    columns = {
        "source_image": [pair.chosen.prompt_images[0] for pair in pairs],
        "instruction": [pair.chosen.prompt_text for pair in pairs],
        "edited": [pair.chosen.response_images[0] for pair in pairs],
    }
    given = {reward.__name__: reward(["a", "b"], ["x", "y"], **columns) for reward in rewards}
    scores = RewardScorer.from_pretrained(trained.args.output_dir, device="cpu").score([pair.chosen for pair in pairs])
    assert given == {f"jrm_{name}": [pytest.approx(s.mu[name], abs=1e-5) for s in scores] for name in KNOWN_DIMENSIONS}


def test_dimensions_choose_among_the_labels_and_what_is_left_out_is_said(run_of, data, capsys):
    trainer = run_of(dimensions=[*DIMENSIONS])
    assert "left out, because dimensions does not name it: consistency (4 examples)" in capsys.readouterr().err
    assert RewardScorer.from_pretrained(trainer.args.output_dir, device="cpu").dimensions == [*DIMENSIONS]
    again = run_of(model=trainer.args.output_dir, dimensions=[*DIMENSIONS])  # its own, said again
    assert again.state.global_step == 1
    with pytest.raises(JRMError, match="is a JRM checkpoint and has its own dimensions"):
        run_of(model=trainer.args.output_dir, dimensions=[*KNOWN_DIMENSIONS])
    with pytest.raises(JRMError, match="is labelled in consistency; this model scores .*dimensions"):
        run_of()
