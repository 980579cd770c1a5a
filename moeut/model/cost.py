"""What does a model cost? Parameters and multiply-accumulates, from the configuration alone.

Paper section 3 (parameters) and the appendix on computation. Letters: d hidden size, V vocabulary, L executed layers, G
layers with weights of their own, N context length.
"""

from dataclasses import dataclass

from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig


@dataclass(frozen=True)
class Cost:
    """Parameters and computation of one configuration.

    parameters: all of them, each shared one once. active_parameters: those that one token meets in one pass through
    every layer that has weights of its own: of each router's experts only the selected ones. embedding_parameters:
    embedding and head with its bias. macs_per_token: multiply-accumulates of a forward pass for one token among
    `context` others, with full (not halved) attention, routers and head included, without norms, softmax and rotation.
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
    norms = 4 * d
    head = config.vocab_size if config.tie_word_embeddings else config.vocab_size * d + config.vocab_size
    embedding = config.vocab_size * d + head
    final_norm = 0 if config.norm == "post" else 2 * d
    attention_macs = attention_active + _score_macs(config.attention, context_length)
    layer_macs = attention_macs + _feed_forward_macs(config.feed_forward, d)
    return Cost(
        parameters=config.group_size * (attention_all + feed_forward_all + norms) + embedding + final_norm,
        active_parameters=config.group_size * (attention_active + feed_forward_active + norms) + embedding + final_norm,
        embedding_parameters=embedding,
        context_length=context_length,
        macs_per_token=config.num_hidden_layers * layer_macs + config.vocab_size * d,
    )


def _attention_parameters(config: DenseAttentionConfig | SwitchHeadConfig, d: int) -> tuple[int, int]:
    """All parameters of an attention part, and those that one token meets."""
    width = config.num_attention_heads * config.head_dim
    match config:
        case DenseAttentionConfig():
            gate = config.num_attention_heads * d if config.output_gate else 0
            return 4 * d * width + gate, 4 * d * width + gate
        case SwitchHeadConfig():
            routers = 2 * config.num_attention_heads * config.num_experts * d
            experts = 2 * width * d
            dense = 2 * width * d + routers
            return dense + config.num_experts * experts, dense + config.num_experts_per_tok * experts


def _score_macs(config: DenseAttentionConfig | SwitchHeadConfig, context_length: int) -> int:
    """One token's scores with every key, and its weighted sum of values."""
    return 2 * config.num_attention_heads * config.head_dim * context_length


def _feed_forward_parameters(config: MLPConfig | SigmaMoEConfig, d: int) -> tuple[int, int]:
    """All parameters of a feed-forward part, and those that one token meets."""
    match config:
        case MLPConfig():
            size = 2 * d * config.intermediate_size + config.intermediate_size + d
            return size, size
        case SigmaMoEConfig():
            expert = 2 * d * config.moe_intermediate_size
            router = config.num_experts * d
            return config.num_experts * expert + router, config.num_experts_per_tok * expert + router


def _feed_forward_macs(config: MLPConfig | SigmaMoEConfig, d: int) -> int:
    """One token's products in a feed-forward part: its active matrices, without biases."""
    match config:
        case MLPConfig():
            return 2 * d * config.intermediate_size
        case SigmaMoEConfig():
            return _feed_forward_parameters(config, d)[1]
