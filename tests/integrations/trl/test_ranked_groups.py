"""Training on ranked groups: with pairs in one batch, pairwise and listwise, and what is logged of them."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from jrm_plugin import RankedGroup, Sample
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import JointRewardConfig, JointRewardTrainer
from jrm_plugin.integrations.trl.ranking_metrics import group_accuracies
from jrm_plugin.kernels import group_ranking_loss, plackett_luce_loss
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair

NAN = math.nan


def candidates(row: int, count: int) -> list[Sample]:
    pictures = [Image.new("RGB", (48, 48), (40 * row, 60 * k, 9)) for k in range(count + 1)]
    return [Sample.edit(pictures[0], f"make it {row}", picture) for picture in pictures[1:]]


@pytest.fixture(scope="module")
def examples() -> list[PreferencePair | RankedGroup]:
    """A pair and groups of three and four, with ties, missing ranks and a critique."""
    critiques = [{}, {}, {"visual_quality": Critique("smeared")}]
    return [
        PreferencePair(*candidates(0, 2), {"overall": 1}),
        RankedGroup(candidates(1, 3), {"overall": [2, 1, 2], "visual_quality": [1, None, 2]}, critiques=critiques),
        RankedGroup(candidates(2, 4), {"instruction_following": [3, 1, 4, 2]}),
    ]


@pytest.fixture
def make(tmp_path):
    """`make(examples, **options)`: a trainer of `jrm-tiny` without dropout, whose batch is all examples in order."""

    def make(given, *, evaluated=None, **options) -> JointRewardTrainer:
        defaults = {"max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        defaults |= {"logging_steps": 1, "per_device_train_batch_size": len(given), "gradient_accumulation_steps": 1}
        defaults |= {"learning_rate": 1e-3, "train_sampling_strategy": "sequential", "alpha": 0.0}
        args = JointRewardConfig(str(tmp_path / "run"), **{**defaults, **options})
        return JointRewardTrainer("jrm-tiny", args=args, train_dataset=given, eval_dataset=evaluated)

    return make


def scores_of(trainer, examples):
    """mu and log sigma of each example's candidates, `[G, C]`, with the overall score."""
    trainer.model.eval()
    for example in examples:
        with torch.no_grad():
            output = trainer.model(**trainer.processor(example.candidates, example.critiques))
        mu, log_sigma = output.mu_SD, output.log_sigma_SD
        log_sigma_of_mean = 0.5 * torch.logsumexp(2 * log_sigma, -1, keepdim=True) - math.log(2)
        yield torch.cat([mu, mu.mean(-1, keepdim=True)], -1), torch.cat([log_sigma, log_sigma_of_mean], -1)


def ranks_of(example, names):
    places = [[NAN if r is None else r for r in example.ranks.get(n, [None] * len(example.candidates))] for n in names]
    return torch.tensor(places).T


@pytest.mark.parametrize("kind", ["pairwise", "plackett_luce"])
def test_pairs_and_groups_of_any_size_share_a_batch(make, examples, kind):
    """The loss is the mean over groups of the mean over their labels of each group's own loss."""
    trainer = make(examples, evaluated=examples, ranking_loss=kind, per_device_eval_batch_size=2)
    names = [*trainer.processor.dimensions, "overall"]
    expected = []
    for example, scores in zip(examples, scores_of(trainer, examples), strict=True):
        ranks = ranks_of(example, names)
        labelled = [c for c in range(3) if (~ranks[:, c].isnan()).sum() > 1]
        columns = [[x[:, c : c + 1] for x in (*scores, ranks)] for c in labelled]
        if kind == "pairwise":
            losses = [group_ranking_loss(*of_column) for of_column in columns]
        else:
            losses = [plackett_luce_loss(*of) / ((~of[2].isnan()).sum() - 1) for of in columns]
        expected.append(sum(losses) / len(losses))
    metrics = trainer.evaluate()
    assert metrics["eval_rank_loss"] == pytest.approx(float(sum(expected)) / 3, abs=1e-5)
    # 1 and 2 pairs overall that are no tie; of visual quality one; six of the four; groups are of three and more.
    counts = {name: metrics.get(f"eval_pairs/{name}") for name in names}
    assert counts == {"overall": 3, "visual_quality": 1, "instruction_following": 6}
    counts = {name: metrics.get(f"eval_groups/{name}") for name in names}
    assert counts == {"overall": 1, "visual_quality": None, "instruction_following": 1}
    assert {"eval_k_way/overall", "eval_best_of_k/instruction_following"} <= metrics.keys()
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"k_way/overall", "best_of_k/overall", "accuracy/overall"} <= entry.keys()


