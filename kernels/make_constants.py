"""Makes kernels/operators/_constants.py, the quadrature rules of the ranking loss, from first principles.

    python kernels/make_constants.py            # rewrite the file
    python kernels/make_constants.py --check    # exit 1 if the committed file differs

The logistic law is a normal scale mixture (Andrews and Mallows, 1974): sigmoid(z) = E_k[Phi(z / 2k)], where k has
the Kolmogorov distribution. An expectation over k becomes a weighted sum over the nodes of the Gauss rule for the
law of log k, in which all integrands of the loss are smooth. Triton has no erfc on every device, so the kernel takes
the Mills ratio Phi(-b) / phi(b) from a polynomial. Everything is done with 50 digits; needs mpmath
(`pip install -e '.[dev]'`).
"""

import sys
from pathlib import Path

import mpmath as mp

OUTPUT = Path(__file__).parent / "operators" / "_constants.py"

KOLMOGOROV_NODES = {"FLOAT32": 8, "FLOAT64": 32}
LEGENDRE_NODES = 10
MILLS_DEGREE, MILLS_SCALE, MILLS_SHIFT = 10, 3.0, 0.8  # relative error 3e-8, less than its rounding in float32

HEADER = '''"""Quadrature rules of the ranking loss. Written by kernels/make_constants.py; do not edit by hand.

Kolmogorov rule: E_k[f(4 k^2)] = sum_n WEIGHT[n] f(FOUR_K2[n]) for Kolmogorov-distributed k, FOUR_K2 ascending.
Legendre rule: the mean of f over [-1, 1] = sum_n WEIGHT[n] f(NODE[n]).
Mills ratio of b >= 0: sum_n COEFFICIENT[n] q^n / (b + SHIFT) with q = (b - SCALE) / (b + SCALE), for float32.
"""
'''


def kolmogorov_density(k):
    """Density of the Kolmogorov distribution; each of its two theta series is used where it converges fast."""
    terms = range(1, 12)
    if k > 1:
        return 8 * k * mp.fsum((-1) ** (j + 1) * j**2 * mp.exp(-2 * (j * k) ** 2) for j in terms)
    rates = [((2 * j - 1) * mp.pi) ** 2 / (8 * k**2) for j in terms]
    return mp.sqrt(2 * mp.pi) / k**2 * mp.fsum((2 * rate - 1) * mp.exp(-rate) for rate in rates)


def log_kolmogorov_measure(step="0.01"):
    """The law of t = log k as point masses: (points, masses).

    Its density falls doubly exponentially on both sides, where the trapezoidal rule converges geometrically.
    """
    step = mp.mpf(step)
    points = [step * i for i in range(-280, 191)]  # k from 0.06 to 6.7: what lies outside is below 1e-38
    masses = [step * kolmogorov_density(mp.exp(t)) * mp.exp(t) for t in points]
    return points, masses


def recurrence(points, masses, count):
    """Three-term recurrence of the orthonormal polynomials of point masses (Stieltjes): diagonal, off-diagonal."""
    diagonal, off_diagonal = [], []
    previous = [mp.mpf(0)] * len(points)
    current = [mp.mpf(1) / mp.sqrt(mp.fsum(masses))] * len(points)
    norm = mp.mpf(0)
    for _ in range(count):
        mean = mp.fsum(w * t * p * p for w, t, p in zip(masses, points, current, strict=True))
        following = [
            (t - mean) * p - norm * q for t, p, q in zip(points, current, previous, strict=True)
        ]  # orthogonal to all polynomials before it, not yet of norm one
        norm = mp.sqrt(mp.fsum(w * p * p for w, p in zip(masses, following, strict=True)))
        diagonal.append(mean)
        off_diagonal.append(norm)
        previous, current = current, [p / norm for p in following]
    return diagonal, off_diagonal[:-1]


def gauss_rule(diagonal, off_diagonal):
    """Nodes and weights (of sum one) from the recurrence, as eigenvalues of its Jacobi matrix (Golub and Welsch)."""
    count = len(diagonal)
    jacobi = mp.matrix(count, count)
    for i, value in enumerate(diagonal):
        jacobi[i, i] = value
    for i, value in enumerate(off_diagonal):
        jacobi[i, i + 1] = jacobi[i + 1, i] = value
    nodes, vectors = mp.eigsy(jacobi)
    return [nodes[i] for i in range(count)], [vectors[0, i] ** 2 for i in range(count)]


def kolmogorov_rule(count, step="0.01"):
    """(4 k^2, weight), ascending in k."""
    nodes, weights = gauss_rule(*recurrence(*log_kolmogorov_measure(step), count))
    return [4 * mp.exp(2 * t) for t in nodes], weights


def legendre_rule(count):
    """(node, weight) on [-1, 1], weights of sum one."""
    off_diagonal = [j / mp.sqrt(4 * mp.mpf(j) ** 2 - 1) for j in range(1, count)]
    return gauss_rule([mp.mpf(0)] * count, off_diagonal)


def mills_ratio(b):
    """Phi(-b) / phi(b) for the standard normal."""
    return mp.sqrt(mp.pi / 2) * mp.exp(b * b / 2) * mp.erfc(b / mp.sqrt(2))


def mills_polynomial(degree, scale=MILLS_SCALE, shift=MILLS_SHIFT):
    """(b + shift) times the Mills ratio as a polynomial in q = (b - scale) / (b + scale), lowest power first.

    q takes [0, inf] to [-1, 1], where the function is smooth: it goes from shift sqrt(pi / 2) to 1.
    """

    def smooth(q):
        if q == 1:
            return mp.mpf(1)
        b = scale * (1 + q) / (1 - q)
        return (b + shift) * mills_ratio(b)

    return mp.chebyfit(smooth, [-1, 1], degree + 1)[::-1]


def assignment(name, values):
    lines = "".join(f"    {float(value)!r},\n" for value in values)
    return f"{name} = (\n{lines})\n"


def constants_source():
    """The text of _constants.py."""
    with mp.workdps(50):
        parts = [HEADER]
        for name, count in KOLMOGOROV_NODES.items():
            four_k2, weight = kolmogorov_rule(count)
            parts += [assignment(f"FOUR_K2_{name}", four_k2), assignment(f"WEIGHT_{name}", weight)]
        node, weight = legendre_rule(LEGENDRE_NODES)
        parts += [assignment("LEGENDRE_NODE", node), assignment("LEGENDRE_WEIGHT", weight)]
        parts += [f"MILLS_SCALE = {MILLS_SCALE}\nMILLS_SHIFT = {MILLS_SHIFT}\n"]
        parts += [assignment("MILLS_COEFFICIENT", mills_polynomial(MILLS_DEGREE))]
    return parts[0] + "\n" + "".join(parts[1:])


if __name__ == "__main__":
    source = constants_source()
    if "--check" in sys.argv[1:]:
        if source != OUTPUT.read_text():
            sys.exit(f"{OUTPUT} is not what this script makes: run it without --check")
        print(f"{OUTPUT} is up to date")
    else:
        OUTPUT.write_text(source)
        print(f"wrote {OUTPUT}")
