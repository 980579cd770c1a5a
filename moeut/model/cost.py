"""What does a model cost? Parameters and multiply-accumulates, from the configuration alone.

Paper section 3 (parameters) and the appendix on computation. Letters: d hidden size, V vocabulary, L executed layers, G
layers with weights of their own, N context length.
"""

from dataclasses import dataclass

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
    embedding and head with its bias. macs_per_token: multiply-accumulates of a forward pass for one token among
    `context` others, with full (not halved) attention, routers and head included, without norms, softmax and rotation;
    a token that halts is counted as if it did not, because that depends on the text.
    """

    parameters: int
    active_parameters: int
    embedding_parameters: int
    context_length: int
    macs_per_token: int


def cost(config: ModelConfig, context_length: int = 1024) -> Cost:
    """The cost of a configuration; nothing is built. Agrees with the built model exactly (tested)."""
    d = config.hidden_size
    attention_all, attention_active = _attention_parameters(config.attention, d)
    feed_forward_all, feed_forward_active = _feed_forward_parameters(config.feed_forward, d)
    attention_macs, feed_forward_macs = _attention_macs(config.attention, d), _feed_forward_macs(config.feed_forward, d)
    norms = 4 * d
    gate, gate_macs = (0, 0) if config.halting is None else (d * d + 3 * d, d * d + 2 * d)
    head = config.vocab_size if config.tie_word_embeddings else config.vocab_size * d + config.vocab_size
    embedding = config.vocab_size * d + head
    ends = embedding + (2 * d if config.has_final_norm else 0)
    layer_macs = attention_macs + _score_macs(config.attention, context_length) + feed_forward_macs
    return Cost(
        parameters=config.group_size * (attention_all + feed_forward_all + norms + gate) + ends,
        active_parameters=config.group_size * (attention_active + feed_forward_active + norms + gate) + ends,
        embedding_parameters=embedding,
        context_length=context_length,
        macs_per_token=config.num_hidden_layers * (layer_macs + gate_macs) - gate_macs + config.vocab_size * d,
    )


def _attention_parameters(config: AttentionConfig, d: int) -> tuple[int, int]:
    """All parameters of an attention part, and those that one token meets."""
    width = config.num_attention_heads * config.head_dim
    match config:
        case DenseAttentionConfig():
            gate = config.num_attention_heads * d if config.output_gate else 0
            return 4 * d * width + gate, 4 * d * width + gate
        case SwitchHeadConfig():
            routers = 2 * config.num_attention_heads * config.num_experts * (d + config.router_bias)
            experts = 2 * width * d
            dense = 2 * width * d + routers
            return dense + config.num_experts * experts, dense + config.num_experts_per_tok * experts
        case AttentionExpertsConfig():
            experts = 2 * width * d
            dense = 2 * width * d + _softmax_router(config.num_experts, d) + d + _relative_positions(config)
            return dense + config.num_experts * experts, dense + config.num_experts_per_tok * experts


def _attention_macs(config: AttentionConfig, d: int) -> int:
    """One token's products with the matrices of an attention part, without biases."""
    match config:
        case AttentionExpertsConfig():
            biases = d + _relative_positions(config)
            relative = config.num_experts_per_tok * _relative_positions(config)
            return _attention_parameters(config, d)[1] - biases + relative
        case SwitchHeadConfig(num_attention_heads=heads, num_experts=experts, router_bias=True):
            return _attention_parameters(config, d)[1] - 2 * heads * experts
        case _:
            return _attention_parameters(config, d)[1]


def _score_macs(config: AttentionConfig, context_length: int) -> int:
    """One token's scores with every key, and its weighted sum of values, in every attention map."""
    maps = config.num_experts_per_tok if isinstance(config, AttentionExpertsConfig) else 1
    return 2 * maps * config.num_attention_heads * config.head_dim * context_length


def _feed_forward_parameters(config: FeedForwardConfig, d: int) -> tuple[int, int]:
    """All parameters of a feed-forward part, and those that one token meets."""
    match config:
        case MLPConfig():
            size = 2 * d * config.intermediate_size + config.intermediate_size + d
            return size, size
        case SigmaMoEConfig():
            expert = (2 * d + config.expert_bias) * config.moe_intermediate_size
            dense = config.num_experts * (d + config.router_bias) + (d if config.output_bias else 0)
        case SoftmaxMoEConfig():
            expert = (2 * d + 1) * config.moe_intermediate_size + d
            dense = _softmax_router(config.num_experts, d) + d
    return config.num_experts * expert + dense, config.num_experts_per_tok * expert + dense


def _feed_forward_macs(config: FeedForwardConfig, d: int) -> int:
    """One token's products with the matrices of a feed-forward part, without biases."""
    match config:
        case MLPConfig():
            return 2 * d * config.intermediate_size
        case SigmaMoEConfig():
            return 2 * d * config.num_experts_per_tok * config.moe_intermediate_size + config.num_experts * d
        case SoftmaxMoEConfig():
            experts = 2 * d * config.num_experts_per_tok * config.moe_intermediate_size
            return experts + _softmax_router(config.num_experts, d)


def _softmax_router(num_experts: int, d: int) -> int:
    """The two matrices of a router with a hidden layer."""
    return d * d + num_experts * d


def _relative_positions(config: AttentionExpertsConfig) -> int:
    return config.num_attention_heads * config.head_dim * (2 * config.max_relative_positions + 1)
