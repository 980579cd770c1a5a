"""Do the ablations of experts vary what they say, and only that?"""

from dataclasses import replace

from small_study import inequalities

from moeut.experiments.reproduction.scales import PAPER, SMALL
from moeut.experiments.reproduction.selection import (
    active_experts,
    attention_heads,
    balance_scope,
    expert_size,
    without_switchhead,
)
from moeut.experiments.reproduction.study import Direction, gap
from moeut.experiments.reproduction.systems import attention_of, experts_of


def test_active_experts():
    study = active_experts(PAPER)
    assert [experts_of(entrant.model).num_experts_per_tok for entrant in study.entrants] == [8, 16, 24]
    fewest, usual, most = study.entrants
    assert [(less.entrant, more.entrant) for less, more in inequalities(study)] == [(usual, fewest), (most, usual)]
    assert study.directions[-1] == Direction(gap(most, usual), gap(usual, fewest))


def test_expert_size():
    """In the paper 128 to 1,024; what a token meets of experts stays the same."""
    for scale, sizes in ((PAPER, [128, 256, 512, 1024]), (SMALL, [64, 128, 192, 384])):
        parts = [experts_of(entrant.model) for entrant in expert_size(scale).entrants]
        assert [part.moe_intermediate_size for part in parts] == sizes
        assert len({part.moe_intermediate_size * part.num_experts_per_tok for part in parts}) == 1


def test_balance_scope():
    sequence, *others = balance_scope(SMALL).entrants
    assert experts_of(sequence.model).balance_scope == "sequence"
    for other, scope in zip(others, ("batch", "application"), strict=True):
        assert experts_of(other.model).balance_scope == scope
        assert replace(other.model, attention=sequence.model.attention, feed_forward=sequence.model.feed_forward) == (
            sequence.model
        )


def test_without_switchhead():
    study = without_switchhead(PAPER)
    moeut, gated, dense = study.entrants
    assert [entrant.model.attention.kind for entrant in study.entrants] == ["switchhead", "dense", "dense"]
    pairs = [(less.entrant, more.entrant) for less, more in inequalities(study)]
    assert pairs == [(moeut, gated), (gated, dense), (gated, moeut)]
    assert inequalities(study)[-1][0].metric == "seconds_per_step"


def test_attention_heads():
    """Twice the heads with half the experts each; the dense model with its own."""
    for scale, heads, experts in ((PAPER, [4, 8, 16], [10, 5]), (SMALL, [2, 4, 4], [6, 3])):
        study = attention_heads(scale)
        few, many, dense = study.entrants
        assert [entrant.model.attention.num_attention_heads for entrant in study.entrants] == heads
        assert [entrant.place for entrant in study.entrants] == [f"H = {count}" for count in heads]
        assert [attention_of(entrant.model).num_experts for entrant in (few, many)] == experts
        assert replace(many.model, attention=few.model.attention, feed_forward=few.model.feed_forward) == few.model
        pairs = [(less.entrant, more.entrant) for less, more in inequalities(study)]
        assert pairs == [(many, few), (many, dense)]
