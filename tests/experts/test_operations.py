"""Is every backend the reference, only faster: every output and gradient, any dtype, shape, layout and mode?"""

import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import SHAPES, TOLERANCES, assert_equal_to_reference, mlp_leaves, unlike
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, cpu, expert_linear, expert_mlp, fresh_memory, grouped, groups, native
from moeut.experts.operations import Ops

WAYS = ["cpu", "cpu, tiny groups", "native", "native, three shares", "grouped", "grouped, tiny pieces"]
DOUBLE = WAYS[:4]  # those that compute in float64


def exact(backend: str) -> torch.dtype:
    """The most exact dtype of a backend."""
    return torch.float32 if backend.startswith("grouped") else torch.float64


# Every way in every dtype that it computes in.
WAYS_AND_DTYPES = [
    pytest.param(way, dtype, id=f"{way}-{dtype}")
    for way in WAYS
    for dtype in TOLERANCES
    if dtype.itemsize <= exact(way).itemsize
]


@pytest.fixture(params=WAYS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExpertBackend:
    """A backend as it is, and as it is for more routes: with its work cut into pieces, here within experts."""
    name, _, cut = request.param.partition(", ")
    if name == "native":
        request.getfixturevalue("native")
    if cut == "tiny groups":
        monkeypatch.setattr(groups, "_SCRATCH_BYTES", 3000)
        monkeypatch.setattr(cpu, "_FEW_ROUTES", 0)
    if cut == "three shares":
        monkeypatch.setattr(native, "shares_of", lambda macs: 3)
    if cut == "tiny pieces":
        monkeypatch.setattr(grouped, "_WORKSPACE_BYTES", 300)
    return name


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill all fresh memory with NaN, torch's and numpy's."""

    def empty(size: int, dtype: type) -> np.ndarray:
        return np.full(size, 255, dtype)

    monkeypatch.setattr(fresh_memory, "_HUGE_PAGE_BYTES", 1)
    monkeypatch.setattr(fresh_memory.np, "empty", empty)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["random", "sentinel", "one"])
@pytest.mark.parametrize(("backend", "dtype"), WAYS_AND_DTYPES, indirect=["backend"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expert_mlp(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str, backend: ExpertBackend
) -> None:
    N, _, E, _, K = shape
    x, up, down, gates = leaves = mlp_leaves(*shape, dtype)
    routes = Routes(unlike(N, E, K, kind), E)
    assert_equal_to_reference(lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), backend, leaves)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("backend", "dtype"), WAYS_AND_DTYPES, indirect=["backend"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "I", "O"),
    [(10, 30, 41, 5), (30, 10, 5, 41), (10, 10, 82, 82), (10, 60, 3, 7), (60, 10, 412, 1), (1, 2, 5, 6)],
    ids=["value", "output", "sum", "plain", "many heads", "one token"],
)
def test_expert_linear(
    inputs: int, outputs: int, I: int, O: int, dtype: torch.dtype, gated: bool, backend: ExpertBackend
) -> None:
    E, R = 5, 2 * math.lcm(inputs, outputs)
    x, weight = torch.randn(inputs, I), torch.randn(E, I, O) / I**0.5
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, 0.5 + torch.rand(R))][: 3 if gated else 2]
    gates = leaves[2] if gated else None
    routes = Routes(unlike(R, E, 1, "sentinel"), E)
    assert_equal_to_reference(
        lambda backend: expert_linear(leaves[0], leaves[1], routes, gates, outputs, backend=backend), backend, leaves
    )


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "sentinel", "one"])
@pytest.mark.parametrize(("N", "D", "E", "S"), [(8, 6, 12, 5), (40, 82, 3, 41)])
def test_reads_no_memory_that_it_has_not_written(
    N: int, D: int, E: int, S: int, kind: str, dtype: torch.dtype, backend: ExpertBackend
) -> None:
    x, up, down, gates = leaves = mlp_leaves(N, D, E, S, 2, dtype)
    routes = Routes(unlike(N, E, 2, kind), E)
    assert_equal_to_reference(lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), backend, leaves)
    assert_equal_to_reference(
        lambda backend: expert_linear(x, up, routes, gates, 2 * N, backend=backend), backend, [x, up, gates]
    )


@pytest.mark.parametrize("backend", [*DOUBLE, "reference"], indirect=True)
def test_gradients_are_those_of_finite_differences(backend: ExpertBackend) -> None:
    leaves = mlp_leaves(6, 5, 4, 3, 2, torch.float64)
    routes = Routes(unlike(6, 4, 2, "sentinel"), 4)

    def mlp(x: Tensor, up: Tensor, down: Tensor, gates: Tensor) -> Tensor:
        return expert_mlp(x, up, down, routes, gates, backend=backend)

    def linear(x: Tensor, up: Tensor, gates: Tensor) -> Tensor:
        return expert_linear(x, up, routes, gates, 12, backend=backend)

    assert torch.autograd.gradcheck(mlp, leaves)
    assert torch.autograd.gradcheck(linear, [leaves[0], leaves[1], leaves[3]])


@pytest.mark.parametrize("needed", range(1, 16))
def test_any_subset_of_gradients(needed: int, backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(7, 5, 4, 3, 2, exact(backend))
    for bit, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(needed >> bit & 1))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    assert_equal_to_reference(lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), backend, wanted)
    wanted = [leaf for leaf in (x, up, gates) if leaf.requires_grad]
    if wanted:
        assert_equal_to_reference(
            lambda backend: expert_linear(x, up, routes, gates, 7, backend=backend), backend, wanted
        )


def test_any_layout(backend: ExpertBackend) -> None:
    N, D, E, S, K = 8, 6, 4, 5, 2
    x = torch.randn(D, N).T.requires_grad_()
    up = torch.randn(E, S, D).mT.requires_grad_()
    down = torch.randn(S, D, E).permute(2, 0, 1).requires_grad_()
    gates = torch.rand(2 * N * K)[::2].requires_grad_()
    routes = Routes(unlike(N, E, K, "random"), E)
    assert_equal_to_reference(
        lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), backend, [x, up, down, gates]
    )
    row = torch.randn(1, D).expand(N, D).requires_grad_()
    assert_equal_to_reference(
        lambda backend: expert_linear(row, up, routes, gates, 1, backend=backend), backend, [row, up]
    )


def test_gradient_of_a_sum_has_stride_zero(backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(7, 5, 4, 3, 2, exact(backend))
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    ours = torch.autograd.grad(expert_mlp(x, up, down, routes, gates, backend=backend).sum(), leaves)
    theirs = torch.autograd.grad(expert_mlp(x, up, down, routes, gates, backend="reference").sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", [*WAYS, "reference"], indirect=True)
def test_empty_batch(backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(0, 5, 4, 3, 2, torch.float32)
    routes = Routes(torch.zeros(0, 2, dtype=torch.int64), 4)
    for y in (
        expert_mlp(x, up, down, routes, gates, backend=backend),
        expert_linear(x, down.mT, routes, gates, 0, backend=backend),
    ):
        assert y.shape[0] == 0
        gradients = torch.autograd.grad(y.sum(), [leaf for leaf in leaves if leaf is not up], allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_two_backward_passes_and_two_runs_give_the_same_bits(backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(300, 24, 16, 8, 4, torch.float32)
    routes = Routes(unlike(300, 16, 4, "random"), 16)
    y = expert_mlp(x, up, down, routes, gates, backend=backend)
    first = torch.autograd.grad(y, leaves, y, retain_graph=True)
    second = torch.autograd.grad(y, leaves, y)
    again = expert_mlp(x, up, down, routes, gates, backend=backend)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert torch.equal(y, expert_mlp(x, up, down, routes, gates, backend=backend))
    with torch.inference_mode():
        assert torch.equal(y, expert_mlp(x, up, down, routes, gates, backend=backend))


def operations_of(backend: ExpertBackend) -> Ops:
    """The custom ops of a backend."""
    return {"cpu": cpu.ops, "native": native.ops, "grouped": grouped.ops}[backend]


def test_hidden_values_are_kept_only_for_a_backward(backend: ExpertBackend) -> None:
    x, up, down, gates = mlp_leaves(7, 5, 4, 3, 2, torch.float32)
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    _, kept = operations_of(backend).mlp(x, up, down, routes.order, routes.offsets, gates, True)
    _, dropped = operations_of(backend).mlp(x, up, down, routes.order, routes.offsets, gates, False)
    assert kept.shape == (14, 3)
    assert not kept.requires_grad
    assert dropped.numel() == 0


@pytest.mark.parametrize("backend", [*WAYS, "reference"], indirect=True)
def test_autocast_is_that_of_a_linear_layer(backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(7, 5, 4, 3, 2, torch.float32)
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = expert_mlp(x, up, down, routes, gates, backend=backend)
        gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
    a, b, c = (leaf.detach().bfloat16().requires_grad_() for leaf in (x, up, down))
    expected = expert_mlp(a, b, c, routes, gates, backend=backend)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 4
    if backend != "reference":  # the reference's products in backward are autograd's own, and follow autocast
        outside = torch.autograd.grad(expected, [a, b, c, gates], torch.ones_like(y))
        assert all(torch.equal(inner, outer.float()) for inner, outer in zip(gradients, outside, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "native", "grouped"], indirect=True)
def test_operators_are_what_torch_asks_of_them(backend: ExpertBackend) -> None:
    ops = operations_of(backend)
    x, up, down, gates = mlp_leaves(7, 5, 4, 3, 2, torch.float32)
    routes = Routes(unlike(7, 4, 2, "sentinel"), 4)
    order, offsets = routes.order, routes.offsets
    torch.library.opcheck(ops.mlp, (x, up, down, order, offsets, gates, True))
    torch.library.opcheck(ops.mlp, (*mlp_leaves(7, 5, 4, 3, 2, torch.bfloat16)[:3], order, offsets, gates, True))
    torch.library.opcheck(ops.linear, (x, up, order, offsets, gates, 14))
    torch.library.opcheck(ops.linear, (x, up, order, offsets, None, 7))
    hidden = torch.rand(14, 3)
    frozen = [tensor.detach() for tensor in (x, x, up, down, order, offsets, gates, hidden)]
    torch.library.opcheck(ops.mlp_backward, (*frozen, [True] * 4))
    torch.library.opcheck(ops.mlp_backward, (*frozen, [True, False, True, False]))
    frozen = [tensor.detach() for tensor in (torch.rand(14, 3), x, up, order, offsets, gates)]
    torch.library.opcheck(ops.linear_backward, (*frozen, [True, False, True]))


@pytest.mark.parametrize("backend", ["cpu", "native", "grouped"], indirect=True)
def test_compiled_without_graph_breaks(backend: ExpertBackend) -> None:
    def layer(x: Tensor, up: Tensor, down: Tensor, scores: Tensor) -> Tensor:
        gates, expert = scores.topk(2)
        routes = Routes(expert, 4)
        values = expert_linear(x, up, routes, gates.flatten(), 2 * x.shape[0], backend=backend)
        return expert_mlp(x, up, down, routes, gates.sigmoid().flatten(), backend=backend).sum() + values.cos().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (7, 5, 6):
        scores = torch.randn(tokens, 4, dtype=exact(backend), requires_grad=True)
        leaves = [*mlp_leaves(tokens, 5, 4, 3, 2, exact(backend))[:3], scores]
        ours, theirs = compiled(*leaves), layer(*leaves)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


@pytest.mark.parametrize("backend", ["cpu", "native"], indirect=True)
def test_a_graph_for_few_routes_without_gradients(backend: ExpertBackend) -> None:
    """In PyTorch's operations where the backend is made of them: the graph can have them done together."""

    def layer(x: Tensor, up: Tensor, down: Tensor, gates: Tensor, expert: Tensor) -> Tensor:
        routes = Routes(expert, 4)
        values = expert_linear(x, up, routes, gates, 2 * x.shape[0], backend=backend)
        return expert_mlp(x, up, down, routes, gates, backend=backend).sum() + values.cos().sum()

    seen: list[str] = []

    def noting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x, up, down, gates = (leaf.detach() for leaf in mlp_leaves(3, 5, 4, 3, 2, exact(backend)))
    expert = unlike(3, 4, 2, "sentinel")
    compiled = torch.compile(layer, fullgraph=True, backend=noting)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, up, down, gates, expert), layer(x, up, down, gates, expert))
    assert any("moeut.expert" in target for target in seen) == (backend == "native")
    assert any("embedding_bag" in target for target in seen) == (backend == "cpu")


