"""How does attention get experts? SwitchHead: each head's value and output projections are mixtures of experts.

Paper section 2.3, equations 7 to 10. Letters: B batch, T tokens, d hidden size, H heads, P head size, A experts a head,
K of them selected.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import ExpertBackend, expert_linear
from moeut.model.attention import Surroundings, attend
from moeut.model.cache import CacheSlot
from moeut.model.initialise import InitialWeights, Linear, initialise
from moeut.model.routing import Router, Selection
from moeut.settings import STRICT, NonNegativeFloat, PositiveFloat, PositiveInt, Probability, refuse


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwitchHeadConfig:
    """Attention whose value and output projections are experts; queries and keys stay dense.

    num_experts: in each head, for values and again for outputs. router_aux_loss_coef: δ, weight of the balance term of
    both routers. expert_dropout: rate at which an expert is hidden from a token's choice in training.
    """

    kind: Literal["switchhead"] = "switchhead"
    num_attention_heads: PositiveInt
    head_dim: PositiveInt
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt = 2
    router_aux_loss_coef: NonNegativeFloat = 0.001
    expert_dropout: Probability = 0.0
    rope_theta: PositiveFloat = 10000.0
    partial_rotary_factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    attention_dropout: Probability = 0.0

    def __post_init__(self) -> None:
        """Refuse to select more experts than there are."""
        refuse(
            [
                (
                    self.num_experts_per_tok > self.num_experts,
                    f"num_experts_per_tok: {self.num_experts_per_tok} experts cannot be chosen from {self.num_experts}",
                )
            ]
        )


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
            Router(
                hidden_size, heads, config.num_experts, config.num_experts_per_tok,
                expert_dropout=config.expert_dropout, weight=initial.router(hidden_size),
            )
            for _ in range(2)
        )  # fmt: skip
        self.initial = {"v_experts": initial.projection(hidden_size), "o_experts": initial.projection(width)}
        self.v_experts = nn.Parameter(torch.empty(heads * config.num_experts, hidden_size, config.head_dim))
        self.o_experts = nn.Parameter(torch.empty(heads * config.num_experts, config.head_dim, hidden_size))
        initialise(self)

    def forward(
        self, scored: Tensor, projected: Tensor, around: Surroundings, slot: CacheSlot | None
    ) -> tuple[Tensor, dict[str, Selection]]:
        """scored, projected: [B, T, d] → the update [B, T, d] and the selections of values and outputs."""
        batch, length, hidden_size = scored.shape
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query = self.q_proj(scored).unflatten(-1, heads)
        key = self.k_proj(scored).unflatten(-1, heads)
        for_values, v_routes = self.v_router(scored, around.token_mask, with_usage=around.with_usage)
        for_outputs, o_routes = self.o_router(scored, around.token_mask, with_usage=around.with_usage)
        value = expert_linear(
            projected.flatten(0, 1), self.v_experts, v_routes, for_values.gates.flatten(),
            batch * length * heads[0], backend=self.backend,
        ).view(batch, length, *heads)  # fmt: skip
        dropout = self.config.attention_dropout if self.training else 0.0
        context = attend(query, key, value, around, slot, dropout)
        update = expert_linear(
            context.flatten(0, 2), self.o_experts, o_routes, for_outputs.gates.flatten(),
            batch * length, backend=self.backend,
        ).view(batch, length, hidden_size)  # fmt: skip
        return update, {"attention_value": for_values, "attention_output": for_outputs}
