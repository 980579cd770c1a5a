"""How are layers best shared, and where do their norms stand? Figures 6 and 8, and a question of ours."""

from collections.abc import Iterator
from dataclasses import replace

from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import Direction, Entrant, Study, below, by_place, gap
from moeut.experiments.reproduction.systems import (
    AABB,
    DENSE,
    MOEUT,
    SIGMA_MOE,
    System,
    in_groups_of,
    with_long_embeddings,
    with_norm,
)


def groups(scale: Scale) -> Study:
    """Every group size that divides the depth; and the same group with each layer repeated before the next."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    base = scale.moeuts[size]
    depth = base.num_hidden_layers

    def system(group_size: int) -> System:
        if group_size == base.group_size:
            return MOEUT
        # One attention expert and nothing shared: the same model under its own name.
        return SIGMA_MOE if group_size == depth else in_groups_of(group_size)

    by_group = {
        group_size: scale.entrant(system(group_size), size, corpus, f"G = {group_size}", title="ABAB")
        for group_size in range(1, depth + 1)
        if depth % group_size == 0
    }
    aabb = scale.entrant(AABB, size, corpus, f"G = {base.group_size}")
    best = by_group[base.group_size]
    return Study(
        name="groups",
        source="figure 6",
        question="How many layers should a group have that is repeated, and in which order should they run?",
        found="Groups of two are best; larger ones are worse, and so is a single layer (caption; the numbers, and how "
        "AABB compares, were not found).",
        entrants=[*by_group.values(), aabb],
        charts=[by_place("by-group-size", "layers in a group")],
        directions=[
            direction for other in by_group.values() if other is not best for direction in below([best], other)
        ],
    )


def norms(scale: Scale) -> Study:
    """Peri-, pre- and post-layernorm."""
    [corpus] = scale.corpora("c4")
    teams = [
        [scale.entrant(MOEUT, size, corpus, title="peri-layernorm")]
        + [scale.entrant(with_norm(norm), size, corpus) for norm in ("pre", "post")]
        for size in scale.sizes("44m", "244m")
    ]
    return Study(
        name="norms",
        source="figure 8",
        question="Where should the layer norms of a MoEUT stand?",
        found="Peri-layernorm is best, by more at 44M than at 244M (caption; the numbers, and the order of the other "
        "two, were not found).",
        entrants=[entrant for team in teams for entrant in team],
        charts=[by_place("by-size", "size")],
        directions=[direction for peri, *others in teams for other in others for direction in below([peri], other)],
    )


SHORT, LONG = "length 1", "length √d"


def embedding_length(scale: Scale) -> Study:
    """Peri-layernorm, pre-layernorm and dense, each with embeddings that begin short and long."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")

    def both(system: System) -> Iterator[Entrant]:
        """With short embeddings, with long ones; the one that other studies have, under the name that it has there."""
        own = scale.entrant(system, size, corpus).model
        short, long = replace(own, embedding_scale=None), with_long_embeddings(own)
        for word, place, model in (("short", SHORT, short), ("long", LONG, long)):
            other = System(system.title, f"{system.variant}-{word}-embeddings", lambda base, model=model: model)
            yield scale.entrant(system if model == own else other, size, corpus, place)

    peri, *others = (list(both(system)) for system in (MOEUT, with_norm("pre"), DENSE))
    return Study(
        name="embedding-length",
        source="not in the paper: the embeddings' length at the start",
        question="How much does a model lose whose embeddings begin as vectors of length 1, and not of length √d?",
        found="Nothing; all its models with peri- or pre-layernorm begin with length 1 (the training code). Of the "
        "formulas follows that it makes no difference to peri-layernorm, and hides the words from the first layers "
        "of pre-layernorm.",
        entrants=[entrant for pair in (peri, *others) for entrant in pair],
        charts=[by_place("by-length", "embeddings at the start")],
        directions=[Direction(gap(peri[1], peri[0]), gap(long, short)) for short, long in others],
    )
