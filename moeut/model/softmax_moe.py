"""What is the Sparse Universal Transformer's feed-forward layer? Experts with biases, softmax gates that add up to one.

SUT is arXiv 2310.07096. Letters: B batch, T tokens, d hidden size, E experts, S expert size, K selected.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import ExpertBackend
from moeut.model.expert_bias import ExpertBias, biased_expert_mlp
from moeut.model.initialise import Uniform, initialise, linear_default
from moeut.model.routing import Selection
from moeut.model.softmax_routing import SoftmaxRouter, SoftmaxRouterConfig
from moeut.model.surroundings import Inputs, Tokens
from moeut.settings import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoftmaxMoEConfig(SoftmaxRouterConfig):
    """Feed-forward experts of SUT.

    moe_intermediate_size: S. Else: `moeut.model.softmax_routing.SoftmaxRouterConfig`.
    """

    kind: Literal["softmax_moe"] = "softmax_moe"
    moe_intermediate_size: PositiveInt


class SoftmaxMoE(nn.Module):
    """y = Σ_{e∈S} g_e · (relu(x U_e + a_e) D_e + b_e), S and g of `moeut.model.softmax_routing.SoftmaxRouter`.

    up_experts: [E, d, S]; down_experts: [E, S, d]; up.bias: a, [E, S]; down.bias: b, [E, d]. The router reads `scored`,
    the experts read `projected`. SUT itself has GELU for the ReLU; ReLU is the training code's choice.
    """

    def __init__(self, config: SoftmaxMoEConfig, hidden_size: int, backend: ExpertBackend) -> None:
        super().__init__()
        self.backend: ExpertBackend = backend
        experts, size = config.num_experts, config.moe_intermediate_size
        self.router = SoftmaxRouter("feed_forward", config, hidden_size)
        self.initial = {"up_experts": Uniform(1 / hidden_size), "down_experts": Uniform(1 / size)}
        self.up_experts = nn.Parameter(torch.empty(experts, hidden_size, size))
        self.down_experts = nn.Parameter(torch.empty(experts, size, hidden_size))
        self.up = ExpertBias(experts, size, linear_default(size))
        self.down = ExpertBias(experts, hidden_size, linear_default(hidden_size))
        initialise(self)

    def forward(self, inputs: Inputs, tokens: Tokens) -> tuple[Tensor, dict[str, Selection]]:
        """inputs: [B, T, d] → the update [B, T, d] and the selection."""
        selection, routes = self.router(inputs.scored, tokens)
        x, gates = inputs.projected.flatten(0, 1), selection.gates.flatten()
        update = biased_expert_mlp(x, self.up_experts, self.down_experts, self.up, routes, gates, backend=self.backend)
        update = update + self.down.weighted(routes, gates, x.shape[0])
        return update.view_as(inputs.projected), {self.router.name: selection}
