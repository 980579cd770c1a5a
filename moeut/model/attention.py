"""How do tokens look at each other? Causal or bidirectional attention with rotary positions; dense heads.

Letters: B batch, T query tokens, N key tokens, d hidden size, H heads, P head size.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moeut.model.cache import CacheSlot
from moeut.model.initialise import InitialWeights, Linear
from moeut.model.rope import Phases, rotate
from moeut.model.routing import Selection
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


class Surroundings(NamedTuple):
    """What every layer of one forward pass shares.

    phases: rotation angles of the query tokens. mask: [B or 1, 1, T, N], True (or 0.0) where a query may look at a key,
    or None. is_causal: a plain causal triangle, T = N, and no mask. token_mask: [B, T], True at real tokens, or None.
    with_usage: whether routers add up softmax(scores) for the balance term.
    """

    phases: Phases
    mask: Tensor | None
    is_causal: bool
    token_mask: Tensor | None
    with_usage: bool


def visibility(padding_mask: Tensor | None, num_queries: int, num_keys: int, *, causal: bool, device: torch.device):
    """Which query may look at which key: (mask or None, is_causal), made only when a plain triangle does not say it.

    The last of num_queries queries stands at the last of num_keys keys. padding_mask: [B, num_keys], True at real
    tokens. A query that may look at nothing (padding on the left) looks at everything instead: its result is used by
    nobody, and a softmax over nothing would be NaN.
    """
    if padding_mask is None and (not causal or num_queries == 1):
        return None, False
    if padding_mask is None and num_queries == num_keys:
        return None, True
    mask = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    if causal:
        mask = mask.tril(num_keys - num_queries)
    if padding_mask is not None:
        mask = mask & padding_mask[:, None, None, :]
        mask = mask | ~mask.any(dim=-1, keepdim=True)
    return mask, False


def attend(
    query: Tensor, key: Tensor, value: Tensor, around: Surroundings, slot: CacheSlot | None, dropout: float
) -> Tensor:
    """softmax(rope(q) rope(k)ᵀ / √P + mask) v for query, key, value [B, T, H·P or H, P] → [B, T, H, P].

    Rotated keys and values are what a cache holds, so nothing is rotated twice.
    """
    query, key = rotate(query.transpose(1, 2), around.phases), rotate(key.transpose(1, 2), around.phases)
    value = value.transpose(1, 2)
    if slot is not None:
        key, value = slot.extend(key, value)
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
        self, scored: Tensor, projected: Tensor, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """scored, projected: [B, T, d] → the update [B, T, d]; there is no selection to report."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query = self.q_proj(scored).unflatten(-1, heads)
        key = self.k_proj(scored).unflatten(-1, heads)
        value = self.v_proj(projected).unflatten(-1, heads)
        dropout = self.config.attention_dropout if self.training else 0.0
        context = attend(query, key, value, around, slot, dropout)
        if self.config.output_gate:
            context = context * self.gate_proj(scored).sigmoid().unsqueeze(-1)
        return self.o_proj(context.flatten(2)), {}
