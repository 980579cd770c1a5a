"""Are the operations on Triton's kernels those of the reference? On a GPU, or interpreted on the CPU in small sizes."""

from collections.abc import Iterator

import pytest
import torch
from comparison import TOLERANCES, assert_equal_to_reference, mlp_leaves, unlike
from torch import Tensor

from moeut.experts import ExpertBackend, Routes, expert_linear, expert_mlp

# The interpreter of Triton 3.6 does not know numpy 2.4 and later.
pytest.importorskip("triton", minversion="3.6" if torch.cuda.is_available() else "3.7")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# tokens N, hidden size D, experts E, expert size S, experts per token K
SHAPES = [(7, 5, 4, 3, 2), (20, 41, 2, 82, 2), (3, 412, 2, 41, 1), (1, 8, 6, 4, 2), (9, 6, 1, 5, 1), (5, 1, 3, 1, 2)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def on_device() -> Iterator[None]:
    """Tensors are made where the kernels run."""
    with torch.device(DEVICE):
        yield


@pytest.fixture(params=["triton", "triton_atomic"])
def backend(request: pytest.FixtureRequest) -> ExpertBackend:
    """Both ways to sum the gradients of matrices."""
    return request.param


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and workspace so small that every size is cut."""
    from moeut.experts import fused

    monkeypatch.setattr(fused, "blocks_for", lambda rows_per_expert, dtype: fused.Blocks(16, 16, 16, 4, 2))
    monkeypatch.setattr(fused, "_WORKSPACE_BYTES", 1)
    monkeypatch.setattr(fused, "_ATOMIC_ROWS", 16)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill all fresh memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def compare_mlp(shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: str, backend: ExpertBackend) -> None:
    N, _, E, _, K = shape
    x, up, down, gates = leaves = mlp_leaves(*shape, dtype)
    routes = Routes(unlike(N, E, K, kind), E)
    assert_equal_to_reference(lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), backend, leaves)


def compare_linear(
    inputs: int, outputs: int, I: int, O: int, dtype: torch.dtype, kind: str, gated: bool, backend: ExpertBackend
) -> None:
    E, R = 3, 2 * max(inputs, outputs)
    x, weight = torch.randn(inputs, I), torch.randn(E, I, O) / I**0.5
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, 0.5 + torch.rand(R))][: 3 if gated else 2]
    gates = leaves[2] if gated else None
    routes = Routes(unlike(R, E, 1, kind), E)
    assert_equal_to_reference(
        lambda backend: expert_linear(leaves[0], leaves[1], routes, gates, outputs, backend=backend), backend, leaves
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expert_mlp(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    compare_mlp(shape, dtype, "random", "triton")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("kind", ["random", "sentinel", "one"])
def test_experts_without_rows_and_routes_without_experts(kind: str, backend: ExpertBackend) -> None:
    compare_mlp((8, 6, 5, 5, 2), torch.float32, kind, backend)
    compare_linear(8, 8, 6, 5, torch.float32, kind, True, backend)


@pytest.mark.usefixtures("poison", "tiny_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_cut_into_pieces(dtype: torch.dtype, backend: ExpertBackend) -> None:
    compare_mlp((20, 19, 2, 18, 2), dtype, "sentinel", backend)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "I", "O"),
    [(5, 15, 41, 5), (15, 5, 5, 41), (10, 10, 3, 82), (1, 2, 5, 6), (10, 20, 4, 7)],
    ids=["value", "output", "sum", "one token", "no sum"],
)
def test_expert_linear(inputs: int, outputs: int, I: int, O: int, gated: bool) -> None:
    compare_linear(inputs, outputs, I, O, torch.float32, "sentinel", gated, "triton")


@pytest.mark.usefixtures("tiny_blocks")
def test_expert_linear_cut_into_pieces(backend: ExpertBackend) -> None:
    compare_linear(6, 12, 18, 20, torch.bfloat16, "sentinel", True, backend)
    compare_linear(12, 6, 18, 20, torch.float32, "sentinel", True, backend)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "sentinel", "one"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_larger_layers(dtype: torch.dtype, kind: str, backend: ExpertBackend) -> None:
    compare_mlp((33, 41, 9, 82, 3), dtype, kind, backend)
    compare_mlp((12, 412, 5, 41, 5), dtype, kind, backend)
    compare_linear(10, 30, 412, 82, dtype, kind, True, backend)
    compare_linear(30, 10, 82, 412, dtype, kind, True, backend)


@pytest.mark.parametrize("needed", [0b0001, 0b0010, 0b0100, 0b1000, 0b1011])
def test_any_subset_of_gradients(needed: int) -> None:
    x, up, down, gates = leaves = mlp_leaves(4, 5, 3, 3, 2, torch.float32)
    for bit, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(needed >> bit & 1))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    routes = Routes(unlike(4, 3, 2, "random"), 3)
    assert_equal_to_reference(lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), "triton", wanted)
    wanted = [leaf for leaf in (x, up, gates) if leaf.requires_grad]
    if wanted:
        assert_equal_to_reference(
            lambda backend: expert_linear(x, up, routes, gates, 4, backend=backend), "triton", wanted
        )


def test_any_layout() -> None:
    N, D, E, S, K = 8, 6, 4, 5, 2
    x = torch.randn(D, N).T.requires_grad_()
    up = torch.randn(E, S, D).mT.requires_grad_()
    down = torch.randn(S, D, E).permute(2, 0, 1).requires_grad_()
    gates = torch.rand(2 * N * K)[::2].requires_grad_()
    routes = Routes(unlike(N, E, K, "random"), E)
    assert_equal_to_reference(
        lambda backend: expert_mlp(x, up, down, routes, gates, backend=backend), "triton", [x, up, down, gates]
    )
    row = torch.randn(1, D).expand(N, D).requires_grad_()
    assert_equal_to_reference(
        lambda backend: expert_linear(row, up, routes, gates, 1, backend=backend), "triton", [row, up]
    )


def test_gradient_of_a_sum_has_stride_zero() -> None:
    x, up, down, gates = leaves = mlp_leaves(7, 5, 4, 3, 2, torch.float32)
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    ours = torch.autograd.grad(expert_mlp(x, up, down, routes, gates, backend="triton").sum(), leaves)
    theirs = torch.autograd.grad(expert_mlp(x, up, down, routes, gates, backend="reference").sum(), leaves)
    torch.testing.assert_close(ours, theirs)


def test_empty_batch(backend: ExpertBackend) -> None:
    x, up, down, gates = leaves = mlp_leaves(0, 5, 4, 3, 2, torch.float32)
    routes = Routes(torch.zeros(0, 2, dtype=torch.int64), 4)
    y = expert_mlp(x, up, down, routes, gates, backend=backend)
    z = expert_linear(x, up, routes, gates, 0, backend=backend)
    assert (y.shape, z.shape) == ((0, 5), (0, 3))
    gradients = torch.autograd.grad(y.sum() + z.sum(), leaves)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("tiny_blocks")
def test_twenty_runs_give_the_same_bits() -> None:
    x, up, down, gates = leaves = mlp_leaves(12, 6, 2, 5, 2, torch.bfloat16)
    routes = Routes(unlike(12, 2, 2, "random"), 2)

    def run() -> list[Tensor]:
        y = expert_mlp(x, up, down, routes, gates, backend="triton")
        return [y, *torch.autograd.grad(y, leaves, y)]

    first = run()
    for _ in range(19 if DEVICE == "cuda" else 1):  # an interpreter has no parallel programs that could differ
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_nan_is_not_hidden() -> None:
    x, up, down, gates = mlp_leaves(6, 4, 2, 3, 1, torch.float32)
    with torch.no_grad():
        x[0, 0] = torch.nan
    routes = Routes(torch.zeros(6, 1, dtype=torch.long), 2)
    y = expert_mlp(x, up, down, routes, gates, backend="triton")
    assert y[0].isnan().all()
    assert not y[1:].isnan().any()


def test_hidden_values_are_kept_in_the_dtype_of_x_and_only_for_a_backward() -> None:
    from moeut.experts import fused

    x, up, down, gates = mlp_leaves(7, 5, 4, 3, 2, torch.bfloat16)
    routes = Routes(unlike(7, 4, 2, "random"), 4)
    ops = fused.deterministic.ops
    _, kept = ops.mlp(x, up, down, routes.order, routes.offsets, gates, True)
    _, dropped = ops.mlp(x, up, down, routes.order, routes.offsets, gates, False)
    assert (kept.shape, kept.dtype) == ((14, 3), torch.bfloat16)
    assert not kept.requires_grad
    assert dropped.numel() == 0


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_reduced_precision_is_asked_of_torch(precision: str) -> None:
    from moeut.experts import fused

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        routes = fused._Sorted(torch.arange(4), torch.tensor([0, 4]), torch.float32)
        assert routes.shape(5, 3)["PRECISION"] == precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_operators_are_what_torch_asks_of_them() -> None:
    from moeut.experts import fused

    ops, atomic = fused.deterministic.ops, fused.atomic.ops
    x, up, down, gates = mlp_leaves(2, 4, 1, 3, 1, torch.float32)
    routes = Routes(torch.zeros(2, 1, dtype=torch.int64), 1)
    order, offsets = routes.order, routes.offsets
    torch.library.opcheck(ops.mlp, (x, up, down, order, offsets, gates, True))
    torch.library.opcheck(ops.linear, (x, up, order, offsets, gates, 2))
    frozen = [tensor.detach() for tensor in (x, x, up, down, order, offsets, gates, torch.rand(2, 3))]
    torch.library.opcheck(ops.mlp_backward, (*frozen, [True, False, True, False]))
    torch.library.opcheck(atomic.mlp_backward, (*frozen, [True] * 4))
    frozen = [tensor.detach() for tensor in (torch.rand(2, 3), x, up, order, offsets, gates)]
    torch.library.opcheck(ops.linear_backward, (*frozen, [True] * 3))
    torch.library.opcheck(atomic.linear_backward, (*frozen, [True, False, True]))


def test_compiled_without_graph_breaks() -> None:
    def layer(x: Tensor, up: Tensor, down: Tensor, scores: Tensor) -> Tensor:
        gates, expert = scores.topk(2)
        routes = Routes(expert, 3)
        values = expert_linear(x, up, routes, gates.flatten(), 2 * x.shape[0], backend="triton")
        return expert_mlp(x, up, down, routes, gates.sigmoid().flatten(), backend="triton").sum() + values.cos().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (3, 2):
        leaves = [*mlp_leaves(tokens, 5, 3, 3, 2, torch.float32)[:3], torch.randn(tokens, 3, requires_grad=True)]
        ours, theirs = compiled(*leaves), layer(*leaves)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0.1, 16, 17, 100, 1e6])
def test_blocks_are_what_a_product_can_be_cut_into(rows: float, dtype: torch.dtype) -> None:
    from moeut.experts import fused

    blocks = fused.blocks_for(rows, dtype)
    for size in blocks[:3]:
        assert size >= 16
        assert size & (size - 1) == 0
    assert TOLERANCES[dtype]  # a dtype that the comparisons above know
