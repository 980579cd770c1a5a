"""What do the two expert operations mean?

A plain loop over experts in ordinary PyTorch: any device, any dtype, gradients by autograd. Every other backend is
tested against this file. 16-bit inputs are multiplied and summed in float32, and the result is rounded once.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

import torch
from torch import Tensor

from moeut.experts.routes import Routes


def expert_mlp(x: Tensor, up: Tensor, down: Tensor, routes: Routes, gates: Tensor) -> Tensor:
    """See `moeut.experts.expert_mlp`."""
    wide = accumulation_dtype(x.dtype)
    y = x.new_zeros(x.shape, dtype=wide)
    for route, U, V in zip(_routes_by_expert(routes), up.unbind(), down.unbind(), strict=True):
        row = _row(route, routes, x.shape[0])
        hidden = torch.relu(x[row].to(wide) @ U.to(wide))
        y.index_add_(0, row, gates[route, None].to(wide) * (hidden @ V.to(wide)))
    return y.to(x.dtype)


def expert_linear(x: Tensor, weight: Tensor, routes: Routes, gates: Tensor | None, num_outputs: int) -> Tensor:
    """See `moeut.experts.expert_linear`."""
    wide = accumulation_dtype(x.dtype)
    y = x.new_zeros((num_outputs, weight.shape[-1]), dtype=wide)
    for route, W in zip(_routes_by_expert(routes), weight.unbind(), strict=True):
        product = x[_row(route, routes, x.shape[0])].to(wide) @ W.to(wide)
        if gates is not None:
            product = gates[route, None].to(wide) * product
        y.index_add_(0, _row(route, routes, num_outputs), product)
    return y.to(x.dtype)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products are summed: float32 for 16-bit numbers, otherwise `dtype` itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _routes_by_expert(routes: Routes) -> list[Tensor]:
    """The routes of each expert, E tensors of routes; those without an expert are left out."""
    counts = routes.offsets.diff().tolist()
    return list(routes.order[: sum(counts)].split(counts))


def _row(route: Tensor, routes: Routes, rows: int) -> Tensor:
    """The rows that these routes read or write when all routes are spread evenly, in order, over `rows` rows."""
    return route // (routes.expert.shape[0] // rows) if rows else route
