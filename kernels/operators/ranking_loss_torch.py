"""The uncertainty-aware ranking loss, exact and without sampling.

The mathematics
---------------
Two scores are independent normals, r_i ~ N(mu_i, sigma_i^2) and r_j ~ N(mu_j, sigma_j^2). Their difference less a
margin is z ~ N(m, s^2) with

    m = mu_i - mu_j - margin,        s^2 = sigma_i^2 + sigma_j^2,

and the probability that i wins is P(m) = E[sigmoid(z)] (JRM paper, section 3.2, eq. 4). The loss of "i beats j" is

    objective="marginal"    -log E[sigmoid(z)]     (eq. 5; the default)
    objective="expected"    E[-log sigmoid(z)]     (what sampling implementations estimate; never the smaller one)

Closed form. The logistic law is a normal scale mixture: sigmoid(z) = E_k[Phi(z / 2k)] with k Kolmogorov-distributed
(Andrews and Mallows, 1974). A normal convolved with it stays one, so that

    P(m)                      = E_k[Phi(m / tau)],                                     tau^2 = s^2 + 4 k^2
    E[-log sigmoid(z)]        = max(-m, 0) + E_k[tau (phi(b) - b Phi(-b))],            b = |m| / tau

and a Gauss rule in log k with 8 nodes (float32) or 32 (float64) does E_k for every m and s alike. Two identities give
the derivatives: p = P' = E_k[phi(m / tau) / tau], and the heat equation dP / d log s = s^2 p'.

Tails. The upper tail U(x) = P(-x) of x = |m| is summed directly where x <= s^2 / 2 + 2. Beyond, where an error of the
rule would be amplified, E[f(z) exp(-z)] = exp(s^2 / 2 - m) E[f(z - s^2)] moves the work to the middle:

    U(x) = exp(s^2 / 2 - x) P(x - s^2),        and p, p', p'' by differentiating it.

The slowest exponent is always factored out, and Phi(-b) = phi(b) sqrt(pi / 2) erfcx(b / sqrt 2), so nothing underflows.

Ties (Rao and Kupper, 1967). With a threshold h >= 0 the outcomes of a pair have probabilities

    win  E[sigmoid(z - h)] = P(m - h),     loss  E[sigmoid(-z - h)] = P(-m - h),     tie  P(m + h) - P(m - h),

which sum to 1. A wide tie interval is a difference of tails; a narrow one, where that would cancel, is the integral of
p over [m - h, m + h] by Gauss-Legendre. For the expected objective the tie is a sum of two wins and a constant.

Shapes: N pairs, K nodes of the rule, G candidates in a group, D dimensions.
"""

import math

import torch

from ._constants import (
    FOUR_K2_FLOAT32,
    FOUR_K2_FLOAT64,
    LEGENDRE_NODE,
    LEGENDRE_WEIGHT,
    WEIGHT_FLOAT32,
    WEIGHT_FLOAT64,
)

# above this log sigma the logistic is nothing beside the normal: only m / s counts, and both are scaled down to it
LOG_SIGMA_SCALED = 36.0
# log sigma is cut here, so that the expected loss of many pairs, about 0.4 s each, still has a finite sum in float32
LOG_SIGMA_MAX = 70.0
LOG_SIGMA_MIN = -100.0


def _node_sums(terms):
    """Sum over dim 1, whose length is a power of two, by halving.

    torch.sum may add in another order for another number of pairs; a pair's loss must not depend on its neighbours.
    """
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms = terms[:, :half] + terms[:, half:]
    return terms[:, 0]


def _scaled_mixture(x_N, s2_N):
    """The normals N(0, tau^2) of the mixture at x >= 0, for each node of the rule.

    Returns b = x / tau, the weighted density w phi(b), 1 / tau and the Mills ratio Phi(-b) / phi(b), all [K, N], and
    exponent_N: the densities lack the factor exp(exponent), that of the widest normal, which falls slowest.
    """
    narrow = x_N.dtype == torch.float32
    four_k2_K1 = x_N.new_tensor(FOUR_K2_FLOAT32 if narrow else FOUR_K2_FLOAT64).unsqueeze(1)
    weight_K1 = x_N.new_tensor(WEIGHT_FLOAT32 if narrow else WEIGHT_FLOAT64).unsqueeze(1)
    tau2_KN = s2_N + four_k2_K1
    rate_KN = torch.rsqrt(tau2_KN)
    b_KN = (x_N * rate_KN).clamp(max=1e18)  # its square stays finite
    lag_KN = (four_k2_K1[-1] - four_k2_K1) / tau2_KN[-1]  # b^2 - b^2 of the widest, over b^2
    density_KN = weight_K1 * math.sqrt(0.5 / math.pi) * torch.exp(-0.5 * b_KN * b_KN * lag_KN)
    # erfcx in float32 is good to 4e-7 only
    mills_KN = (math.sqrt(math.pi / 2) * torch.special.erfcx(b_KN.double() * math.sqrt(0.5))).to(x_N.dtype)
    return b_KN, density_KN, rate_KN, mills_KN, -0.5 * b_KN[-1] * b_KN[-1]


