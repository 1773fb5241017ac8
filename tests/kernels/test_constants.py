"""The committed quadrature constants are those that kernels/make_constants.py makes, and they integrate."""

import math
import runpy
from pathlib import Path

import pytest

from jrm_plugin.kernels import _constants

KERNELS = Path(__file__).parents[2] / "kernels"


def test_the_script_reproduces_the_committed_file():
    script = runpy.run_path(str(KERNELS / "make_constants.py"))
    assert script["constants_source"]() == (KERNELS / "operators" / "_constants.py").read_text()


@pytest.mark.parametrize("dtype", ["FLOAT32", "FLOAT64"])
def test_moments_of_the_kolmogorov_distribution(dtype):
    four_k2, weight = getattr(_constants, f"FOUR_K2_{dtype}"), getattr(_constants, f"WEIGHT_{dtype}")
    assert len(four_k2) == len(weight) and list(four_k2) == sorted(four_k2)
    assert sum(weight) == pytest.approx(1, rel=1e-15)
    # 4 k^2 is the variance of the normals whose mixture is the logistic law, so its mean is pi^2 / 3
    relative = 1e-14 if dtype == "FLOAT64" else 1e-6
    assert math.fsum(v * w for v, w in zip(four_k2, weight, strict=True)) == pytest.approx(math.pi**2 / 3, rel=relative)


def test_the_legendre_rule_integrates_polynomials():
    node, weight = _constants.LEGENDRE_NODE, _constants.LEGENDRE_WEIGHT
    for power in range(2 * len(node)):
        mean = math.fsum(w * t**power for t, w in zip(node, weight, strict=True))
        assert mean == pytest.approx((power % 2 == 0) / (power + 1), abs=1e-15)
