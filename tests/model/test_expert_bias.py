"""Does each row meet the bias of its own expert, and none where there is no expert?"""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from moeut.experts import ExpertBackend, Routes
from moeut.model.expert_bias import ExpertBias, biased_expert_mlp

NOBODY = 3
EXPERTS = torch.tensor([[2, 0], [1, NOBODY], [0, 2], [NOBODY, NOBODY]])
"""Four rows, two routes each, three experts."""


def bias_of(num_features: int) -> ExpertBias:
    return ExpertBias(3, num_features, nn.init.normal_).double()


def test_rows_by_hand():
    bias = bias_of(2)
    with torch.no_grad():
        bias.bias.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    rows = bias.rows(Routes(EXPERTS, NOBODY))
    assert rows[[0, 1, 2, 4, 5]].tolist() == [[5, 6], [1, 2], [3, 4], [1, 2], [5, 6]]
    assert rows.shape == (8, 2)


def test_weighted_sums_by_hand():
    bias = bias_of(1)
    with torch.no_grad():
        bias.bias.copy_(torch.tensor([[1.0], [10.0], [100.0]]))
    gates = torch.tensor([0.5, 2.0, 0.3, 0.0, 1.0, 0.25, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    sums = bias.weighted(Routes(EXPERTS, NOBODY), gates, 4)
    assert sums.flatten().tolist() == [52.0, 3.0, 26.0, 0.0]
    sums.sum().backward()
    assert bias.bias.grad is not None
    assert gates.grad is not None
    assert bias.bias.grad.flatten().tolist() == [3.0, 0.3, 0.75]
    assert gates.grad[[0, 1, 2, 4, 5]].tolist() == [100.0, 1.0, 10.0, 1.0, 100.0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_perceptron_route_by_route(backend: ExpertBackend):
    """With gradients; a row whose routes all lead to nobody is zero and gets none."""
    up_bias = bias_of(5)
    x, up, down = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6), (3, 6, 5), (3, 5, 6))
    )
    gates = torch.rand(8, dtype=torch.float64, requires_grad=True)
    found = biased_expert_mlp(x, up, down, up_bias, Routes(EXPERTS, NOBODY), gates, backend=backend)
    expected = torch.stack(
        [
            sum(
                (
                    gates[2 * row + place] * ((x[row] @ up[expert] + up_bias.bias[expert]).clamp(min=0) @ down[expert])
                    for place, expert in enumerate(EXPERTS[row].tolist())
                    if expert != NOBODY
                ),
                torch.zeros(6).double(),
            )
            for row in range(4)
        ]
    )
    assert_close(found, expected)
    leaves = [x, up, down, up_bias.bias, gates]
    target = torch.randn_like(found)
    ours = torch.autograd.grad((found * target).sum(), leaves)
    assert_close(ours, torch.autograd.grad((expected * target).sum(), leaves))
    assert found[3].count_nonzero() == ours[0][3].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_of_another_precision_than_the_biases(dtype: torch.dtype):
    """Under autocast gates are 16 bits wide and biases are not."""
    bias = bias_of(2)
    gates = torch.ones(8).to(dtype)
    sums = bias.weighted(Routes(EXPERTS.where(EXPERTS != NOBODY, 0), NOBODY), gates, 4)
    assert sums.dtype == torch.float64
    assert_close(sums[3], 2 * bias.bias[0])
