"""How does the feed-forward layer get wide and stay cheap? σ-MoE: many small experts, a few of them for each token.

Paper section 2.1, equations 1 to 3. Letters: B batch, T tokens, d hidden size, E experts, S expert size, K selected.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import ExpertBackend, expert_mlp
from moeut.model.initialise import InitialWeights, initialise
from moeut.model.routing import Router, Selection
from moeut.settings import STRICT, NonNegativeFloat, PositiveInt, Probability, refuse


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SigmaMoEConfig:
    """Feed-forward experts with sigmoid gates.

    moe_intermediate_size: S. router_aux_loss_coef: γ, weight of the balance term. expert_dropout: rate at which an
    expert is hidden from a token's choice in training.
    """

    kind: Literal["sigma_moe"] = "sigma_moe"
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: PositiveInt = 128
    router_aux_loss_coef: NonNegativeFloat = 0.01
    expert_dropout: Probability = 0.0

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


class SigmaMoE(nn.Module):
    """y = Σ_{e∈S} σ(s_e) · relu(x U_e) D_e, with s the router's scores and S its top-K; no renormalisation, no biases.

    up_experts: [E, d, S]; down_experts: [E, S, d]. The router reads `scored`, the experts read `projected`.
    """

    def __init__(
        self, config: SigmaMoEConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
    ) -> None:
        super().__init__()
        self.backend: ExpertBackend = backend
        experts, size = config.num_experts, config.moe_intermediate_size
        self.router = Router(
            hidden_size, 1, experts, config.num_experts_per_tok,
            expert_dropout=config.expert_dropout, weight=initial.router(hidden_size),
        )  # fmt: skip
        self.initial = {
            "up_experts": initial.projection(hidden_size),
            "down_experts": initial.projection(experts * size),
        }
        self.up_experts = nn.Parameter(torch.empty(experts, hidden_size, size))
        self.down_experts = nn.Parameter(torch.empty(experts, size, hidden_size))
        initialise(self)

    def forward(
        self, scored: Tensor, projected: Tensor, token_mask: Tensor | None, *, with_usage: bool
    ) -> tuple[Tensor, dict[str, Selection]]:
        """scored, projected: [B, T, d] → the update [B, T, d] and the selection."""
        selection, routes = self.router(scored, token_mask, with_usage=with_usage)
        update = expert_mlp(
            projected.flatten(0, 1), self.up_experts, self.down_experts, routes, selection.gates.flatten(),
            backend=self.backend,
        )  # fmt: skip
        return update.view_as(projected), {"feed_forward": selection}
