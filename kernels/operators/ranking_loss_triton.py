"""The ranking loss as one Triton launch: loss and derivatives of every pair, in float32.

The same formulas as in `ranking_loss_torch`, where they are explained, in the arithmetic that every Triton backend has:
no erfcx, log1p or expm1, which are CUDA library calls. A pair is computed from its own numbers alone, so its result is
bitwise the same wherever it stands in whatever launch.

Clamps are written with `tl.where`, because `tl.minimum` would replace a NaN by the bound.
"""

import math

import torch
import triton
import triton.language as tl

from . import _constants
from ._backend import device_guard
from .ranking_loss_torch import LOG_SIGMA_MAX, LOG_SIGMA_MIN, LOG_SIGMA_SCALED

BLOCK = 256  # pairs a program; registers limit it, 8 nodes and 6 sums are live

NODES = tl.constexpr(len(_constants.FOUR_K2_FLOAT32))
FOUR_K2 = tl.constexpr(_constants.FOUR_K2_FLOAT32)
WEIGHT = tl.constexpr(tuple(w * math.sqrt(0.5 / math.pi) for w in _constants.WEIGHT_FLOAT32))  # times phi(0)
LEGENDRE_NODES = tl.constexpr(len(_constants.LEGENDRE_NODE))
LEGENDRE_NODE = tl.constexpr(_constants.LEGENDRE_NODE)
LEGENDRE_WEIGHT = tl.constexpr(_constants.LEGENDRE_WEIGHT)
MILLS_DEGREE = tl.constexpr(len(_constants.MILLS_COEFFICIENT) - 1)
MILLS = tl.constexpr(_constants.MILLS_COEFFICIENT)
MILLS_SCALE = tl.constexpr(_constants.MILLS_SCALE)
MILLS_SHIFT = tl.constexpr(_constants.MILLS_SHIFT)
INFINITY = tl.constexpr(math.inf)


@triton.jit
def _mills(b):
    """Phi(-b) / phi(b) for b >= 0, to 2e-7."""
    scaled = b + MILLS_SCALE
    shifted = b + MILLS_SHIFT
    inverse = 1 / (scaled * shifted)  # one division serves both quotients
    q = (b - MILLS_SCALE) * (shifted * inverse)
    value = q * MILLS[MILLS_DEGREE] + MILLS[MILLS_DEGREE - 1]
    for n in tl.static_range(2, MILLS_DEGREE + 1):
        value = value * q + MILLS[MILLS_DEGREE - n]
    return value * (scaled * inverse)


@triton.jit
def _minus_log1m(q):
    """-log(1 - q) for 0 <= q <= 3/4, with relative accuracy where q is small: 2 atanh(q / (2 - q))."""
    t = q / (2 - q)
    u = t * t
    series = tl.zeros_like(u) + 1 / 19
    for n in tl.static_range(9):
        series = series * u + 1 / (17 - 2 * n)
    return tl.where(q < 0.5, 2 * t * series, -tl.log(1 - q))


@triton.jit
def _sign(m):
    return tl.where(m > 0, 1.0, tl.where(m < 0, -1.0, 0.0))


@triton.jit
def _widest(x, s2):
    """x cut so that every (x / tau)^2 is finite, 1 / tau^2 of the widest normal, and the exponent factored out of all.

    The widest normal's density falls slowest, so that no other is larger once its exponent is taken out.
    """
    rate = tl.rsqrt(s2 + FOUR_K2[NODES - 1])
    b = x * rate
    x = tl.where(b > 1e17, 1e17 / rate, x)
    b = tl.where(b > 1e17, 1e17, b)
    return x, rate * rate, -0.5 * b * b


@triton.jit
def _node(x, s2, inverse_widest, n: tl.constexpr):
    """b = x / tau, w phi(b) less the factored exponent, and 1 / tau, of node n."""
    rate = tl.rsqrt(s2 + FOUR_K2[n])
    b = x * rate
    lag = (-0.5 * (FOUR_K2[NODES - 1] - FOUR_K2[n])) * inverse_widest
    return b, WEIGHT[n] * tl.exp(b * b * lag), rate


