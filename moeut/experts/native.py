"""How does a CPU carry out the two expert operations at its limit? In C++, each thread by itself.

`native.cpp` computes; this file compiles it on first use (`compiling.py`), hands it memory, and gives it gradients
(`operations.py`). The pure PyTorch path, `cpu.py`, needs no compiler and gives the same results but for rounding.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from moeut.experts.compiling import library_path, load_library, to_stderr
from moeut.experts.fresh_memory import fresh
from moeut.experts.operations import FewRoutes, Kernels, operations
from moeut.experts.reference import accumulation_dtype

SOURCE = Path(__file__).with_name("native.cpp")
_NAMES = {
    torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"
}  # fmt: skip
_MACS_OF_A_SHARE = 2**17  # waking a thread costs about as much as so many multiplications
_MOST_SHARES = 16  # each has an output of its own
_FEW_ROUTES = 4096


@cache
def built() -> bool:
    """Whether the library was there when this process first asked, so that using it compiles nothing."""
    return library_path(SOURCE).is_file()


@cache
def library() -> ctypes.CDLL:
    """The compiled library; the first call may compile it and then says so. Raises ValueError where that fails."""
    return load_library(SOURCE, to_stderr)


def call(name: str, dtype: torch.dtype, tensors: Sequence[Tensor | None], numbers: Sequence[int | float]) -> None:
    """Call a function of the library with pointers to tensors on the CPU, or to nothing, and then the numbers."""
    function = getattr(library(), f"moeut_{name}_{_NAMES[dtype]}")
    if function.argtypes is None:
        kinds = (ctypes.c_double if isinstance(number, float) else ctypes.c_int64 for number in numbers)
        function.restype, function.argtypes = None, [*[ctypes.c_void_p] * len(tensors), *kinds]
    function(*[None if tensor is None else tensor.data_ptr() for tensor in tensors], *numbers)


def shares_of(macs: int) -> int:
    """How many threads are worth waking for so many multiplications."""
    return min(torch.get_num_threads(), _MOST_SHARES, 1 + macs // _MACS_OF_A_SHARE)


def _mlp(
    x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return (y [N, D], relu(x up) [R, S] in sorted order); the second is empty unless `keep_hidden`."""
    wide, (N, D), (E, _, S), R = accumulation_dtype(x.dtype), x.shape, up.shape, len(order)
    shares = shares_of(2 * R * D * S)
    y, more = torch.empty(N, D, dtype=x.dtype), _more_outputs(shares, N * D, x.dtype)
    hidden = fresh((R if keep_hidden else 0, S), wide)
    if keep_hidden:
        hidden[offsets[-1] :] = 0  # routes without an expert
    call(
        "mlp", x.dtype,
        [x.contiguous(), up.contiguous(), down.contiguous(), order, offsets, gates.to(wide).contiguous(),
         hidden if keep_hidden else None, y, more],
        [E, N, D, S, R // max(1, N), shares],
    )  # fmt: skip
    return y, hidden


def _mlp_backward(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, hidden: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, up, down and gates; those not `needed` are empty."""
    wide, (N, D), (E, _, S), R = hidden.dtype, x.shape, up.shape, len(order)
    need_x, need_up, need_down, need_gates = needed
    shares = shares_of(4 * R * D * S)
    dx, more = x.new_empty((N, D) if need_x else 0), _more_outputs(shares, N * D, x.dtype) if need_x else None
    dup, up_rests = _matrix_gradient(up, need_up, shares, wide)
    ddown, down_rests = _matrix_gradient(down, need_down, shares, wide)
    dgates = gates.new_zeros(R if need_gates else 0, dtype=wide)
    call(
        "mlp_backward", x.dtype,
        [dy.contiguous(), x.contiguous(), up.contiguous(), down.contiguous(), order, offsets,
         gates.to(wide).contiguous(), hidden, dx if need_x else None, more, dup if need_up else None, up_rests,
         ddown if need_down else None, down_rests, dgates if need_gates else None],
        [E, N, D, S, R // max(1, N), shares],
    )  # fmt: skip
    return dx, dup.to(x.dtype), ddown.to(x.dtype), dgates.to(gates.dtype)


def _linear(
    x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, num_outputs: int
) -> Tensor:
    """Return y [M, O]."""
    wide, (E, I, O), R = accumulation_dtype(x.dtype), weight.shape, len(order)
    shares = shares_of(R * I * O)
    y, more = torch.empty(num_outputs, O, dtype=x.dtype), _more_outputs(shares, num_outputs * O, x.dtype)
    call(
        "linear", x.dtype,
        [x.contiguous(), weight.contiguous(), order, offsets, None if gates is None else gates.to(wide).contiguous(),
         y, more],
        [E, num_outputs, I, O, R // max(1, x.shape[0]), R // max(1, num_outputs), shares],
    )  # fmt: skip
    return y


def _linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and gates; those not `needed` are empty."""
    wide, (E, I, O), N, R = accumulation_dtype(x.dtype), weight.shape, x.shape[0], len(order)
    need_x, need_weight, need_gates = needed
    shares = shares_of(2 * R * I * O)
    dx, more = x.new_empty((N, I) if need_x else 0), _more_outputs(shares, N * I, x.dtype) if need_x else None
    dweight, rests = _matrix_gradient(weight, need_weight, shares, wide)
    dgates = x.new_zeros(R if need_gates else 0, dtype=wide)
    call(
        "linear_backward", x.dtype,
        [dy.contiguous(), x.contiguous(), weight.contiguous(), order, offsets,
         None if gates is None else gates.to(wide).contiguous(), dx if need_x else None, more,
         dweight if need_weight else None, rests, dgates if need_gates else None],
        [E, N, I, O, R // max(1, N), R // max(1, dy.shape[0]), shares],
    )  # fmt: skip
    return dx, dweight.to(x.dtype), dgates.to(x.dtype if gates is None else gates.dtype)


def _more_outputs(shares: int, size: int, dtype: torch.dtype) -> Tensor:
    """Room for the outputs of all shares; the first needs none where nothing is rounded."""
    wide = accumulation_dtype(dtype)
    return torch.empty(shares - (dtype == wide), size, dtype=wide)


def _matrix_gradient(weight: Tensor, need: bool, shares: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Room for the gradient of all experts' matrices, and for what each share but the first may have to add to it."""
    if not need:
        return weight.new_empty(0, dtype=dtype), None
    return fresh(tuple(weight.shape), dtype), torch.empty(shares - 1, weight[0].numel(), dtype=dtype)


def _are_few(num_routes: int, dtype: torch.dtype) -> bool:
    return num_routes <= _FEW_ROUTES


def _few_mlp(x: Tensor, up: Tensor, down: Tensor, expert: Tensor, gates: Tensor) -> Tensor:
    """Return y [N, D]; the same as `_mlp` gives. expert: [R], of each route."""
    (N, D), (E, _, S), R = x.shape, up.shape, len(expert)
    y = x.new_empty(N, D)
    call(
        "few_mlp", x.dtype,
        [x.contiguous(), up.contiguous(), down.contiguous(), expert.contiguous(),
         gates.to(accumulation_dtype(x.dtype)).contiguous(), y],
        [E, N, D, S, R, shares_of(2 * R * D * S)],
    )  # fmt: skip
    return y


def _few_linear(x: Tensor, weight: Tensor, expert: Tensor, gates: Tensor | None, num_outputs: int) -> Tensor:
    """Return y [M, O]; the same as `_linear` gives. expert: [R], of each route."""
    (E, I, O), R = weight.shape, len(expert)
    y = x.new_empty(num_outputs, O)
    call(
        "few_linear", x.dtype,
        [x.contiguous(), weight.contiguous(), expert.contiguous(),
         None if gates is None else gates.to(accumulation_dtype(x.dtype)).contiguous(), y],
        [E, x.shape[0], num_outputs, I, O, R, shares_of(R * I * O)],
    )  # fmt: skip
    return y


expert_mlp, expert_linear, ops = operations(
    "native", Kernels(_mlp, _mlp_backward, _linear, _linear_backward),
    few=FewRoutes(_are_few, _few_mlp, _few_linear, traceable=False),
)  # fmt: skip