def _upper_tail(x_N, s2_N, curvature=False):
    """U(x) = P(-x) and its derivatives for x >= 0, each divided by exp(exponent).

    Returns exponent_N and a stack of U, p and -s^2 p' (which is dU / d log s, never negative for x >= 0); with
    `curvature` also of p' and s^2 p''.
    """
    half_N = 0.5 * s2_N
    # + 2: p'' vanishes near x = tau, where the differences of the tilt would keep too few digits in float32
    direct_N = x_N <= half_N + 2
    y_N = x_N - s2_N
    b_KN, density_KN, rate_KN, mills_KN, exponent_N = _scaled_mixture(torch.where(direct_N, x_N, y_N.abs()), s2_N)
    slope_KN = density_KN * rate_KN
    share_KN = s2_N * (rate_KN * rate_KN)
    terms = [density_KN * mills_KN, slope_KN, density_KN * b_KN * share_KN]
    if curvature:
        terms += [-slope_KN * b_KN * rate_KN, slope_KN * (b_KN * b_KN - 1) * share_KN]
    plain = _node_sums(torch.stack(terms))

    # the tilt: U(x) = exp(s^2 / 2 - x) P(y), y = x - s^2; for y > 0, P(y) is 1 - U(y)
    above_N = y_N > 0
    mirrored = plain * torch.where(above_N, torch.exp(exponent_N), torch.ones_like(exponent_N))
    P_N = torch.where(above_N, 1 - mirrored[0], mirrored[0])
    p_N = mirrored[1]
    minus_s2_p1_N = torch.where(above_N, mirrored[2], -mirrored[2])
    tilted = [P_N, P_N - p_N, s2_N * (P_N - 2 * p_N) - minus_s2_p1_N]
    if curvature:
        p1_N = torch.where(above_N, mirrored[3], -mirrored[3])
        tilted += [2 * p_N - P_N - p1_N, s2_N * (P_N - 3 * p_N) - 3 * minus_s2_p1_N - mirrored[4]]
    tilted_exponent_N = half_N - x_N + torch.where(above_N, torch.zeros_like(exponent_N), exponent_N)
    return torch.where(direct_N, exponent_N, tilted_exponent_N), torch.where(direct_N, plain, torch.stack(tilted))


def _marginal_win(m_N, s2_N):
    """-log P(m) and its derivatives in m and log s."""
    exponent_N, (U_N, p_N, heat_N) = _upper_tail(m_N.abs(), s2_N)
    factor_N = torch.exp(exponent_N)
    positive_N = m_N > 0
    loser_N = factor_N * U_N
    loss_N = torch.where(positive_N, -torch.log1p(-loser_N), -(exponent_N + torch.log(U_N)))
    per_probability_N = torch.where(positive_N, factor_N / (1 - loser_N), 1 / U_N)
    dm_N = (-per_probability_N * p_N).clamp(min=-1.0)
    dlogs_N = per_probability_N * heat_N
    return loss_N, dm_N, torch.where(positive_N, dlogs_N, -dlogs_N)


def _expected_parts(x_N, s2_N):
    """E[max(z, 0)] - max(m, 0) for the mixture at |m| = x >= 0, its derivative in log s, and U(x)."""
    b_KN, density_KN, rate_KN, mills_KN, exponent_N = _scaled_mixture(x_N, s2_N)
    terms = [density_KN * (1 - b_KN * mills_KN) / rate_KN, density_KN * s2_N * rate_KN, density_KN * mills_KN]
    return _node_sums(torch.stack(terms)) * torch.exp(exponent_N)


def _expected_win(m_N, s2_N):
    """E[-log sigmoid(z)] and its derivatives in m and log s."""
    excess_N, dlogs_N, U_N = _expected_parts(m_N.abs(), s2_N)
    return excess_N + (-m_N).clamp(min=0), torch.where(m_N > 0, -U_N, U_N - 1), dlogs_N


def _half_each_way(win, m_N, s2_N):
    """A tie without a threshold: half a win of i, half a win of j."""
    ahead, behind = win(m_N, s2_N), win(-m_N, s2_N)
    return tuple(0.5 * (a + sign * b) for a, b, sign in zip(ahead, behind, (1, -1, 1), strict=True))