@triton.jit
def _upper_tail(x, s2):
    """exponent, U(x), p, -s^2 p', p' and s^2 p'' for x >= 0; all but the first are divided by exp(exponent)."""
    half = 0.5 * s2
    direct = x <= half + 2
    y = x - s2
    a = tl.where(direct, x, tl.abs(y))
    a, inverse_widest, exponent = _widest(a, s2)
    U = tl.zeros_like(a)
    p = tl.zeros_like(a)
    heat = tl.zeros_like(a)
    p1 = tl.zeros_like(a)
    s2_p2 = tl.zeros_like(a)
    for n in tl.static_range(NODES):
        b, density, rate = _node(a, s2, inverse_widest, n)
        slope = density * rate
        share = s2 * (rate * rate)
        U += density * _mills(b)
        p += slope
        heat += density * b * share
        p1 -= slope * b * rate
        s2_p2 += slope * (b * b - 1) * share

    above = y > 0
    factor = tl.where(above, tl.exp(exponent), 1.0)
    P_y = tl.where(above, 1 - factor * U, U)
    p_y = factor * p
    heat_y = tl.where(above, factor * heat, -heat)
    p1_y = tl.where(above, factor * p1, -p1)
    s2_p2_y = factor * s2_p2
    tilted_exponent = half - x + tl.where(above, 0.0, exponent)
    return (
        tl.where(direct, exponent, tilted_exponent),
        tl.where(direct, U, P_y),
        tl.where(direct, p, P_y - p_y),
        tl.where(direct, heat, s2 * (P_y - 2 * p_y) - heat_y),
        tl.where(direct, p1, 2 * p_y - P_y - p1_y),
        tl.where(direct, s2_p2, s2 * (P_y - 3 * p_y) - 3 * heat_y - s2_p2_y),
    )


@triton.jit
def _expected_parts(x, s2):
    """E[max(z, 0)] - max(m, 0) for the mixture at |m| = x >= 0, its derivative in log s, and U(x)."""
    x, inverse_widest, exponent = _widest(x, s2)
    excess = tl.zeros_like(x)
    dlogs = tl.zeros_like(x)
    U = tl.zeros_like(x)
    for n in tl.static_range(NODES):
        b, density, rate = _node(x, s2, inverse_widest, n)
        mills = _mills(b)
        excess += density * (1 - b * mills) / rate
        dlogs += density * s2 * rate
        U += density * mills
    factor = tl.exp(exponent)
    return excess * factor, dlogs * factor, U * factor


@triton.jit
def _win(m, s2, EXPECTED: tl.constexpr):
    """The loss of "i wins" and its derivatives in m and log s."""
    positive = m > 0
    if EXPECTED:
        excess, dlogs, U = _expected_parts(tl.abs(m), s2)
        loss = excess + tl.where(m < 0, -m, 0.0)
        dm = tl.where(positive, -U, U - 1)
    else:
        exponent, U, p, heat, _, _ = _upper_tail(tl.abs(m), s2)
        factor = tl.exp(exponent)
        loser = factor * U
        loss = tl.where(positive, _minus_log1m(loser), -(exponent + tl.log(U)))
        per_probability = tl.where(positive, factor / (1 - loser), 1 / U)
        dm = -per_probability * p
        dm = tl.where(dm < -1, -1.0, dm)
        dlogs = tl.where(positive, per_probability * heat, -per_probability * heat)
    return loss, dm, dlogs


@triton.jit
def _half_each_way(m, s2, EXPECTED: tl.constexpr):
    """A tie without a threshold: half a win of i, half a win of j."""
    loss, dm, dlogs = _win(m, s2, EXPECTED)
    loss_j, dm_j, dlogs_j = _win(-m, s2, EXPECTED)
    return 0.5 * (loss + loss_j), 0.5 * (dm - dm_j), 0.5 * (dlogs + dlogs_j)