def peak_bytes(run: Callable[[], object]) -> int:
    """How far the memory of this process rises above where it was, as Linux counts it."""
    clear = Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory freed before would be used again, and not be seen
        clear.write_text("5")
    except (OSError, AttributeError):
        pytest.skip("peak memory is read from Linux's /proc, which cannot be reset here")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    before = int(status["VmRSS"].split()[0])
    run()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * (int(status["VmHWM"].split()[0]) - before)


@pytest.mark.parametrize("backend", ["cpu", "native, three shares", "grouped"], indirect=True)
def test_nothing_of_size_routes_times_hidden_size_is_stored(
    backend: ExpertBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped, "_WORKSPACE_BYTES", 2**20)  # several of them live at a time
    x, up, down, gates = mlp_leaves(2, 5, 4, 3, 2, torch.float32)
    expert_mlp(
        x, up, down, Routes(unlike(2, 4, 2, "random"), 4), gates, backend=backend
    )  # torch loads much at the first call
    N, D, E, S, K = 2048, 1024, 16, 4, 16
    x, up, down, gates = mlp_leaves(N, D, E, S, K, torch.float32)
    routes = Routes(unlike(N, E, K, "random"), E)
    routes_by_hidden_size = 4 * N * K * D

    def train(which: ExpertBackend) -> None:
        expert_mlp(x, up, down, routes, gates, backend=which).sum().backward()

    assert peak_bytes(lambda: train("reference")) > routes_by_hidden_size  # the measure sees what it should see
    assert peak_bytes(lambda: train(backend)) < routes_by_hidden_size / 2
