"""What is one layer? Attention and feed-forward around the residual stream, and where their layer norms stand.

A norm placement is three small functions: what a part's scores see (anything followed by a softmax or sigmoid), what
its projections see, and what the residual stream gets. Paper section 2.4 (peri-layernorm).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn

from moeut.experts import ExpertBackend
from moeut.model.attention import DenseAttention, DenseAttentionConfig, Surroundings
from moeut.model.cache import CacheSlot
from moeut.model.feedforward import MLP, MLPConfig
from moeut.model.initialise import InitialWeights
from moeut.model.routing import Selection
from moeut.model.sigma_moe import SigmaMoE, SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadAttention, SwitchHeadConfig

NormName = Literal["peri", "pre", "post"]
Norm = Callable[[Tensor], Tensor]


class NormPlacement(NamedTuple):
    """inputs: (norm, x) → (what is scored, what is projected); residual: (norm, x, update) → the stream afterwards."""

    inputs: Callable[[Norm, Tensor], tuple[Tensor, Tensor]]
    residual: Callable[[Norm, Tensor, Tensor], Tensor]


def _scored_alone(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    return norm(x), x


def _both(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    normalised = norm(x)
    return normalised, normalised


def _neither(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


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
        self, attention: nn.Module, feed_forward: nn.Module, hidden_size: int, *,
        norm: NormName, layer_norm_eps: float, hidden_dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.placement = norm_placement(norm)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(self, x: Tensor, around: Surroundings, slot: CacheSlot | None) -> tuple[Tensor, dict[str, Selection]]:
        """x: [B, T, d] → the stream after this layer, and what its routers selected, by the router's name."""
        scored, projected = self.placement.inputs(self.attention_norm, x)
        update, selections = self.attention(scored, projected, around, slot)
        x = self.placement.residual(self.attention_norm, x, self.dropout(update))
        scored, projected = self.placement.inputs(self.feed_forward_norm, x)
        update, more = self.feed_forward(scored, projected, around.token_mask, with_usage=around.with_usage)
        x = self.placement.residual(self.feed_forward_norm, x, self.dropout(update))
        return x, selections | more


def build_attention(
    config: DenseAttentionConfig | SwitchHeadConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
) -> DenseAttention | SwitchHeadAttention:
    """The attention that a configuration describes."""
    match config:
        case DenseAttentionConfig():
            return DenseAttention(config, hidden_size, initial)
        case SwitchHeadConfig():
            return SwitchHeadAttention(config, hidden_size, initial, backend)


def build_feed_forward(
    config: MLPConfig | SigmaMoEConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
) -> MLP | SigmaMoE:
    """The feed-forward part that a configuration describes."""
    match config:
        case MLPConfig():
            return MLP(config, hidden_size, initial)
        case SigmaMoEConfig():
            return SigmaMoE(config, hidden_size, initial, backend)
