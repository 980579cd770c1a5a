"""What do the tests of every backend share? Layers of odd sizes, and the comparison with the reference."""

from collections.abc import Callable

import torch
from torch import Tensor

from moeut.experts import ExpertBackend

Layer = Callable[[ExpertBackend], Tensor]

# tokens N, hidden size D, experts E, expert size S, experts per token K
SHAPES = [(7, 5, 4, 3, 2), (33, 41, 9, 82, 3), (12, 412, 5, 41, 5), (1, 8, 6, 4, 2), (9, 6, 1, 5, 1), (5, 1, 3, 1, 2)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def unlike(N: int, E: int, K: int, kind: str) -> Tensor:
    """[N, K] experts: drawn at random (`random`), some without an expert (`sentinel`), all the same (`one`)."""
    if kind == "one":
        return torch.full((N, K), E - 1)
    expert = torch.rand(N, E).topk(K).indices
    return torch.where(torch.rand(N, K) < 0.3, E, expert) if kind == "sentinel" else expert


def mlp_leaves(N: int, D: int, E: int, S: int, K: int, dtype: torch.dtype) -> list[Tensor]:
    """x, up, down and gates, scaled so that outputs are of order one."""
    x, up, down = torch.randn(N, D), torch.randn(E, D, S) / D**0.5, torch.randn(E, S, D) / (K * S) ** 0.5
    return [tensor.to(dtype).requires_grad_() for tensor in (x, up, down, 0.5 + torch.rand(N * K))]


def values_and_gradients(layer: Layer, backend: ExpertBackend, leaves: list[Tensor]) -> list[Tensor]:
    y = layer(backend)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).cos().view(y.shape)
    return [y, *torch.autograd.grad(y, leaves, dy)]


def assert_equal_to_reference(layer: Layer, backend: ExpertBackend, leaves: list[Tensor]) -> None:
    """Compare with the reference, each tensor's largest error relative to its largest value."""
    ours = values_and_gradients(layer, backend, leaves)
    for mine, theirs in zip(ours, values_and_gradients(layer, "reference", leaves), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        if theirs.numel():
            error = (mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-6)
            assert error <= TOLERANCES[mine.dtype]
