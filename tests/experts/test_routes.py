"""Are routes sorted stably, counted rightly, and the same inside a compiled graph?"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moeut.experts import Routes


@given(st.integers(1, 9).flatmap(lambda E: st.tuples(st.just(E), st.lists(st.integers(0, E), max_size=40))))
def test_order_is_a_stable_permutation_and_offsets_count(case: tuple[int, list[int]]) -> None:
    num_experts, expert = case
    routes = Routes(torch.tensor(expert, dtype=torch.int64), num_experts)
    assert routes.order.tolist() == sorted(range(len(expert)), key=lambda r: (expert[r], r))
    assert routes.offsets.tolist() == [sum(e < boundary for e in expert) for boundary in range(num_experts + 1)]
    assert routes.expert.tolist() == expert
    assert routes.num_experts == num_experts


@pytest.mark.parametrize("num_routes", [2**13 - 1, 2**13, 20_000, 2**15 - 1, 2**15, 40_000])
@pytest.mark.parametrize("num_experts", [1, 61, 40_000])
def test_stable_whichever_way_they_are_sorted(num_routes: int, num_experts: int) -> None:
    expert = torch.randint(0, num_experts + 1, (num_routes,))
    routes = Routes(expert, num_experts)
    assert routes.order.tolist() == np.argsort(expert.numpy(), kind="stable").tolist()
    assert routes.offsets.diff().tolist() == np.bincount(expert.numpy(), minlength=num_experts + 1)[:-1].tolist()


def test_by_hand() -> None:
    routes = Routes(torch.tensor([[2, 0], [3, 2], [0, 3]]), 3)
    assert routes.expert.tolist() == [2, 0, 3, 2, 0, 3]
    assert routes.order.tolist() == [1, 4, 0, 3, 2, 5]
    assert routes.offsets.tolist() == [0, 2, 2, 4]  # expert 1 has none; routes 2 and 5 have no expert


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_integer_and_any_layout(dtype: torch.dtype) -> None:
    expert = torch.randint(0, 7, (4, 5)).to(dtype)
    transposed, plain = Routes(expert.T, 6), Routes(expert.T.reshape(-1).long(), 6)
    assert torch.equal(transposed.order, plain.order)
    assert torch.equal(transposed.offsets, plain.offsets)
    assert transposed.expert.dtype == transposed.order.dtype == transposed.offsets.dtype == torch.int64


def test_more_experts_than_sixteen_bits_hold() -> None:
    routes = Routes(torch.tensor([40_000, 1, 70_000, 1]), 70_000)
    assert routes.order.tolist() == [1, 3, 0, 2]
    assert routes.offsets[[1, 2, 40_000, 40_001, 70_000]].tolist() == [0, 2, 2, 3, 3]


def test_immutable() -> None:
    routes = Routes(torch.tensor([0]), 1)
    with pytest.raises(AttributeError, match="order"):
        routes.order = torch.tensor([1])  # type: ignore[misc]


def test_compiled_without_graph_breaks() -> None:
    def sort(scores: Tensor) -> Routes:
        return Routes(scores.topk(3, -1).indices, 6)

    scores = torch.randn(5, 6)
    compiled, eager = torch.compile(sort, fullgraph=True, backend="aot_eager")(scores), sort(scores)
    assert torch.equal(compiled.order, eager.order)
    assert torch.equal(compiled.offsets, eager.offsets)
