"""Which operations do experts need, and which implementation carries them out?

Two operations serve every use: `expert_mlp` is σ-MoE's feed-forward (paper, section 2.1), `expert_linear` is
SwitchHead's value and output projections (section 2.2). `Routes` says which row meets which expert. The meaning is in
`reference.py`; `cpu.py` computes the same faster on a CPU, and `native.py` faster still, in C++; `fused.py` is for
GPUs, and `grouped.py` uses PyTorch's own grouped product.

Letters: R routes, N input rows, M output rows, E experts, K routes per input row, D hidden size, S expert size, I input
features, O output features.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from moeut.experts import cpu, grouped, native, reference
from moeut.experts.autocast import rounded, without_autocast
from moeut.experts.routes import Routes

__all__ = ["ExpertBackend", "Routes", "expert_linear", "expert_mlp", "resolve_backend"]

ResolvedBackend = Literal["reference", "cpu", "native", "triton", "triton_atomic", "grouped"]
ExpertBackend = Literal["auto", ResolvedBackend]
_KNOWN = get_args(ExpertBackend)


def expert_mlp(
    x: Tensor, up: Tensor, down: Tensor, routes: Routes, gates: Tensor, *, backend: ExpertBackend = "auto"
) -> Tensor:
    """Feed each row through the two-layer perceptrons of its experts and add up the results, weighted.

        y_n = Σ_{routes r of row n} gate_r · relu(x_n up[e_r]) down[e_r]        route r belongs to row r // K

    x: [N, D]; up: [E, D, S]; down: [E, S, D]; routes: R = N·K of them; gates: [R]; returns [N, D] in the dtype of x.
    Gradients reach x, up, down and gates. 16-bit inputs are summed in float32. Under autocast x, up and down are
    rounded to autocast's dtype first, as in `torch.nn.functional.linear`; the gates are not.
    Source: paper, section 2.1.

    Raises ValueError where shapes or dtypes do not fit, or the backend cannot run on x's device or in its dtype.
    """
    x, up, down = rounded(x, up, down)
    _check(x, (up, down), routes, gates, x.shape[0])
    implementation = _implementation(backend, x)
    with without_autocast(x.device.type):
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

    Raises ValueError where shapes or dtypes do not fit, or the backend cannot run on x's device or in its dtype.
    """
    x, weight = rounded(x, weight)
    _check(x, (weight,), routes, gates, num_outputs)
    implementation = _implementation(backend, x)
    with without_autocast(x.device.type):
        return implementation.expert_linear(x, weight, routes, gates, num_outputs)


def resolve_backend(
    backend: ExpertBackend, device: torch.device, dtype: torch.dtype = torch.float32
) -> ResolvedBackend:
    """The backend that runs. `auto` is, on a CPU, "native" where that has been compiled on this machine before, and
    "cpu" where not; elsewhere "triton" where it can run, and "reference" where not. Any other choice is kept.

    Raises ValueError for an unknown name and for a backend that cannot run there.
    """
    if backend == "auto":
        if device.type == "cpu":
            return "native" if native.built() else "cpu"
        return "reference" if _refusal("triton", device, dtype) else "triton"
    if backend not in _KNOWN:
        raise ValueError(f"expert backend {backend!r} is unknown: use one of {', '.join(_KNOWN)}")
    if refusal := _refusal(backend, device, dtype):
        raise ValueError(f"expert backend {backend!r} needs {refusal}")
    return backend


# What torch.compiler.assume_constant_result does, without loading the compiler: a compiled graph holds the choice.
resolve_backend._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _refusal(backend: ResolvedBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """What a backend lacks to run on this device with this dtype, if it lacks something."""
    if backend in ("cpu", "native"):
        return None if device.type == "cpu" else f"tensors on a CPU, these are on {device}: use 'auto'"
    if backend == "reference":
        return None
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"float32, bfloat16 or float16, these are {dtype}: use 'reference'"
    if backend == "grouped":
        return None
    if find_spec("triton") is None:
        return "triton: pip install 'moeut[triton]'"
    if device.type == "cuda":
        old = torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
        return "a GPU of compute capability 8.0 or more: use 'reference'" if old else None
    if device.type == "cpu" and import_module("triton.knobs").runtime.interpret:
        return None
    return f"tensors on a GPU, these are on {device}: use 'auto'"


def _implementation(backend: ExpertBackend, x: Tensor):
    resolved = resolve_backend(backend, x.device, x.dtype)
    if resolved in ("triton", "triton_atomic"):
        from moeut.experts import fused  # only where it runs: it imports triton

        return fused.deterministic if resolved == "triton" else fused.atomic
    return {"reference": reference, "cpu": cpu, "native": native, "grouped": grouped}[resolved]


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
