"""Does the reference compute the paper's formulas, written a second way: as one dense sum over all experts?"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moeut.experts import Routes, expert_linear, expert_mlp

N, D, E, S, K = 6, 5, 4, 3, 2


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def weights_of_experts(expert: Tensor, gates: Tensor) -> Tensor:
    """[R, E]: the gate of each route in the column of its expert, a row of zeros where it has none."""
    return gates[:, None] * one_hot(expert, E + 1)[:, :E]


def assert_same(ours: Tensor, theirs: Tensor, leaves: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    dy = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(a, b)


def test_expert_mlp_is_the_sum_over_all_experts() -> None:
    x, up, down, gates = leaves = doubles((N, D), (E, D, S), (E, S, D), (N * K,))
    expert = torch.randint(0, E + 1, (N * K,))
    hidden = torch.relu(torch.einsum("nd,eds->nes", x, up))
    share = weights_of_experts(expert, gates).view(N, K, E).sum(1)
    theirs = torch.einsum("ne,nes,esd->nd", share, hidden, down)
    ours = expert_mlp(x, up, down, Routes(expert, E), gates, backend="reference")
    assert_same(ours, theirs, leaves)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(6, 6), (6, 12), (12, 6), (12, 3), (6, 24)],
    ids=["sum", "fan out", "fan in", "more", "most"],
)
def test_expert_linear_is_the_sum_over_all_experts(inputs: int, outputs: int) -> None:
    R = 24
    x, weight, gates = leaves = doubles((inputs, D), (E, D, S), (R,))
    expert = torch.randint(0, E + 1, (R,))
    rows = x.repeat_interleave(R // inputs, 0)
    products = torch.einsum("re,rd,eds->rs", weights_of_experts(expert, gates), rows, weight)
    ours = expert_linear(x, weight, Routes(expert, E), gates, outputs, backend="reference")
    assert_same(ours, products.view(outputs, R // outputs, S).sum(1), leaves)


def test_no_gates_are_gates_of_one() -> None:
    x, weight = doubles((N, D), (E, D, S))
    routes = Routes(torch.randint(0, E, (N, K)), E)
    ones = torch.ones(N * K, dtype=torch.float64)
    without = expert_linear(x, weight, routes, None, N, backend="reference")
    torch.testing.assert_close(without, expert_linear(x, weight, routes, ones, N, backend="reference"))


def test_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    up = torch.tensor([[[1.0], [1.0]], [[1.0], [-1.0]]])  # expert 0 adds, expert 1 subtracts
    down = torch.tensor([[[10.0, 0.0]], [[0.0, 1.0]]])
    routes = Routes(torch.tensor([[0, 1], [0, 2]]), 2)
    y = expert_mlp(x, up, down, routes, torch.tensor([0.5, 1.0, 0.1, 9.0]), backend="reference")
    torch.testing.assert_close(y, torch.tensor([[15.0, 0.0], [7.0, 0.0]]))  # 1 − 2 < 0; the last route has no expert
