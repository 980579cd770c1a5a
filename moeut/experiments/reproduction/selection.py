"""What should be selected, how is its use balanced, and does attention need it too? Ablations of MoEUT's experts."""

from dataclasses import replace

from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import SECONDS, Direction, Study, below, by_place, falling, gap
from moeut.experiments.reproduction.systems import (
    DENSE,
    GATED,
    MOEUT,
    attention_of,
    balanced_over,
    experts_of,
    selecting,
    with_experts_of,
    with_heads,
)

LARGER = (1, 2, 3, 4, 6, 8)
"""Sizes of experts, as multiples of the MoEUT's own, of which those are taken that leave a whole number selected."""


def active_experts(scale: Scale) -> Study:
    """Half as many experts selected, as many, and half as many again: in the paper 8, 16 and 24."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    usual = experts_of(scale.moeuts[size]).num_experts_per_tok
    entrants = fewest, as_usual, most = [
        scale.entrant(MOEUT if selected == usual else selecting(selected), size, corpus, f"K = {selected}")
        for selected in (usual // 2, usual, usual + usual // 2)
    ]
    return Study(
        name="active-experts",
        source="the ablation of the number of active experts",
        question="How many feed-forward experts should a token select, of as many as there are?",
        found="The more the better, with diminishing returns (caption; the numbers were not found).",
        entrants=entrants,
        charts=[by_place("by-active-experts", "experts selected")],
        directions=[*falling(entrants), Direction(gap(most, as_usual), gap(as_usual, fewest))],
    )


def expert_size(scale: Scale) -> Study:
    """Fewer and larger experts, so that a token meets as many weights: in the paper 128 to 1,024."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    experts = experts_of(scale.moeuts[size])
    usual = experts.moe_intermediate_size
    sizes = [usual * factor for factor in LARGER if experts.num_experts_per_tok % factor == 0]
    smallest, *larger = [
        scale.entrant(MOEUT if one == usual else with_experts_of(one), size, corpus, f"S = {one}") for one in sizes
    ]
    return Study(
        name="expert-size",
        source="the ablation of the size of experts",
        question="Many small feed-forward experts, or few large ones, of as many weights in all and for each token?",
        found="The smallest, of size 128, are best (caption; the numbers were not found, nor whether the number of "
        "experts was changed with their size; here it is).",
        entrants=[smallest, *larger],
        charts=[by_place("by-expert-size", "size of an expert")],
        directions=[direction for other in larger for direction in below([smallest], other)],
    )


def balance_scope(scale: Scale) -> Study:
    """Use balanced within each sequence, over the batch, or in each application of a layer."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    sequence = scale.entrant(MOEUT, size, corpus, title="balance over the sequence")
    others = [scale.entrant(balanced_over(scope), size, corpus) for scope in ("batch", "application")]
    return Study(
        name="balance-scope",
        source="section 2.2, on the balance term",
        question="Over what should the use of experts be balanced?",
        found="Balancing within each sequence makes training more stable than balancing over the batch, as the "
        "original σ-MoE does it (a claim without a figure; the third scope is not in the paper).",
        entrants=[sequence, *others],
        charts=[by_place("by-size", "size")],
        directions=below([sequence], others[0]),
        metrics=("cross_entropy", "perplexity", "dead_experts", "usage_entropy", "skipped_steps"),
    )


def without_switchhead(scale: Scale) -> Study:
    """MoEUT with dense heads that are gated; the feed-forward layer has the experts instead."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    moeut, gated, dense = (scale.entrant(system, size, corpus) for system in (MOEUT, GATED, DENSE))
    return Study(
        name="without-switchhead",
        source="the README of the official release",
        question="Does a MoEUT need experts in its attention?",
        found="Without them it is faster and hardly worse, and still better than the dense model (no numbers).",
        entrants=[moeut, gated, dense],
        charts=[by_place("by-size", "size")],
        directions=[
            *below([moeut], gated), *below([gated], dense), *below([gated], moeut, SECONDS),
        ],
        metrics=("cross_entropy", "perplexity", SECONDS),
    )  # fmt: skip


def attention_heads(scale: Scale) -> Study:
    """The MoEUT's few heads with many experts each, twice as many with half as many, and the dense model's."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    usual = attention_of(scale.moeuts[size]).num_attention_heads
    few, many = (
        scale.entrant(system, size, corpus, f"H = {heads}")
        for system, heads in ((MOEUT, usual), (with_heads(2 * usual), 2 * usual))
    )
    dense = scale.entrant(DENSE, size, corpus)
    dense = replace(dense, place=f"H = {dense.model.attention.num_attention_heads}")
    return Study(
        name="attention-heads",
        source="not in the paper: the number of heads",
        question="Does a MoEUT lose where a token must be found again, because it has fewer heads than a dense model?",
        found="Not asked. Its MoEUTs have four heads or more in each layer of a group, the dense models ten or more. "
        "What is checked is our guess that more heads are better, and that dense is no better than those.",
        entrants=[few, many, dense],
        charts=[by_place("by-heads", "heads in a layer")],
        directions=[*falling([few, many]), *below([many], dense)],
    )