def _marginal_tie(m_N, s2_N, h_N):
    """-log(P(m + h) - P(m - h)) and its derivatives in m and log s."""
    x_N = m_N.abs()
    center_N = x_N.clamp(max=1e36)  # an infinite m would leave inf - inf between the exponents below
    low_N, high_N = center_N - h_N, center_N + h_N

    # wide interval: U(low) - U(high), relative to exp(scale)
    exponent_low_N, low = _upper_tail(low_N.abs(), s2_N)
    exponent_high_N, high = _upper_tail(high_N, s2_N)
    inside_N = low_N < 0
    scale_N = torch.where(inside_N, torch.zeros_like(x_N), exponent_low_N)
    low, high = low * torch.exp(exponent_low_N - scale_N), high * torch.exp(exponent_high_N - scale_N)
    above_low_N = torch.where(inside_N, 1 - low[0], low[0])
    heat_low_N = torch.where(inside_N, -low[2], low[2])
    wide = torch.stack([above_low_N - high[0], high[1] - low[1], heat_low_N - high[2]])
    log_wide_N = torch.where(inside_N, torch.log1p(-(low[0] + high[0])), scale_N + torch.log(wide[0]))

    # narrow interval: 2 h times the mean over it of p, p' and s^2 p'', relative to the largest exponent
    J, N = len(LEGENDRE_NODE), x_N.shape[0]
    point_JN = center_N + h_N * x_N.new_tensor(LEGENDRE_NODE).unsqueeze(1)
    exponent_N, derivatives = _upper_tail(point_JN.abs().reshape(J * N), s2_N.repeat(J), curvature=True)
    exponent_JN, (_, p_JN, _, p1_JN, s2_p2_JN) = exponent_N.reshape(J, N), derivatives.reshape(5, J, N)
    largest_N = exponent_JN.amax(0)
    factor_JN = x_N.new_tensor(LEGENDRE_WEIGHT).unsqueeze(1) * torch.exp(exponent_JN - largest_N)
    parts = torch.stack([p_JN, torch.where(point_JN < 0, -p1_JN, p1_JN), s2_p2_JN]) * factor_JN
    narrow = sum(parts.unbind(1))  # in this order, whatever N is
    log_narrow_N = largest_N + torch.log(2 * h_N) + torch.log(narrow[0])

    is_wide_N = wide[0] > 0.5 * above_low_N
    P_N, dx_N, dlogs_N = torch.where(is_wide_N, wide, narrow)
    loss_N = torch.where(torch.isinf(x_N), x_N, -torch.where(is_wide_N, log_wide_N, log_narrow_N))
    return loss_N, -dx_N / P_N * torch.sign(m_N), -dlogs_N / P_N


def _expected_tie(m_N, s2_N, h_N):
    """E[-log sigmoid(z - h)] + E[-log sigmoid(-z - h)] - 2 h and its derivatives in m and log s.

    -log of the tie probability is this less log(1 - exp(-2 h)). Of the large parts, max(h - m, 0) + max(h + m, 0) - 2 h
    is max(|m| - h, 0).
    """
    x_N = m_N.abs()
    low_N = x_N - h_N
    excess_low_N, dlogs_low_N, U_low_N = _expected_parts(low_N.abs(), s2_N)
    excess_high_N, dlogs_high_N, U_high_N = _expected_parts(x_N + h_N, s2_N)
    dx_N = torch.where(low_N > 0, 1 - U_low_N, U_low_N) - U_high_N
    loss_N = low_N.clamp(min=0) + (excess_low_N + excess_high_N)
    return loss_N, dx_N * torch.sign(m_N), dlogs_low_N + dlogs_high_N


def pair_losses(m_N, log_sigma_i_N, log_sigma_j_N, tie_N, tie_threshold, objective):
    """Loss of each pair and its derivatives in m, log sigma_i and log sigma_j.

    Args:
        m_N: mu_i - mu_j - margin; float32 or float64, as the log sigmas.
        tie_N: boolean mask, or None if no pair is tied.
    """
    a_N = log_sigma_i_N.clamp(LOG_SIGMA_MIN, LOG_SIGMA_MAX)
    b_N = log_sigma_j_N.clamp(LOG_SIGMA_MIN, LOG_SIGMA_MAX)
    excess_N = (torch.maximum(a_N, b_N) - LOG_SIGMA_SCALED).clamp(min=0)
    shrink_N = torch.exp(-excess_N)
    variance_i_N, variance_j_N = torch.exp(2 * (a_N - excess_N)), torch.exp(2 * (b_N - excess_N))
    s2_N = variance_i_N + variance_j_N
    infinite_N = torch.isinf(m_N)
    m_N, h_N = m_N * shrink_N, tie_threshold * shrink_N

    win = _marginal_win if objective == "marginal" else _expected_win
    parts = win(m_N - h_N, s2_N)
    if tie_N is not None:
        if tie_threshold == 0:
            tied = _half_each_way(win, m_N, s2_N)
        else:
            tied = (_marginal_tie if objective == "marginal" else _expected_tie)(m_N, s2_N, h_N)
        parts = [torch.where(tie_N, t, w) for t, w in zip(tied, parts, strict=True)]
    loss_N, dm_N, dlogs_N = parts

    if objective == "marginal":  # depends on m / s where it was scaled; its slope at infinity is that of -m
        dm_N = torch.where(infinite_N, dm_N, dm_N * shrink_N)
    else:  # a length, as m and s are
        loss_N, dlogs_N = loss_N / shrink_N, dlogs_N / shrink_N
        if tie_N is not None and tie_threshold > 0:
            constant_N = torch.log(-torch.expm1(torch.full_like(m_N, -2 * tie_threshold)))
            loss_N = torch.where(tie_N, loss_N - constant_N, loss_N)
    per_variance_N = dlogs_N / s2_N.clamp(min=torch.finfo(s2_N.dtype).tiny)
    return loss_N, dm_N, per_variance_N * variance_i_N, per_variance_N * variance_j_N
