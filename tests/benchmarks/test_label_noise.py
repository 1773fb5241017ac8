"""That the study of wrong labels runs to its end, goes on after a stop, and measures what it says."""

import csv
import sys

import pytest

pytest.importorskip("trl")
pytest.importorskip("sklearn")

from benchmarks import label_noise  # noqa: E402


def test_it_gives_a_row_for_each_noise_objective_and_seed(tmp_path, monkeypatch):
    options = ["--output", str(tmp_path), "--results", str(tmp_path), "--seed", "3"]
    options += ["--train", "24", "--measured", "40", "--head-steps", "60"]
    monkeypatch.setattr(sys, "argv", ["label_noise", *options])
    label_noise.main()
    with (tmp_path / "label-noise.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["noise"], row["objective"]) for row in rows] == [
        (noise, objective) for noise in label_noise.NOISE for objective in label_noise.OBJECTIVES
    ]
    assert [row["sigma_swapped"] == "" for row in rows] == [row["noise"] == "0" for row in rows]
    sigma = {(row["noise"], row["objective"]): float(row["sigma_others"]) for row in rows}
    assert sigma["0.3", "marginal"] > sigma["0.3", "expected"]  # whose gradient never raises sigma
    assert all(0 <= float(row["calibration_error_noisy_labels"]) <= 1 for row in rows)
    states = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    label_noise.main()
    assert states == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