def test_a_group_of_two_trains_as_the_pair_bit_for_bit(make):
    labels = [{"overall": 1}, {"overall": -1, "visual_quality": 0}, {"instruction_following": 1, "overall": 0}]
    pairs = [PreferencePair(*candidates(row, 2), of_row) for row, of_row in enumerate(labels)]
    critique = {"visual_quality": Critique("smeared")}
    pairs[0] = replace(pairs[0], rejected_critiques=critique)
    groups = [RankedGroup(pair.candidates, pair.ranks, critiques=pair.critiques) for pair in pairs]
    runs = []
    for given in (pairs, groups, [pairs[0], *groups[1:]]):
        trainer = make(given, alpha=0.5, max_steps=2, tie_threshold=0.3)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, trainer.model.state_dict()))
    for losses, weights in runs[1:]:
        assert losses == runs[0][0]
        assert all(torch.equal(weights[name], runs[0][1][name]) for name in weights)


def test_k_way_and_best_of_k_accuracy():
    rank_NG = torch.tensor([[1, 2, 3, 4], [1, 2, 2, NAN], [1, 1, 2, 3], [2, 2, 2, NAN], [1, 2, NAN, NAN]])
    right = torch.tensor([[4.0, 3, 2, 1], [3, 1, 2, 9], [2, 3, 1, 0], [1, 2, 3, 4], [2, 1, NAN, NAN]])
    assert group_accuracies(rank_NG, right) == (3, 3, 3)  # all tied, and two candidates, do not count
    best_alone = torch.tensor([[4.0, 2, 3, 1], [3, 1, 2, NAN], [0, 3, 1, 0.5], [1, 2, 3, 4], [2, 1, NAN, NAN]])
    assert group_accuracies(rank_NG, best_alone) == (1, 3, 3)
    assert group_accuracies(rank_NG, torch.zeros(5, 4)) == (0, 0, 3)  # equal scores are wrong


def test_what_does_not_fit_is_refused(make, examples, tmp_path):
    tied = RankedGroup(candidates(0, 6), {"overall": [1] * 6})
    with pytest.raises(JRMError, match="example 1 of the train set has more ties than ranking_loss: plackett_luce"):
        make([examples[1], tied], ranking_loss="plackett_luce")
    make([tied])
    unknown = RankedGroup(candidates(0, 3), {"beauty": [1, 2, 3]})
    with pytest.raises(JRMError, match="example 0 of the train set is labelled in beauty"):
        make([unknown])
    with pytest.raises(ValueError, match="ranking_loss must be 'pairwise' or 'plackett_luce', got 'best'"):
        JointRewardConfig(str(tmp_path), ranking_loss="best")
    with pytest.raises(ValueError, match="tie_threshold belongs to ranking_loss: pairwise"):
        JointRewardConfig(str(tmp_path), ranking_loss="plackett_luce", tie_threshold=0.1)


def test_a_table_of_lists_and_a_stream_of_it_give_groups(make):
    rows = [
        {"source": Image.new("RGB", (48, 48), (9, 9, 40 * row)), "prompt": f"make it {row}"}
        | {"candidates": [c.response_images[0] for c in candidates(row, 3)], "ranking": [1, 3, 2]}
        for row in range(3)
    ]
    trainer = make(rows)
    batch = trainer.get_train_dataloader().collate_fn([*trainer.train_dataset])
    assert batch["sample_NG"].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert batch["rank_NGC"].shape == (3, 3, 3) and batch["rank_NGC"][:, :, 0].isnan().all()
    assert batch["rank_NGC"][0, :, 2].tolist() == [1, 3, 2]