@triton.jit
def _marginal_tie(m, s2, h):
    """-log(P(m + h) - P(m - h)) and its derivatives in m and log s."""
    x = tl.abs(m)
    center = tl.where(x > 1e36, 1e36, x)
    low = center - h
    high = center + h

    # wide interval: U(low) - U(high), relative to exp(scale)
    exponent_low, U_low, p_low, heat_low, _, _ = _upper_tail(tl.abs(low), s2)
    exponent_high, U_high, p_high, heat_high, _, _ = _upper_tail(high, s2)
    inside = low < 0
    scale = tl.where(inside, 0.0, exponent_low)
    factor_low = tl.exp(exponent_low - scale)
    factor_high = tl.exp(exponent_high - scale)
    U_low, p_low, heat_low = factor_low * U_low, factor_low * p_low, factor_low * heat_low
    U_high, p_high, heat_high = factor_high * U_high, factor_high * p_high, factor_high * heat_high
    above_low = tl.where(inside, 1 - U_low, U_low)
    P = above_low - U_high
    dx = p_high - p_low
    dlogs = tl.where(inside, -heat_low, heat_low) - heat_high
    log_P = tl.where(inside, -_minus_log1m(U_low + U_high), scale + tl.log(P))
    is_wide = above_low < 2 * P

    # narrow interval: 2 h times the mean over it of p, p' and s^2 p'', relative to the largest exponent so far
    largest = tl.full(x.shape, -INFINITY, tl.float32)
    mean_p = tl.zeros_like(x)
    mean_p1 = tl.zeros_like(x)
    mean_s2_p2 = tl.zeros_like(x)
    for n in tl.static_range(LEGENDRE_NODES):
        point = center + h * LEGENDRE_NODE[n]
        exponent, _, p, _, p1, s2_p2 = _upper_tail(tl.abs(point), s2)
        p1 = tl.where(point < 0, -p1, p1)
        rises = exponent > largest
        shrink = tl.exp(-tl.abs(exponent - largest))
        old = tl.where(rises, shrink, 1.0)
        new = LEGENDRE_WEIGHT[n] * tl.where(rises, 1.0, shrink)
        mean_p = mean_p * old + p * new
        mean_p1 = mean_p1 * old + p1 * new
        mean_s2_p2 = mean_s2_p2 * old + s2_p2 * new
        largest = tl.where(rises, exponent, largest)

    loss = tl.where(is_wide, -log_P, -(largest + tl.log(2 * h) + tl.log(mean_p)))
    P = tl.where(is_wide, P, mean_p)
    dx = tl.where(is_wide, dx, mean_p1) / P
    dlogs = tl.where(is_wide, dlogs, mean_s2_p2) / P
    return tl.where(x == INFINITY, x, loss), -dx * _sign(m), -dlogs


@triton.jit
def _expected_tie(m, s2, h):
    """E[-log sigmoid(z - h)] + E[-log sigmoid(-z - h)] - 2 h and its derivatives in m and log s."""
    x = tl.abs(m)
    low = x - h
    excess_low, dlogs_low, U_low = _expected_parts(tl.abs(low), s2)
    excess_high, dlogs_high, U_high = _expected_parts(x + h, s2)
    dx = tl.where(low > 0, 1 - U_low, U_low) - U_high
    loss = tl.where(low < 0, 0.0, low) + (excess_low + excess_high)
    return loss, dx * _sign(m), dlogs_low + dlogs_high


