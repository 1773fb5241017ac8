"""How often a group's rewards have the wrong order, with and without the guard for undecided groups.

Groups of 8 whose true scores are drawn with a spread of their own, from 0.1 to 10 times the noise of the model; the
model sees truth plus that noise and gives it as its sigma. A pair has the wrong order where the worse candidate has the
larger advantage (GRPO's, divided by the group's deviation), the right one where the better has, and none where both are
equal.

    python -m benchmarks.guards
"""

import argparse

import numpy as np

from jrm_plugin.records.scores import RewardScore, group_advantages
from jrm_plugin.rollouts import RolloutReward


def measure(threshold: float, noise: float, *, groups: int = 1000, size: int = 8, seed: int = 0) -> dict[str, float]:
    """Shares of pairs in the wrong and in the right order, and of groups in which the guard acted, without and with it.

    `noisy` and `clear` are the groups whose true spread is below and above the noise.
    """
    rng = np.random.default_rng(seed)
    spread = noise * 10 ** rng.uniform(-1, 1, groups)
    truth = rng.normal(0, 1, (groups, size)) * spread[:, None]
    mu = truth + rng.normal(0, noise, truth.shape)
    guard = RolloutReward(undecided="equal", win_threshold=threshold)
    advantages, acted = {"without": [], "with": []}, []
    for row in range(groups):
        scores = [RewardScore({"a": value}, {"a": noise}) for value in mu[row]]
        rewards = guard.rewards(scores)
        undecided, _ = guard.undecided_groups(scores, [0] * size)
        acted.append(bool(undecided))
        advantages["without"].append(group_advantages(rewards))
        advantages["with"].append(group_advantages(guard.evened_out(rewards, undecided)))
    better = truth[:, :, None] > truth[:, None, :]
    parts = {"noisy": spread < noise, "clear": spread >= noise}
    shares = {f"acted, {part}": float(np.mean(np.array(acted)[rows])) for part, rows in parts.items()}
    for arm, values in advantages.items():
        difference = np.array(values)[:, :, None] - np.array(values)[:, None, :]
        for part, rows in parts.items():
            shares[f"wrong, {part}, {arm}"] = float(np.mean(difference[rows][better[rows]] < 0))
            shares[f"right, {part}, {arm}"] = float(np.mean(difference[rows][better[rows]] > 0))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threshold", nargs="+", type=float, default=[0.75, 0.9, 0.95])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 1.5], help="the model's sigma")
    parser.add_argument("--groups", type=int, default=1000)
    options = parser.parse_args()
    for noise in options.noise:
        for threshold in options.threshold:
            shares = measure(threshold, noise, groups=options.groups)
            print(f"sigma {noise:g}, threshold {threshold:g}")
            for part in ("noisy", "clear"):
                print(f"  {part}: the guard acted in {shares[f'acted, {part}']:.3f} of the groups;", end="")
                for what in ("wrong", "right"):
                    before, after = (shares[f"{what}, {part}, {arm}"] for arm in ("without", "with"))
                    print(f" {what} order {before:.3f} to {after:.3f}", end="")
                print()


if __name__ == "__main__":
    main()
