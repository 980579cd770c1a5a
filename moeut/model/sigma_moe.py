"""How does the feed-forward layer get wide and stay cheap? σ-MoE: many small experts, a few of them for each token.

Paper section 2.1, equations 1 to 3. Letters: B batch, T tokens, d hidden size, E experts, S expert size, K selected.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import ExpertBackend, expert_mlp
from moeut.model.expert_bias import ExpertBias, biased_expert_mlp
from moeut.model.initialise import InitialWeights, initialise, zeros
from moeut.model.routing import Router, RouterConfig, Selection
from moeut.model.surroundings import Inputs, Tokens
from moeut.settings import STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SigmaMoEConfig(RouterConfig):
    """Feed-forward experts.

    moe_intermediate_size: S. router_aux_loss_coef: γ. expert_bias: add a learned vector to what each expert's ReLU
    reads. output_bias: add one to the layer's result. Else: `moeut.model.routing.RouterConfig`.
    """

    kind: Literal["sigma_moe"] = "sigma_moe"
    moe_intermediate_size: PositiveInt = 128
    router_aux_loss_coef: NonNegativeFloat = 0.01
    expert_bias: bool = False
    output_bias: bool = False


class SigmaMoE(nn.Module):
    """y = Σ_{e∈S} g_e · relu(x U_e (+ a_e)) D_e (+ b), with S and the gates g of `moeut.model.routing.Router`.

    up_experts: [E, d, S]; down_experts: [E, S, d]; up.bias: a, [E, S]; bias: b, [d]. The router reads `scored`, the
    experts read `projected`.
    """

    def __init__(
        self, config: SigmaMoEConfig, hidden_size: int, initial: InitialWeights, backend: ExpertBackend
    ) -> None:
        super().__init__()
        self.backend: ExpertBackend = backend
        experts, size = config.num_experts, config.moe_intermediate_size
        self.router = Router("feed_forward", config, hidden_size, 1, initial.router(hidden_size))
        self.initial = {
            "up_experts": initial.projection(hidden_size),
            "down_experts": initial.projection(experts * size),
            "bias": zeros,
        }
        self.up_experts = nn.Parameter(torch.empty(experts, hidden_size, size))
        self.down_experts = nn.Parameter(torch.empty(experts, size, hidden_size))
        self.up = ExpertBias(experts, size, zeros) if config.expert_bias else None
        self.bias = nn.Parameter(torch.empty(hidden_size)) if config.output_bias else None
        initialise(self)

    def forward(self, inputs: Inputs, tokens: Tokens) -> tuple[Tensor, dict[str, Selection]]:
        """inputs: [B, T, d] → the update [B, T, d] and the selection."""
        selection, routes = self.router(inputs.scored, tokens)
        x, gates = inputs.projected.flatten(0, 1), selection.gates.flatten()
        if self.up is None:
            update = expert_mlp(x, self.up_experts, self.down_experts, routes, gates, backend=self.backend)
        else:
            update = biased_expert_mlp(
                x, self.up_experts, self.down_experts, self.up, routes, gates, backend=self.backend
            )
        if self.bias is not None:
            update = update + self.bias
        return update.view_as(inputs.projected), {self.router.name: selection}