@triton.jit
def _pair_losses_kernel(
    mu_i_ptr,
    log_sigma_i_ptr,
    mu_j_ptr,
    log_sigma_j_ptr,
    margin_ptr,
    tie_ptr,
    loss_ptr,
    dm_ptr,
    dlog_sigma_i_ptr,
    dlog_sigma_j_ptr,
    margin,
    tie_threshold,
    tie_constant,
    N,
    EXPECTED: tl.constexpr,
    HAS_MARGINS: tl.constexpr,
    HAS_TIES: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    LOG_SIGMA_MIN: tl.constexpr,
    LOG_SIGMA_MAX: tl.constexpr,
    LOG_SIGMA_SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < N
    m = tl.load(mu_i_ptr + pair, inside, 0.0).to(tl.float32) - tl.load(mu_j_ptr + pair, inside, 0.0).to(tl.float32)
    if HAS_MARGINS:
        m -= tl.load(margin_ptr + pair, inside, 0.0).to(tl.float32)
    else:
        m -= margin

    a = tl.load(log_sigma_i_ptr + pair, inside, 0.0).to(tl.float32)
    b = tl.load(log_sigma_j_ptr + pair, inside, 0.0).to(tl.float32)
    a = tl.where(a > LOG_SIGMA_MAX, LOG_SIGMA_MAX, tl.where(a < LOG_SIGMA_MIN, LOG_SIGMA_MIN, a))
    b = tl.where(b > LOG_SIGMA_MAX, LOG_SIGMA_MAX, tl.where(b < LOG_SIGMA_MIN, LOG_SIGMA_MIN, b))
    excess = tl.where(a > b, a, b) - LOG_SIGMA_SCALED
    excess = tl.where(excess > 0, excess, 0.0)
    shrink = tl.exp(-excess)
    variance_i = tl.exp(2 * (a - excess))
    variance_j = tl.exp(2 * (b - excess))
    s2 = variance_i + variance_j
    infinite = tl.abs(m) == INFINITY
    m = m * shrink
    h = tie_threshold * shrink

    loss, dm, dlogs = _win(m - h, s2, EXPECTED)
    if HAS_TIES:
        is_tie = tl.load(tie_ptr + pair, inside, 0) != 0
        if not HAS_THRESHOLD:
            tied_loss, tied_dm, tied_dlogs = _half_each_way(m, s2, EXPECTED)
        elif EXPECTED:
            tied_loss, tied_dm, tied_dlogs = _expected_tie(m, s2, h)
        else:
            tied_loss, tied_dm, tied_dlogs = _marginal_tie(m, s2, h)
        loss = tl.where(is_tie, tied_loss, loss)
        dm = tl.where(is_tie, tied_dm, dm)
        dlogs = tl.where(is_tie, tied_dlogs, dlogs)

    if EXPECTED:
        loss = loss / shrink
        dlogs = dlogs / shrink
        if HAS_TIES and HAS_THRESHOLD:
            loss = tl.where(is_tie, loss - tie_constant, loss)
    else:
        dm = tl.where(infinite, dm, dm * shrink)
    per_variance = dlogs / tl.where(s2 < 1.1754943508222875e-38, 1.1754943508222875e-38, s2)
    tl.store(loss_ptr + pair, loss, inside)
    tl.store(dm_ptr + pair, dm, inside)
    tl.store(dlog_sigma_i_ptr + pair, per_variance * variance_i, inside)
    tl.store(dlog_sigma_j_ptr + pair, per_variance * variance_j, inside)


def launch(mu_i, log_sigma_i, mu_j, log_sigma_j, margin, margin_number, tie, tie_threshold, objective, block=None):
    """(loss, d/dmu_i, d/dlog_sigma_i, d/dlog_sigma_j) of each pair, float32 tensors of the inputs' shape.

    `margin` is a tensor, or None for `margin_number`; `tie` is a boolean mask or None.
    """
    outputs = [torch.empty(mu_i.shape, dtype=torch.float32, device=mu_i.device) for _ in range(4)]
    if mu_i.numel() == 0:
        return tuple(outputs)
    if block is None:  # the interpreter takes as long for one pair as for thousands
        block = BLOCK if mu_i.device.type != "cpu" else min(triton.next_power_of_2(mu_i.numel()), 32768)
    inputs = [x.contiguous() for x in (mu_i, log_sigma_i, mu_j, log_sigma_j)]
    unused = inputs[0]  # a pointer that the kernel is compiled not to read
    with device_guard(mu_i):
        _pair_losses_kernel[(triton.cdiv(mu_i.numel(), block),)](
            *inputs,
            unused if margin is None else margin.contiguous(),
            unused if tie is None else tie.contiguous(),
            *outputs,
            margin_number,
            tie_threshold,
            math.log(-math.expm1(-2 * tie_threshold)) if tie_threshold > 0 else 0.0,
            mu_i.numel(),
            EXPECTED=objective == "expected",
            HAS_MARGINS=margin is not None,
            HAS_TIES=tie is not None,
            HAS_THRESHOLD=tie_threshold > 0,
            LOG_SIGMA_MIN=LOG_SIGMA_MIN,
            LOG_SIGMA_MAX=LOG_SIGMA_MAX,
            LOG_SIGMA_SCALED=LOG_SIGMA_SCALED,
            BLOCK=block,
        )
    return tuple(outputs)
