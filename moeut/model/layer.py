"""What is one layer? Attention and feed-forward around the residual stream, and where their layer norms stand.

A norm placement is three small functions: what a part's scores see (anything followed by a softmax or sigmoid), what
its projections see, and what the residual stream gets. Paper section 2.4 (peri-layernorm).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn

from moeut.experts import ExpertBackend
from moeut.model.attention import DenseAttention, DenseAttentionConfig
from moeut.model.attention_experts import AttentionExperts, AttentionExpertsConfig
from moeut.model.cache import CacheSlot
from moeut.model.feedforward import MLP, MLPConfig
from moeut.model.initialise import InitialWeights
from moeut.model.routing import Selection
from moeut.model.sigma_moe import SigmaMoE, SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoE, SoftmaxMoEConfig
from moeut.model.surroundings import Inputs, Surroundings
from moeut.model.switchhead import SwitchHeadAttention, SwitchHeadConfig

NormName = Literal["peri", "pre", "post"]
Norm = Callable[[Tensor], Tensor]
AttentionConfig = DenseAttentionConfig | SwitchHeadConfig | AttentionExpertsConfig
FeedForwardConfig = MLPConfig | SigmaMoEConfig | SoftmaxMoEConfig
Attention = DenseAttention | SwitchHeadAttention | AttentionExperts
FeedForward = MLP | SigmaMoE | SoftmaxMoE


class NormPlacement(NamedTuple):
    """inputs: (norm, x) → what a part reads; residual: (norm, x, update) → the stream afterwards."""

    inputs: Callable[[Norm, Tensor], Inputs]
    residual: Callable[[Norm, Tensor, Tensor], Tensor]


def _scored_alone(norm: Norm, x: Tensor) -> Inputs:
    return Inputs(norm(x), x)


def _both(norm: Norm, x: Tensor) -> Inputs:
    normalised = norm(x)
    return Inputs(normalised, normalised)


def _neither(norm: Norm, x: Tensor) -> Inputs:
    return Inputs(x, x)


def _add(norm: Norm, x: Tensor, update: Tensor) -> Tensor:
    return x + update


def _add_and_normalise(norm: Norm, x: Tensor, update: Tensor) -> Tensor:
    return norm(x + update)


def norm_placement(name: NormName) -> NormPlacement:
    """peri: only scores are normalised; pre: everything a part reads is; post: the sum is, after each part."""
    match name:
        case "peri":
            return NormPlacement(_scored_alone, _add)
        case "pre":
            return NormPlacement(_both, _add)
        case "post":
            return NormPlacement(_neither, _add_and_normalise)


class Layer(nn.Module):
    """x ← x + attention(x); x ← x + feed_forward(x), with layer norms where the placement says.

    Both branches are dropped out at rate `hidden_dropout` (the official release drops the attention branch only).
    """

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, hidden_size: int, *,
        norm: NormName, layer_norm_eps: float, hidden_dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.placement = norm_placement(norm)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(
        self, x: Tensor, around: Surroundings, slot: CacheSlot | None, source: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """x: [B, T, d] → the stream after this layer, and what its routers selected, by the router's name.

        source: [B, T, d], the stream that keys and values are made of, where it is another (halting).
        """
        queries = self.placement.inputs(self.attention_norm, x)
        sources = queries if source is None else self.placement.inputs(self.attention_norm, source)
        update, selections = self.attention(queries, sources, around, slot)
        x = self.placement.residual(self.attention_norm, x, self.dropout(update))
        update, more = self.feed_forward(self.placement.inputs(self.feed_forward_norm, x), around.tokens)
        x = self.placement.residual(self.feed_forward_norm, x, self.dropout(update))
        return x, selections | more

    def remember(self, source: Tensor, around: Surroundings, slot: CacheSlot) -> None:
        """Put the keys and values of tokens into the cache, and compute nothing else for them. source: [B, T, d]."""
        self.attention.remember(self.placement.inputs(self.attention_norm, source), around, slot)


def build_attention(
    config: AttentionConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
) -> Attention:
    """The attention that a configuration describes."""
    match config:
        case DenseAttentionConfig():
            return DenseAttention(config, hidden_size, initial)
        case SwitchHeadConfig():
            return SwitchHeadAttention(config, hidden_size, initial, backend)
        case AttentionExpertsConfig():
            return AttentionExperts(config, hidden_size, backend)


def build_feed_forward(
    config: FeedForwardConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
) -> FeedForward:
    """The feed-forward part that a configuration describes."""
    match config:
        case MLPConfig():
            return MLP(config, hidden_size, initial)
        case SigmaMoEConfig():
            return SigmaMoE(config, hidden_size, initial, backend)
        case SoftmaxMoEConfig():
            return SoftmaxMoE(config, hidden_size, backend)
