"""How is an expert layer run, and when is what it gives right?"""

from collections.abc import Callable

import torch
from torch import Tensor


def choose(tokens: int, experts: int, selected: int, routing: str = "uniform") -> tuple[Tensor, Tensor]:
    """Gates and experts [N, K]: near-uniform, or with the frequencies of Zipf's law."""
    scores = torch.rand(tokens, experts)
    if routing == "zipf":
        scores = torch.arange(1, experts + 1).pow(-1.0).log() - torch.log(-torch.log(scores))
    gates, chosen = scores.topk(selected, sorted=False)
    return gates.sigmoid(), chosen


def run_forward(layer: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [layer(*leaves)]


def run_both(layer: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradient of every tensor that has one."""
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    y = layer(*inputs)
    y.backward(torch.ones_like(y))
    return [y.detach(), *(leaf.grad for leaf in inputs if leaf.grad is not None)]


def close(ours: list[Tensor], theirs: list[Tensor], limit: float) -> bool:
    """Whether errors are at most `limit` times the largest value, but for one number in a thousand of each tensor.

    A hidden unit within rounding of zero has a gradient in one computation and none in another: a row then differs.
    """
    return all(
        a.isfinite().all() and ((a.float() - b.float()).abs() > limit * b.abs().max()).float().mean() <= 1e-3
        for a, b in zip(ours, theirs, strict=True)
    )
