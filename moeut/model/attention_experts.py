"""How does the Sparse Universal Transformer attend? Each token picks whole attention experts; all share keys, values.

SUT is arXiv 2310.07096. Letters: B batch, T query tokens, N key tokens, d hidden size, A experts, K selected, H heads
in each, P head size, R the farthest relative position.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moeut.experts import ExpertBackend, expert_linear
from moeut.model.cache import CacheSlot
from moeut.model.initialise import Linear, Uniform, initialise, zeros
from moeut.model.routing import Selection
from moeut.model.softmax_routing import SoftmaxRouter, SoftmaxRouterConfig
from moeut.model.surroundings import Inputs, Surroundings
from moeut.settings import STRICT, NonNegativeInt, PositiveInt, Probability, refuse


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttentionExpertsConfig(SoftmaxRouterConfig):
    """Attention experts of SUT.

    num_attention_heads: H, in each expert; keys and values have as many. sample_topk: in training, draw so many of the
    selected experts instead of taking the best. max_relative_positions: R + 1; keys that are farther away are all
    alike. Else: `moeut.model.softmax_routing.SoftmaxRouterConfig`.
    """

    kind: Literal["attention_experts"] = "attention_experts"
    num_attention_heads: PositiveInt
    head_dim: PositiveInt
    sample_topk: NonNegativeInt = 0
    max_relative_positions: PositiveInt = 64
    attention_dropout: Probability = 0.0

    def __post_init__(self) -> None:
        """Refuse to select, or to draw, more experts than there are to choose from."""
        super().__post_init__()
        refuse(
            [
                (
                    self.sample_topk > self.num_experts_per_tok,
                    f"sample_topk: {self.sample_topk} of {self.num_experts_per_tok} selected experts cannot be drawn",
                )
            ]
        )


class AttentionExperts(nn.Module):
    """out(t) = Σ_{e∈S} g_e · concat_h(softmax_j(q_eh·k_h(j) / √P + q_eh·r_h(j − t) / P^¼) v_h) O_e;  q_e = x(t) Q_e.

    q_experts: [A, d, H·P]; o_experts: [A, H·P, d]; k_proj, v_proj: one for all experts. relative_embedding: [H, P,
    2(R + 1) + 1], whose entry j − t + R + 1 is r; beyond ±R the outermost serve (the two ends are never used, as in the
    official code). A token halted gets no update. Queries, keys and router read `scored`, values `projected`.

    Positions are places in the sequence, padding included: differences are those of the tokens as long as padding is
    not in their midst. Rotary phases and `position_ids` have no part in it.
    """

    def __init__(self, config: AttentionExpertsConfig, hidden_size: int, backend: ExpertBackend) -> None:
        super().__init__()
        self.config = config
        self.backend: ExpertBackend = backend
        width = config.num_attention_heads * config.head_dim
        shared = Uniform((3 / (hidden_size + width)) ** 0.5)
        self.router = SoftmaxRouter("attention", config, hidden_size, config.sample_topk)
        self.k_proj = Linear(hidden_size, width, shared)
        self.v_proj = Linear(hidden_size, width, shared)
        self.relative_embedding = RelativePositions(config)
        self.initial = {"q_experts": Uniform(1 / hidden_size), "o_experts": Uniform(1 / width)}
        self.q_experts = nn.Parameter(torch.empty(config.num_experts, hidden_size, width))
        self.o_experts = nn.Parameter(torch.empty(config.num_experts, width, hidden_size))
        initialise(self)

    def forward(
        self, queries: Inputs, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """queries, and sources of keys and values: [B, T, d] → the update [B, T, d] and the selection.

        Without halting, sources are queries.
        """
        x, (batch, length, _) = queries.scored, queries.scored.shape
        heads = (self.config.num_attention_heads, self.config.head_dim)
        selection, routes = self.router(x, around.tokens)
        query = expert_linear(x.flatten(0, 1), self.q_experts, routes, None, len(routes.expert), backend=self.backend)
        query = query.view(batch, length, -1, *heads).permute(0, 3, 2, 1, 4)  # [B, H, K, T, P]
        key, value, _ = self.remember(sources, around, slot)
        bias = self.relative_embedding(query, around.places, key.shape[2])
        context = scaled_dot_product_attention(
            query.flatten(2, 3), key, value, attn_mask=masked(bias, around).flatten(2, 3),
            dropout_p=self.config.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        context = context.unflatten(2, (-1, length)).permute(0, 3, 2, 1, 4)  # [B, T, K, H, P]
        update = expert_linear(
            context.flatten(0, 2).flatten(1), self.o_experts, routes, selection.gates.flatten(),
            batch * length, backend=self.backend,
        )  # fmt: skip
        return update.view_as(x), {self.router.name: selection}

    def remember(
        self, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, Tensor, dict[str, Selection]]:
        """Keys and values [B, H, N, P] of all tokens so far, these ones put into the cache."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        key = self.k_proj(sources.scored).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(sources.projected).unflatten(-1, heads).transpose(1, 2)
        if slot is not None:
            key, value = slot.extend(key, value)
        return key, value, {}


class RelativePositions(nn.Module):
    """What a query adds to its score with a key for standing where it stands; weight: [H, P, 2(R + 1) + 1]."""

    def __init__(self, config: AttentionExpertsConfig) -> None:
        super().__init__()
        self.farthest = config.max_relative_positions - 1
        self.initial = {"weight": zeros}
        size = 2 * config.max_relative_positions + 1
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.head_dim, size))
        initialise(self)

    def forward(self, query: Tensor, places: Tensor, num_keys: int) -> Tensor:
        """query: [B, H, K, T, P], standing at places [T] of num_keys keys → [B, H, K, T, N]."""
        scale = query.shape[-1] ** -0.25
        by_distance = torch.einsum("bhktp,hpj->bhktj", query * scale, self.weight)
        distance = torch.arange(num_keys, device=places.device) - places[:, None]
        index = distance.clamp(-self.farthest, self.farthest) + self.farthest + 1
        return by_distance.gather(-1, index.expand(*query.shape[:3], -1, -1))


def masked(bias: Tensor, around: Surroundings) -> Tensor:
    """The bias [B, H, K, T, N], −∞ where a query may not look at a key."""
    if around.is_causal:
        return bias.masked_fill(torch.arange(bias.shape[-1], device=bias.device) > around.places[:, None], -torch.inf)
    match around.mask:
        case None:
            return bias
        case mask if mask.dtype == torch.bool:
            return bias.masked_fill(~mask.unsqueeze(2), -torch.inf)
        case mask:
            return bias + mask.unsqueeze(2)
