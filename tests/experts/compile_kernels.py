"""Compile, on a machine without a GPU, every kernel that layers of one shape launch on one: `test_triton_kernels.py`.

    python compile_kernels.py ARCHITECTURE DTYPE tf32|ieee SHAPE

Nothing runs: tensors have no memory, and a launch compiles the kernel for the arguments that it was given.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

from moeut.experts import fused, triton_kernels

# tokens, hidden size, experts, expert size, experts per token, heads, head size, experts per head
SHAPES = {
    "feed-forward": (4096, 412, 155, 128, 12, 0, 1, 1),
    "44m": (4096, 412, 155, 128, 12, 4, 82, 8),
    "244m": (4096, 1024, 387, 128, 16, 4, 128, 10),
    "decoding": (1, 1024, 387, 128, 16, 4, 128, 10),
}
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}
LEAST_SHARED_MEMORY = 101376  # of a program, on the GPUs since 8.0 that have the least


class Compiler:
    """Stands for a kernel; a launch compiles it, once for each kind of arguments."""

    def __init__(self, kernel: Any, target: GPUTarget) -> None:
        self.kernel, self.target, self.seen = kernel, target, set[str]()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return self.compile

    def compile(self, *positional: Any, num_warps: int = 4, num_stages: int = 3, **named: Any) -> None:
        """Compile for these arguments, as Triton's launcher would specialise them."""
        arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | named
        signature, constants, hints = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = arguments[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                hints[(place,)] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
                signature[parameter.name], constants[(place,)] = "constexpr", value
            else:
                signature[parameter.name] = "i32"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    hints[(place,)] = [["tt.divisibility", 16]]
        key = repr((signature, constants, hints, num_warps, num_stages))
        if key not in self.seen:
            self.seen.add(key)
            source = ASTSource(self.kernel, signature, constants, hints)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            shared = triton.compile(source, target=self.target, options=options).metadata.shared
            assert shared <= LEAST_SHARED_MEMORY, f"{self.kernel.__name__} takes {shared} bytes of shared memory"
            sys.stdout.write(f"{self.kernel.__name__} {shared}\n")


def launch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Forward and backward of a σ-MoE, and of SwitchHead's value and output projections."""
    N, D, E, S, K, heads, P, A = shape

    def empty(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(sizes, dtype=dtype)

    def routes(number: int, experts: int) -> tuple[Tensor, Tensor]:
        return empty(number, dtype=torch.int64), empty(experts + 1, dtype=torch.int64)

    order, offsets = routes(N * K, E)
    x, up, down, gates = empty(N, D), empty(E, D, S), empty(E, S, D), empty(N * K, dtype=torch.float32)
    for atomic in (True, False):
        mlp, mlp_backward, linear, linear_backward = fused._kernels(atomic)
        y, hidden = mlp(x, up, down, order, offsets, gates, True)
        mlp_backward(y, x, up, down, order, offsets, gates, hidden, [True] * 4)
    if not heads:
        return
    order, offsets = routes(2 * N * heads, heads * A)
    gates = empty(2 * N * heads, dtype=torch.float32)
    for rows, outputs, weight in (
        (x, N * heads, empty(heads * A, D, P)),
        (empty(N * heads, P), N, empty(heads * A, P, D)),
    ):
        y = linear(rows, weight, order, offsets, gates, outputs)
        linear_backward(y, rows, weight, order, offsets, gates, [True] * 3)


if __name__ == "__main__":
    architecture, dtype_name, precision, shape = sys.argv[1:]
    assert not triton_kernels.INTERPRETED
    torch.backends.cuda.matmul.fp32_precision = precision
    gpu = GPUTarget("cuda", int(architecture), 32)
    for name in [name for name in dir(triton_kernels) if name.endswith("_kernel")]:
        setattr(triton_kernels, name, Compiler(getattr(triton_kernels, name), gpu))
    with torch.device("meta"):
        launch(SHAPES[shape], getattr(torch, dtype_name))
