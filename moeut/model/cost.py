"""What does a model cost? Parameters and multiply-accumulates, from the configuration alone.

Paper section 3 (parameters) and the appendix on computation, whose own count is `moeut.model.paper_macs`; bytes are
`moeut.model.footprint`. Letters: d hidden size, L executed layers, N context length, H heads, P head size, A attention
experts (of each head, in SwitchHead), E feed-forward experts, K of them selected, S expert size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.layer import AttentionConfig, FeedForwardConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig


@dataclass(frozen=True)
class Cost:
    """Parameters and computation of one configuration.

    parameters: all of them, each shared one once. active_parameters: those that one token meets in one pass through
    every layer that has weights of its own: of each router's experts only the selected ones. embedding_parameters:
    embedding and head with its bias.

    macs_per_token: multiply-accumulates of a forward pass for one token among `context_length`, with full (not halved)
    attention: products with matrices, routers and head included; scores and weighted values; and
    reduction_macs_per_token, the weighted sums over selected experts. Left out are norms, softmax, rotations, biases
    and halting's mixtures. A token that halts is counted as if it did not, because that depends on the text.
    training_macs_per_token: forward and backward pass; every product of the one is two in the other. Recomputing
    activations adds at most another forward pass of the layers.
    """

    parameters: int
    active_parameters: int
    embedding_parameters: int
    context_length: int
    macs_per_token: int
    reduction_macs_per_token: int
    training_macs_per_token: int


class Weights(NamedTuple):
    """Tensors of `numbers` numbers each: how many there are, how many a token meets, how often it multiplies by one."""

    numbers: int
    there: int
    met: int
    multiplied: int


def cost(config: ModelConfig, context_length: int = 1024) -> Cost:
    """The cost of a configuration; nothing is built. Agrees with the built model exactly (tested)."""
    d, depth = config.hidden_size, config.num_hidden_layers
    layer = [*attention_weights(config.attention, d), *feed_forward_weights(config.feed_forward, d), vectors(4 * d)]
    gate = [] if config.halting is None else halting_weights(d)
    tables = 1 if config.tie_word_embeddings else 2
    embedding = [vectors(config.vocab_size * d, tables), vectors(config.vocab_size)]
    repeated, ends = [*layer, *gate], [*embedding, vectors(2 * d if config.has_final_norm else 0)]
    reductions = depth * (attention_reductions(config.attention, d) + feed_forward_reductions(config.feed_forward, d))
    # Whether to go on is asked between layers, once less than there are layers.
    products = depth * _products(layer) + (depth - 1) * _products(gate) + config.vocab_size * d
    macs = products + depth * score_macs(config.attention, context_length) + reductions
    return Cost(
        parameters=config.group_size * _all(repeated) + _all(ends),
        active_parameters=config.group_size * _met(repeated) + _all(ends),
        embedding_parameters=_all(embedding),
        context_length=context_length,
        macs_per_token=macs,
        reduction_macs_per_token=reductions,
        training_macs_per_token=3 * macs,
    )


def matrices(numbers: int, there: int = 1) -> Weights:
    """Matrices that every token is multiplied by."""
    return Weights(numbers, there, there, there)


def vectors(numbers: int, there: int = 1) -> Weights:
    """Biases, norms and whatever else no token is multiplied by."""
    return Weights(numbers, there, there, 0)


def experts(numbers: int, there: int, met: int) -> Weights:
    """Matrices of which a token is multiplied by some."""
    return Weights(numbers, there, met, met)


def expert_vectors(numbers: int, there: int, met: int) -> Weights:
    """Biases of which a token meets some."""
    return Weights(numbers, there, met, 0)


def attention_weights(config: AttentionConfig, d: int) -> list[Weights]:
    """The parameters of an attention part."""
    width = config.num_attention_heads * config.head_dim
    match config:
        case DenseAttentionConfig():
            return [matrices(d * width, 4), matrices(d * config.num_attention_heads, 1 if config.output_gate else 0)]
        case SwitchHeadConfig():
            there = config.num_attention_heads * config.num_experts
            met = config.num_attention_heads * config.num_experts_per_tok
            return [
                matrices(d * width, 2),
                matrices(d * there, 2),
                vectors(there, 2 if config.router_bias else 0),
                experts(d * config.head_dim, 2 * there, 2 * met),
            ]
        case AttentionExpertsConfig():
            there, met = config.num_experts, config.num_experts_per_tok
            return [
                *softmax_router_weights(there, d),
                matrices(d * width, 2),
                experts(d * width, 2 * there, 2 * met),
                Weights(width * (2 * config.max_relative_positions + 1), there=1, met=1, multiplied=met),
            ]


def feed_forward_weights(config: FeedForwardConfig, d: int) -> list[Weights]:
    """The parameters of a feed-forward part."""
    if isinstance(config, MLPConfig):
        return [matrices(d * config.intermediate_size, 2), vectors(config.intermediate_size + d)]
    there, met, size = config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size
    match config:
        case SigmaMoEConfig():
            return [
                matrices(d * there),
                vectors(there, 1 if config.router_bias else 0),
                experts(d * size, 2 * there, 2 * met),
                expert_vectors(size if config.expert_bias else 0, there, met),
                vectors(d, 1 if config.output_bias else 0),
            ]
        case SoftmaxMoEConfig():
            return [
                *softmax_router_weights(there, d),
                experts(d * size, 2 * there, 2 * met),
                expert_vectors(size + d, there, met),
            ]


def softmax_router_weights(num_experts: int, d: int) -> list[Weights]:
    """The parameters of a router with a hidden layer."""
    return [matrices(d * d), vectors(d), matrices(d * num_experts)]


def halting_weights(d: int) -> list[Weights]:
    """The parameters of a gate that says whether a token goes on."""
    return [matrices(d * d), vectors(d), matrices(2 * d)]


def score_macs(config: AttentionConfig, context_length: int) -> int:
    """One token's scores with every key, and its weighted sum of values: 2·H·P·N, in SUT for each selected expert."""
    maps = config.num_experts_per_tok if isinstance(config, AttentionExpertsConfig) else 1
    return 2 * maps * config.num_attention_heads * config.head_dim * context_length


def attention_reductions(config: AttentionConfig, d: int) -> int:
    """One token's weighted sums over attention experts: SwitchHead's values H·K·P, outputs H·K·d; SUT's outputs K·d."""
    match config:
        case DenseAttentionConfig():
            return 0
        case SwitchHeadConfig():
            return config.num_attention_heads * config.num_experts_per_tok * (config.head_dim + d)
        case AttentionExpertsConfig():
            return config.num_experts_per_tok * d


def feed_forward_reductions(config: FeedForwardConfig, d: int) -> int:
    """One token's weighted sum over feed-forward experts: K·d."""
    return 0 if isinstance(config, MLPConfig) else config.num_experts_per_tok * d


def _all(weights: Sequence[Weights]) -> int:
    return sum(one.numbers * one.there for one in weights)


def _met(weights: Sequence[Weights]) -> int:
    return sum(one.numbers * one.met for one in weights)


def _products(weights: Sequence[Weights]) -> int:
    return sum(one.numbers * one.multiplied for one in weights)
