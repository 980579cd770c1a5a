"""What do counts of selections say? Each measure a function of arrays; 0/0 is NaN everywhere.

The paper's figures of its experts are `layer_preference`, `distinct_experts` and `overlap`, as its analysis code
computes them. Letters: R repeats of a layer, V vocabulary, G groups of experts (heads; 1 in a feed-forward layer), E
experts in a group, X = G·E all of them, C any cases (tokens, positions, sources).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """numerator / denominator, NaN where that is 0/0 (numerators here are 0 wherever denominators are)."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def layer_preference(counts: Integers) -> Floats:
    """p_le = c_le / Σ_l′ c_l′e: at which depths an expert is used, a column an expert.

    counts: [R, X] → [R, X]; NaN for an expert that was never used.
    """
    return ratio(counts, counts.sum(axis=0, keepdims=True))


def preference_order(preference: Floats) -> NDArray[np.int64]:
    """The order in which the paper draws experts, from those of the first depths to those of the last, [X].

    Ascending Σ_l l p_le [p_le > θ_e], l = 0 … R − 1, θ_e the 0.9-quantile of p_e over depths (linear between values).
    Equal ones stay in order; those never used come last.
    """
    thresholds = np.quantile(preference, 0.9, axis=0)
    depths = np.arange(len(preference))[:, None]
    return np.argsort((depths * preference * (preference > thresholds)).sum(axis=0), kind="stable")


def distinct_experts(counts: Integers) -> NDArray[np.int64]:
    """n_lv: how many different experts were ever selected at depth l for the input token v. [R, V, X] → [R, V]."""
    return np.count_nonzero(counts, axis=-1)


def ranked(distinct: Integers) -> NDArray[np.integer[Any]]:
    """The curve of a depth in the paper's figure: the nonzero n_v, ascending. [V] → [tokens met]."""
    return np.sort(distinct[distinct > 0])


def distinct_share(counts: Integers) -> Floats:
    """n_lv / (number of experts selected for v at any depth of the layer). [R, V, X] → [R, V]; NaN if none was."""
    return ratio(distinct_experts(counts), np.count_nonzero(counts.any(axis=0), axis=-1))


def overlap(sums: Floats, positions: Integers) -> Floats:
    """IoU_ll′ = mean over positions, then over groups, of |S_l ∩ S_l′| / |S_l ∪ S_l′|: do depths share their experts?

    sums, positions: [G, R, R] as in `moeut.analysis.selections.RouterRecording` → [R, R]; NaN where no position
    selected anything at both depths.
    """
    return ratio(sums, positions).mean(axis=0)


def layer_similarity(counts: Integers) -> Floats:
    """Σ_e min(p_le, p_l′e) with p_le = c_le / Σ_e′ c_le′, mean over groups: do depths use the experts equally often?

    counts: [R, G, E] → [R, R]; NaN for a depth at which a group was not used.
    """
    shares = ratio(counts, counts.sum(axis=-1, keepdims=True))
    return np.minimum(shares[:, None], shares[None]).sum(axis=-1).mean(axis=-1)


def between_depths(matrix: Floats) -> float:
    """The mean of a matrix [R, R] over pairs of different depths that have a value; NaN if there are none."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    pairs = pairs[~np.isnan(pairs)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def dead_experts(counts: Integers) -> int:
    """How many experts were never selected. counts: any axes with one of experts, added up over the others."""
    return int((counts == 0).sum())


def usage_entropy(counts: Integers) -> Floats:
    """H = −Σ_e f_e ln f_e in nats, f_e = c_e / Σ c. [..., E] → [...]; NaN where nothing was selected."""
    shares = ratio(counts, counts.sum(axis=-1, keepdims=True))
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1)


def usage_perplexity(counts: Integers) -> Floats:
    """exp(H) / E: the share of experts that would be in use if those were used alike. [..., E] → [...]."""
    return np.exp(usage_entropy(counts)) / counts.shape[-1]


def mutual_information(counts: Integers) -> float:
    """I = Σ_ce p_ce ln(p_ce / (p_c p_e)) in nats: what the case (token, position, source) says of the expert.

    counts: [C, E] → between 0, where experts do not depend on it, and ln E. Of N selections that do not depend on it
    about (C − 1)(E − 1) / 2N nats are expected nevertheless, with the cases and experts that occur. NaN without counts.
    """
    joint = ratio(counts, counts.sum())
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return float((joint * np.log(ratio(joint, independent), where=joint > 0, out=np.zeros_like(joint))).sum())


def lift(counts: Integers) -> Floats:
    """P(c | e) / P(c) = c_ce Σc / (c_c c_e): how much more often a case meets this expert than any. [C, X] → [C, X].

    1 where the expert does not care; NaN where a case or an expert never occurred.
    """
    exact = counts.astype(np.float64)  # products of sums leave 64-bit integers behind
    return ratio(exact * exact.sum(), exact.sum(axis=1, keepdims=True) * exact.sum(axis=0, keepdims=True))


class TopTokens(NamedTuple):
    """The tokens of an expert, by lift: their ids, how often each was sent to it, and its lift, all [tokens]."""

    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    lifts: Floats


def top_tokens(counts: Integers, number: int = 10, minimum: int = 20) -> list[TopTokens]:
    """For each expert the tokens with the highest lift P(token | expert) / P(token), P over selections.

    counts: [V, X] → X entries. Only pairs of token and expert that occurred at least `minimum` times take part, since
    the lift of what occurred once or twice is large by chance. Of equal lifts the more frequent token is first.
    """
    lifts = lift(counts)
    found: list[TopTokens] = []
    for of_expert, of_lift in zip(counts.T, lifts.T, strict=True):
        often = np.flatnonzero(of_expert >= max(minimum, 1))
        best = often[np.lexsort((-of_expert[often], -of_lift[often]))][:number]
        found.append(TopTokens(best, of_expert[best].astype(np.int64), of_lift[best]))
    return found
