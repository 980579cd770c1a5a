"""What if experts have biases? A vector for each expert, added to the rows that go to it.

Letters: R routes, N rows, E experts, D hidden size, S expert size, O features of an expert's result.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

from moeut.experts import ExpertBackend, Routes, expert_linear
from moeut.model.initialise import Distribution, initialise


class ExpertBias(nn.Module):
    """A bias for each expert; bias: [E, O]."""

    def __init__(self, num_experts: int, num_features: int, bias: Distribution) -> None:
        super().__init__()
        self.initial = {"bias": bias}
        self.bias = nn.Parameter(torch.empty(num_experts, num_features))
        initialise(self)

    def rows(self, routes: Routes) -> Tensor:
        """The bias of each route's expert: [R, O]. Routes to nobody get some expert's; nobody may use it."""
        return embedding(self._experts(routes), self.bias)

    def weighted(self, routes: Routes, gates: Tensor, num_rows: int) -> Tensor:
        """Σ gate_r · bias of r's expert over the routes r of each row: [N, O]. Gates [R] to nobody must be 0."""
        shape = (num_rows, -1)
        return embedding_bag(
            self._experts(routes).view(shape), self.bias, mode="sum",
            per_sample_weights=gates.to(self.bias.dtype).view(shape),
        )  # fmt: skip

    def _experts(self, routes: Routes) -> Tensor:
        return routes.expert.clamp(max=routes.num_experts - 1)


def biased_expert_mlp(
    x: Tensor, up: Tensor, down: Tensor, up_bias: ExpertBias, routes: Routes, gates: Tensor, *, backend: ExpertBackend
) -> Tensor:
    """`moeut.experts.expert_mlp` with a bias before the ReLU.

        y_n = Σ_{routes r of row n} gate_r · relu(x_n up[e_r] + up_bias[e_r]) down[e_r]

    x: [N, D]; up: [E, D, S]; down: [E, S, D]; gates: [R] → [N, D]. Keeps hidden values [R, S], as that does.
    """
    hidden = expert_linear(x, up, routes, None, routes.expert.shape[0], backend=backend)
    hidden = (hidden + up_bias.rows(routes)).relu()
    return expert_linear(hidden, down, routes, gates, x.shape[0], backend=backend)
