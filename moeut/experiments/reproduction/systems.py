"""Who is compared? Systems, each made beside a MoEUT with as many parameters (paper, section 3).

What is set to meet the parameters is what `moeut match` sets: the number of experts, or the width of a dense MLP. Sizes
that the paper has are its own (`moeut.presets`); these functions make all others.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from moeut.experiments.budget import match, nearest
from moeut.model.cost import cost
from moeut.model.language_model import ModelConfig
from moeut.model.layer import NormName
from moeut.model.routing import BalanceScope
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.variants import dense, gated, grouped, sut, universal


class System(NamedTuple):
    """A kind of model that takes part in a comparison.

    title: as figures and tables call it. variant: as `moeut.presets` and the names of runs do. beside: makes it of the
    MoEUT that it is compared with.
    """

    title: str
    variant: str
    beside: Callable[[ModelConfig], ModelConfig]


def attention_of(base: ModelConfig) -> SwitchHeadConfig:
    """The attention of a MoEUT."""
    assert isinstance(base.attention, SwitchHeadConfig)
    return base.attention


def experts_of(base: ModelConfig) -> SigmaMoEConfig:
    """The feed-forward layer of a MoEUT."""
    assert isinstance(base.feed_forward, SigmaMoEConfig)
    return base.feed_forward


def as_large_as(base: ModelConfig, config: ModelConfig) -> ModelConfig:
    """`config` with as many experts, or so wide an MLP, that it has the parameters of `moeut`."""
    return match(config, {"parameters": cost(base).parameters}).config


def with_long_embeddings(config: ModelConfig) -> ModelConfig:
    """`config` with its embeddings multiplied by √hidden_size.

    The paper's begin as vectors of length 1. What a layer with pre-layernorm adds is as long whatever the embeddings
    are, and hides such short ones until they have grown: nothing in 100,000 steps, much in 1,000. With peri-layernorm
    all updates are as long as the embeddings make them, and their length does not matter. So rivals with
    pre-layernorm get long ones in short trainings (the study `embedding-length`; docs/results).
    """
    return replace(config, embedding_scale=math.sqrt(config.hidden_size))


def dense_beside(base: ModelConfig) -> ModelConfig:
    """A dense Transformer of the same width, depth and size of heads, of which it has as many as fill the width."""
    heads = base.hidden_size // base.attention.head_dim
    return as_large_as(base, _dense_shape(base, dense, heads))


def universal_beside(base: ModelConfig) -> ModelConfig:
    """A Universal Transformer: one dense layer, so wide that with an MLP four times as wide it is as large."""

    def parameters(heads: int) -> int:
        return cost(_dense_shape(base, universal, heads)).parameters

    return as_large_as(base, _dense_shape(base, universal, nearest(parameters, cost(base).parameters, 1)))


def sut_beside(base: ModelConfig) -> ModelConfig:
    """A SUT of the same width and depth, with two experts selected that are as wide as all that the MoEUT selects."""
    attention, experts = attention_of(base), experts_of(base)
    return as_large_as(
        base,
        sut(
            hidden_size=base.hidden_size,
            num_hidden_layers=base.num_hidden_layers,
            num_attention_heads=attention.num_attention_heads,
            head_dim=attention.head_dim,
            attention_experts=2 * attention.num_experts,
            experts=experts.num_experts_per_tok,
            expert_size=experts.num_experts_per_tok * experts.moe_intermediate_size // 2,
            vocab_size=base.vocab_size,
        ),
    )


def in_groups_of(group_size: int) -> System:
    """A MoEUT with so many layers in its group; attention experts so that all layers together have as many."""

    def beside(base: ModelConfig) -> ModelConfig:
        attention, experts = attention_of(base), experts_of(base)
        there = max(1, attention.num_experts * base.group_size // group_size)
        return as_large_as(
            base,
            grouped(base, group_size=group_size, attention_experts=there, experts=experts.num_experts_per_tok),
        )

    return System("MoEUT", f"moeut-g{group_size}", beside)


def with_heads(heads: int) -> System:
    """A MoEUT with so many heads in each layer, and attention experts so that all heads together have as many."""

    def beside(base: ModelConfig) -> ModelConfig:
        usual = attention_of(base)
        there = max(1, usual.num_attention_heads * usual.num_experts // heads)
        selected = min(usual.num_experts_per_tok, there)
        attention = replace(usual, num_attention_heads=heads, num_experts=there, num_experts_per_tok=selected)
        return as_large_as(base, replace(base, attention=attention))

    return System("MoEUT", f"moeut-h{heads}", beside)


def with_norm(placement: NormName) -> System:
    """A MoEUT with its layer norms elsewhere."""

    def beside(base: ModelConfig) -> ModelConfig:
        moved = replace(base, norm=placement)
        return with_long_embeddings(moved) if placement == "pre" else moved

    return System(f"{placement}-layernorm", f"moeut-{placement}", beside)


def selecting(experts_per_tok: int) -> System:
    """A MoEUT of which each token selects so many feed-forward experts of those that are there."""

    def beside(base: ModelConfig) -> ModelConfig:
        return replace(base, feed_forward=replace(experts_of(base), num_experts_per_tok=experts_per_tok))

    return System("MoEUT", f"moeut-k{experts_per_tok}", beside)


def with_experts_of(size: int) -> System:
    """A MoEUT with experts of this size, of which a token selects so many that it meets as many weights."""

    def beside(base: ModelConfig) -> ModelConfig:
        experts = experts_of(base)
        selected = experts.num_experts_per_tok * experts.moe_intermediate_size // size
        fewer = replace(experts, num_experts_per_tok=selected, num_experts=selected, moe_intermediate_size=size)
        return as_large_as(base, replace(base, feed_forward=fewer))

    return System("MoEUT", f"moeut-s{size}", beside)


def balanced_over(scope: BalanceScope) -> System:
    """A MoEUT whose balance term averages the use of experts over something else than a sequence."""

    def beside(base: ModelConfig) -> ModelConfig:
        attention, experts = attention_of(base), experts_of(base)
        return replace(
            base,
            attention=replace(attention, balance_scope=scope),
            feed_forward=replace(experts, balance_scope=scope),
        )

    return System(f"balance over the {scope}", f"moeut-{scope}-balance", beside)


MOEUT = System("MoEUT", "moeut", lambda base: base)
AABB = System("MoEUT, AABB", "moeut-aabb", lambda base: replace(base, layer_order="aabb"))
GATED = System(
    "without SwitchHead", "moeut-gated",
    lambda base: as_large_as(base, gated(base, experts=experts_of(base).num_experts)),
)  # fmt: skip
SIGMA_MOE = System("σ-MoE", "sigma-moe", lambda base: in_groups_of(base.num_hidden_layers).beside(base))
DENSE = System("dense", "dense", dense_beside)
UNIVERSAL = System("Universal Transformer", "ut", universal_beside)
SUT = System("SUT", "sut", sut_beside)
SUT_WITHOUT_ACT = System("SUT without ACT", "sut-without-act", lambda base: replace(sut_beside(base), halting=None))


def _dense_shape(base: ModelConfig, variant: Callable[..., ModelConfig], heads: int) -> ModelConfig:
    """A dense model of the MoEUT's depth and size of heads, as wide as its heads, with the usual MLP."""
    width = heads * base.attention.head_dim
    shape = variant(
        hidden_size=width, num_hidden_layers=base.num_hidden_layers, num_attention_heads=heads,
        head_dim=base.attention.head_dim, intermediate_size=4 * width, vocab_size=base.vocab_size,
    )  # fmt: skip
    return with_long_embeddings(shape)
