"""Which operations do experts need, and which implementation carries them out?

Two operations serve every use: `expert_mlp` is σ-MoE's feed-forward (paper, section 2.1), `expert_linear` is
SwitchHead's value and output projections (section 2.2). `Routes` says which row meets which expert. The meaning is in
`reference.py`; `cpu.py` computes the same faster on a CPU, and `native.py` faster still, in C++.

Letters: R routes, N input rows, M output rows, E experts, K routes per input row, D hidden size, S expert size, I input
features, O output features.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from moeut.experts import cpu, native, reference
from moeut.experts.routes import Routes

__all__ = ["ExpertBackend", "Routes", "expert_linear", "expert_mlp", "resolve_backend"]

ExpertBackend = Literal["auto", "reference", "cpu", "native"]


def expert_mlp(
    x: Tensor, up: Tensor, down: Tensor, routes: Routes, gates: Tensor, *, backend: ExpertBackend = "auto"
) -> Tensor:
    """Feed each row through the two-layer perceptrons of its experts and add up the results, weighted.

        y_n = Σ_{routes r of row n} gate_r · relu(x_n up[e_r]) down[e_r]        route r belongs to row r // K

    x: [N, D]; up: [E, D, S]; down: [E, S, D]; routes: R = N·K of them; gates: [R]; returns [N, D] in the dtype of x.
    Gradients reach x, up, down and gates. 16-bit inputs are summed in float32. Under autocast x, up and down are
    rounded to autocast's dtype first, as in `torch.nn.functional.linear`; the gates are not.
    Source: paper, section 2.1.

    Raises ValueError where shapes or dtypes do not fit, or the backend cannot run on x's device.
    """
    x, up, down = _autocast(x, up, down)
    _check(x, (up, down), routes, gates, x.shape[0])
    implementation = _implementation(backend, x.device)
    with torch.autocast(x.device.type, enabled=False):
        return implementation.expert_mlp(x, up, down, routes, gates)


def expert_linear(
    x: Tensor,
    weight: Tensor,
    routes: Routes,
    gates: Tensor | None,
    num_outputs: int,
    *,
    backend: ExpertBackend = "auto",
) -> Tensor:
    """Multiply each route's input row by its expert's matrix and add up what belongs to one output row, weighted.

        y_m = Σ_{routes r of output m} gate_r · x_{r // (R / N)} weight[e_r]     route r belongs to output r // (R / M)

    x: [N, I]; weight: [E, I, O]; gates: [R], or None for ones; num_outputs: M; returns [M, O] in the dtype of x.
    R is a multiple of N and of M: SwitchHead's value projection has M = tokens · heads, its output projection
    N = tokens · heads and M = tokens. Dtypes and autocast as in `expert_mlp`. Source: paper, section 2.2.

    Raises ValueError where shapes or dtypes do not fit, or the backend cannot run on x's device.
    """
    x, weight = _autocast(x, weight)
    _check(x, (weight,), routes, gates, num_outputs)
    implementation = _implementation(backend, x.device)
    with torch.autocast(x.device.type, enabled=False):
        return implementation.expert_linear(x, weight, routes, gates, num_outputs)


def resolve_backend(backend: ExpertBackend, device: torch.device) -> Literal["reference", "cpu", "native"]:
    """The backend that runs. `auto` is "reference" where there is no CPU, otherwise "native" where that has been
    compiled on this machine before, and "cpu" where not; any other choice is kept.

    Raises ValueError for an unknown name and for a backend that cannot run on `device`.
    """
    if backend == "auto":
        return "reference" if device.type != "cpu" else "native" if native.built() else "cpu"
    if backend not in get_args(ExpertBackend):
        raise ValueError(f"expert backend {backend!r} is unknown: use one of {', '.join(get_args(ExpertBackend))}")
    if backend in ("cpu", "native") and device.type != "cpu":
        raise ValueError(f"expert backend {backend!r} needs tensors on a CPU, these are on {device}: use 'auto'")
    return backend


def _implementation(backend: ExpertBackend, device: torch.device):
    return {"reference": reference, "cpu": cpu, "native": native}[resolve_backend(backend, device)]


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on; like torch, it leaves float64 alone."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def _check(x: Tensor, weights: tuple[Tensor, ...], routes: Routes, gates: Tensor | None, num_outputs: int) -> None:
    num_routes = routes.expert.shape[0]
    for rows, name in ((x.shape[0], "input"), (num_outputs, "output")):
        if num_routes % rows if rows else num_routes:
            raise ValueError(f"{num_routes} routes cannot be shared out evenly over {rows} {name} rows")
    if gates is not None and gates.shape != (num_routes,):
        raise ValueError(f"gates must have shape ({num_routes},), one a route, not {tuple(gates.shape)}")
    for weight in weights:
        if weight.shape[0] != routes.num_experts:
            raise ValueError(f"the routes know {routes.num_experts} experts, the weights {weight.shape[0]}")
        if weight.dtype != x.dtype:
            raise ValueError(f"rows are {x.dtype} but weights {weight.dtype}: cast one of them, or use autocast")
