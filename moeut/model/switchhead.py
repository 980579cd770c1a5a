"""How does attention get experts? SwitchHead: each head's value and output projections are mixtures of experts.

Paper section 2.3, equations 7 to 10. Letters: B batch, T tokens, N key tokens, d hidden size, H heads, P head size, A
experts a head, K of them selected.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import ExpertBackend, expert_linear
from moeut.model.attention import attend, remember
from moeut.model.cache import CacheSlot
from moeut.model.initialise import InitialWeights, Linear, initialise
from moeut.model.routing import Router, RouterConfig, Selection
from moeut.model.surroundings import Inputs, Surroundings
from moeut.settings import STRICT, NonNegativeFloat, PositiveFloat, PositiveInt, Probability


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwitchHeadConfig(RouterConfig):
    """Attention whose value and output projections are experts; queries and keys stay dense.

    num_experts: in each head, for values and again for outputs. router_aux_loss_coef: δ, weight of the balance term of
    both routers. Else: `moeut.model.routing.RouterConfig`, `moeut.model.attention.DenseAttentionConfig`.
    """

    kind: Literal["switchhead"] = "switchhead"
    num_attention_heads: PositiveInt
    head_dim: PositiveInt
    num_experts_per_tok: PositiveInt = 2
    router_aux_loss_coef: NonNegativeFloat = 0.001
    rope_theta: PositiveFloat = 10000.0
    partial_rotary_factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    attention_dropout: Probability = 0.0


class SwitchHeadAttention(nn.Module):
    """v_h(t) = Σ_{e∈S_v} g_v,he x(t) V_he;  c_h = softmax(q_h k_hᵀ/√P) v_h;  out(t) = Σ_h Σ_{e∈S_o} g_o,he c_h(t) O_he.

    v_experts: [H·A, d, P]; o_experts: [H·A, P, d]; expert e of head h has number h·A + e. Values and outputs have
    routers of their own. Queries, keys and routers read `scored`, value experts read `projected`.
    """

    def __init__(
        self, config: SwitchHeadConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
    ) -> None:
        super().__init__()
        self.config = config
        self.backend: ExpertBackend = backend
        heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
        self.q_proj = Linear(hidden_size, width, initial.projection(hidden_size))
        self.k_proj = Linear(hidden_size, width, initial.projection(hidden_size))
        self.v_router, self.o_router = (
            Router(name, config, hidden_size, heads, initial.router(hidden_size))
            for name in ("attention_value", "attention_output")
        )
        self.initial = {"v_experts": initial.projection(hidden_size), "o_experts": initial.projection(width)}
        self.v_experts = nn.Parameter(torch.empty(heads * config.num_experts, hidden_size, config.head_dim))
        self.o_experts = nn.Parameter(torch.empty(heads * config.num_experts, config.head_dim, hidden_size))
        initialise(self)

    def forward(
        self, queries: Inputs, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """queries, and sources of keys and values: [B, T, d] → the update [B, T, d] and the selections of both routers.

        Without halting, sources are queries.
        """
        query = self._heads(self.q_proj(queries.scored))
        key, value, selections = self.remember(sources, around, slot)
        for_outputs, routes = self.o_router(queries.scored, around.tokens)
        context = attend(query, key, value, around, self.config.attention_dropout if self.training else 0.0)
        update = expert_linear(
            context.flatten(0, 2), self.o_experts, routes, for_outputs.gates.flatten(),
            query.shape[0] * query.shape[1], backend=self.backend,
        ).view_as(queries.scored)  # fmt: skip
        return update, selections | {self.o_router.name: for_outputs}

    def remember(
        self, sources: Inputs, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, Tensor, dict[str, Selection]]:
        """Keys and values [B, H, N, P] of all tokens so far, these ones put into the cache; the selection of values."""
        key = self._heads(self.k_proj(sources.scored))
        # Others look at a halted token too, so its values are computed like any.
        for_values, routes = self.v_router(sources.scored, around.tokens._replace(survival=None))
        value = expert_linear(
            sources.projected.flatten(0, 1), self.v_experts, routes, for_values.gates.flatten(),
            key.shape[:3].numel(), backend=self.backend,
        ).view_as(key)  # fmt: skip
        return *remember(key, value, around, slot), {self.v_router.name: for_values}

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_attention_heads, self.config.head_dim))
