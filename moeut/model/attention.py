"""How do tokens look at each other? Causal or bidirectional attention with rotary positions; dense heads.

Letters: B batch, T query tokens, N key tokens, d hidden size, H heads, P head size.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moeut.model.cache import CacheSlot
from moeut.model.initialise import InitialWeights, Linear
from moeut.model.rope import rotate
from moeut.model.routing import Selection
from moeut.model.surroundings import Inputs, Surroundings
from moeut.settings import STRICT, PositiveFloat, PositiveInt, Probability


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DenseAttentionConfig:
    """Ordinary multi-head attention.

    output_gate: multiply each head's result by γ_h = σ(u·w_h), u the layer's normalised input: MoEUT with a single
    attention expert, as the official release computes it.
    partial_rotary_factor: share of each head's channels that is rotated. attention_dropout: rate on the attention
    weights.
    """

    kind: Literal["dense"] = "dense"
    num_attention_heads: PositiveInt
    head_dim: PositiveInt
    output_gate: bool = False
    rope_theta: PositiveFloat = 10000.0
    partial_rotary_factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    attention_dropout: Probability = 0.0


def remember(key: Tensor, value: Tensor, around: Surroundings, slot: CacheSlot | None) -> tuple[Tensor, Tensor]:
    """Rotate the keys, put both into the cache: key, value [B, T, H, P] → all there are [B, H, N, P].

    Rotated keys are what a cache holds, so nothing is rotated twice.
    """
    key, value = rotate(key.transpose(1, 2), around.phases), value.transpose(1, 2)
    return (key, value) if slot is None else slot.extend(key, value)


def attend(query: Tensor, key: Tensor, value: Tensor, around: Surroundings, dropout: float) -> Tensor:
    """softmax(rope(q) rope(k)ᵀ / √P + mask) v for query [B, T, H, P] and what `remember` returned → [B, T, H, P]."""
    query = rotate(query.transpose(1, 2), around.phases)
    context = scaled_dot_product_attention(
        query, key, value, attn_mask=around.mask, dropout_p=dropout, is_causal=around.is_causal
    )
    return context.transpose(1, 2)


class DenseAttention(nn.Module):
    """out = concat_h(γ_h · softmax(q_h k_hᵀ / √P) v_h) W_o, with γ_h = σ(u w_h) where the configuration asks for it.

    Queries, keys and the gate read `scored` (what the norm placement shows to a softmax or sigmoid), values read
    `projected`. No biases.
    """

    def __init__(self, config: DenseAttentionConfig, hidden_size: int, initial: InitialWeights) -> None:
        super().__init__()
        self.config = config
        width = config.num_attention_heads * config.head_dim
        self.q_proj = Linear(hidden_size, width, initial.dense(hidden_size))
        self.k_proj = Linear(hidden_size, width, initial.dense(hidden_size))
        self.v_proj = Linear(hidden_size, width, initial.dense(hidden_size))
        self.o_proj = Linear(width, hidden_size, initial.dense(width))
        if config.output_gate:
            self.gate_proj = Linear(hidden_size, config.num_attention_heads, initial.router(hidden_size))

    def forward(
        self, queries: Inputs, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """queries, and sources of keys and values: [B, T, d] → the update [B, T, d]; there is no selection to report.

        Without halting, sources are queries.
        """
        query = self._heads(self.q_proj(queries.scored))
        key, value, selections = self.remember(sources, around, slot)
        context = attend(query, key, value, around, self.config.attention_dropout if self.training else 0.0)
        if self.config.output_gate:
            context = context * self.gate_proj(queries.scored).sigmoid().unsqueeze(-1)
        return self.o_proj(context.flatten(2)), selections

    def remember(
        self, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, Tensor, dict[str, Selection]]:
        """Keys and values [B, H, N, P] of all tokens so far, these ones put into the cache."""
        key, value = self._heads(self.k_proj(sources.scored)), self._heads(self.v_proj(sources.projected))
        return *remember(key, value, around, slot), {}

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_attention_heads, self.config.head_dim))
