"""How many bytes does a model take? Weights, what a forward pass keeps for the backward pass, keys and values.

From the configuration alone. What a whole training step takes is measured in `moeut.training.memory`. Letters: d hidden
size, L executed layers, H heads, P head size.
"""

from typing import NamedTuple

import torch

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.cost import cost
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.layer import AttentionConfig, FeedForwardConfig
from moeut.model.routing import RouterConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.softmax_routing import SoftmaxRouterConfig
from moeut.model.switchhead import SwitchHeadConfig

INDEX_BYTES = torch.int64.itemsize


class Kept(NamedTuple):
    """What is kept of one token.

    numbers: in the model's dtype. wide: in at least float32. widened: in the model's dtype anyway, and once more in
    float32 where that is wider. indices: integers.
    """

    numbers: int = 0
    wide: int = 0
    widened: int = 0
    indices: int = 0

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Its bytes in a model of this dtype."""
        wide = torch.promote_types(dtype, torch.float32)
        copies = 0 if wide == dtype else self.widened
        return self.numbers * dtype.itemsize + (self.wide + copies) * wide.itemsize + self.indices * INDEX_BYTES


def weight_bytes(config: ModelConfig, dtype: torch.dtype = torch.float32) -> int:
    """All parameters, each shared one once."""
    return cost(config).parameters * dtype.itemsize


def cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.float32) -> int:
    """Keys and values of one token in every executed layer: 2·L·H·P numbers, whatever is shared."""
    width = config.attention.num_attention_heads * config.attention.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize


def activation_bytes(
    config: ModelConfig, context_length: int = 1024, batch_size: int = 1, dtype: torch.dtype = torch.float32, *,
    gradient_checkpointing: bool = False,
) -> int:  # fmt: skip
    """What a forward pass in training keeps for the backward pass over `batch_size` sequences; an estimate.

    gradient_checkpointing: of each layer its input only, and everything of the one that is being computed again.

    Within 1 percent of what autograd keeps of a float32 model with the `cpu` experts and without dropout, 5 percent of
    a 16-bit one (tested). Left out are gradients, and what an operation needs for itself alone.
    """
    d, depth, tokens = config.hidden_size, config.num_hidden_layers, batch_size * context_length
    # The stream before and after each norm, and the norms' means and deviations.
    around = Kept(numbers=4 * d, wide=4)
    parts = [_attention(config.attention, d, context_length), _feed_forward(config.feed_forward, d)]
    layer = tokens * sum(kept.num_bytes(dtype) for kept in (around, *parts))
    if isinstance(config.attention, AttentionExpertsConfig):
        # Distances and the causal triangle, the same for all sequences.
        layer += context_length**2 * (INDEX_BYTES + 1)
    ends = Kept(numbers=2 * d, wide=config.vocab_size)
    # A decision keeps both sides of the gate's GELU and a mixture.
    halting = Kept() if config.halting is None else Kept(wide=(3 * (depth - 1) + 1) * d)
    outside = tokens * (ends.num_bytes(dtype) + halting.num_bytes(dtype))
    return outside + (tokens * depth * d * dtype.itemsize + layer if gradient_checkpointing else depth * layer)


def _attention(config: AttentionConfig, d: int, context_length: int) -> Kept:
    """Of each map: queries, keys, values, their weighted sum and a copy of it, and the normaliser of the scores."""
    heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
    match config:
        case DenseAttentionConfig():
            return Kept(numbers=5 * width + (heads if config.output_gate else 0), wide=heads)
        case SwitchHeadConfig():
            routers = _sum([_router(config, d, heads)] * 2)
            return _sum([Kept(numbers=5 * width, wide=heads), routers])
        case AttentionExpertsConfig():
            # With a learned bias, scores are computed in at least float32 and kept, for each map and all keys.
            selected, positions = config.num_experts_per_tok, 2 * config.max_relative_positions + 1
            maps = Kept(
                numbers=2 * selected * width + selected * heads * positions,
                wide=(selected + 2) * width + selected * heads * context_length,
            )
            return _sum([maps, _softmax_router(config, d)])


def _feed_forward(config: FeedForwardConfig, d: int) -> Kept:
    """The hidden values of the MLP, or of all selected experts, and the router."""
    match config:
        case MLPConfig():
            return Kept(numbers=config.intermediate_size)
        case SigmaMoEConfig():
            # Without biases the products of an expert are one operation, which sums, and keeps, in at least float32.
            hidden = config.num_experts_per_tok * config.moe_intermediate_size
            values = Kept(numbers=hidden) if config.expert_bias else Kept(wide=hidden)
            return _sum([values, _router(config, d, groups=1)])
        case SoftmaxMoEConfig():
            values = Kept(numbers=config.num_experts_per_tok * config.moe_intermediate_size)
            return _sum([values, _softmax_router(config, d)])


def _router(config: RouterConfig, d: int, groups: int) -> Kept:
    """Scores, their softmax where balance is asked for, gates, and the selection in two orders."""
    scores, selected = groups * config.num_experts, groups * config.num_experts_per_tok
    return Kept(wide=scores * (2 if config.router_aux_loss_coef > 0 else 1) + selected, widened=d, indices=2 * selected)


def _softmax_router(config: SoftmaxRouterConfig, d: int) -> Kept:
    """The hidden layer, scores with their softmax and its logarithm, gates, and the selection in its orders."""
    selected = config.num_experts_per_tok
    return Kept(wide=d + 3 * config.num_experts + 2 * selected, widened=d, indices=3 * selected)


def _sum(kept: list[Kept]) -> Kept:
    return Kept(*map(sum, zip(*kept, strict=True)))
