"""How does a GPU carry out the two expert operations? By Triton's kernels, which gather and scatter for themselves.

Routes come sorted by expert. Each program of a product takes a tile of routes of one expert, so only experts that have
rows are visited; the table of tiles is made on the device, which is never waited for. Where several routes end in one
row, a product by route is written for some columns at a time and summed over the routes in a fixed order: forwards are
deterministic, and nothing of size R × D is stored. Between its two products, `expert_mlp` rounds the hidden values to
the dtype of x, as a dense layer does, and keeps R × S of them for its backward.

`deterministic` sums the gradient of a matrix in one program; `atomic` lets several programs add to it, in no fixed
order.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moeut.experts import triton_kernels as kernels
from moeut.experts.operations import Kernels, Operations, operations

_WORKSPACE_BYTES = 64 * 2**20  # of products by route: near what an H100's cache holds, and worth a launch
_ATOMIC_ROWS = 512  # that one program sums before it adds


class Blocks(NamedTuple):
    """How a product is cut: rows, columns and inner features of a tile, and how a program is run."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


# By the mean number of rows an expert has, for 16-bit numbers and for float32.
_NARROW = {
    16: Blocks(16, 64, 128, 4, 4),
    48: Blocks(32, 128, 64, 4, 4),
    128: Blocks(64, 128, 64, 4, 4),
    2**62: Blocks(128, 128, 64, 8, 3),
}
_WIDE = {16: Blocks(16, 32, 64, 4, 3), 64: Blocks(32, 64, 32, 4, 3), 2**62: Blocks(64, 64, 32, 4, 3)}


def blocks_for(rows_per_expert: float, dtype: torch.dtype) -> Blocks:
    """How to cut products of experts that have so many rows on average."""
    table = _WIDE if dtype == torch.float32 else _NARROW
    return next(blocks for limit, blocks in table.items() if rows_per_expert <= limit)


class _Sorted:
    """Sorted routes, cut into tiles, and how products over them are launched."""

    def __init__(self, order: Tensor, offsets: Tensor, dtype: torch.dtype) -> None:
        self.order, self.offsets = order.contiguous(), offsets.contiguous()
        self.num_routes, self.num_experts = len(order), len(offsets) - 1
        self.blocks = blocks_for(self.num_routes / self.num_experts, dtype)
        self.tiles = self.cut(self.blocks.rows)
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        self.precision = "tf32" if tf32 else "ieee"

    def cut(self, rows: int) -> Tensor:
        """The table of tiles of so many rows, [3, T]; T is the most there can be."""
        R, E = self.num_routes, self.num_experts
        tiles = self.order.new_empty(3, min(R, R // rows + E + 1))
        kernels.tile_kernel[(E + 1,)](self.offsets, tiles, R, tiles.shape[1], E, rows, _power(E + 1))
        return tiles

    def shape(self, I: int, O: int) -> dict[str, int | str]:
        """How a product of I into O features is cut."""
        rows, columns, inner, warps, stages = self.blocks
        return {
            "BLOCK_M": rows, "BLOCK_N": min(columns, _power(O)), "BLOCK_K": min(inner, _power(I)),
            "PRECISION": self.precision, "num_warps": warps, "num_stages": stages,
        }  # fmt: skip

    def hidden(self, x: Tensor, up: Tensor) -> Tensor:
        """relu(x up) by position, [R, S]."""
        E, D, S = up.shape
        hidden, shape = x.new_empty(self.num_routes, S), self.shape(D, S)
        num_tiles = self.tiles.shape[1]
        kernels.hidden_kernel[(num_tiles * _tiles(S, shape["BLOCK_N"]),)](
            x, up, self.order, self.tiles, hidden, num_tiles, self.fan(len(x)), E, D, S, **shape
        )
        return hidden

    def hidden_gradient(
        self, dy: Tensor, down: Tensor, gates: Tensor, hidden: Tensor, need_gates: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of x up by position, [R, S], and that of the gates if it is needed, [R] in float32."""
        E, S, D = down.shape
        shape, num_tiles = self.shape(D, S), self.tiles.shape[1]
        dhidden, column_tiles = torch.empty_like(hidden), _tiles(S, shape["BLOCK_N"])
        shares = self._shares(column_tiles) if need_gates else None
        kernels.hidden_gradient_kernel[(num_tiles * column_tiles,)](
            dy, down, gates, hidden, self.order, self.tiles, dhidden, shares, self.num_routes, num_tiles,
            self.fan(len(dy)), E, D, S, **shape,
        )  # fmt: skip
        return dhidden, None if shares is None else shares.sum(0)

    def combine(
        self, left: Tensor, left_fan: int, weight: Tensor, transposed: bool, gates: Tensor | None, num_outputs: int,
        other: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Σ gate · left weight[e] over the routes of each output row: [M, O].

        Where `other` [rows, O] is given, also its dot product with left weight[e] for each route, [R] in float32.
        """
        E, R = self.num_experts, self.num_routes
        I, O = (weight.shape[2], weight.shape[1]) if transposed else weight.shape[1:]
        fan, shape, num_tiles = self.fan(num_outputs), self.shape(I, O), self.tiles.shape[1]
        y, block = left.new_empty(num_outputs, O), int(shape["BLOCK_N"])
        shares = None if other is None else self._shares(_tiles(O, block))
        other_fan = 1 if other is None else self.fan(len(other))
        width = O if fan == 1 else min(O, block * max(1, _WORKSPACE_BYTES // (4 * R * block)))
        products = y if fan == 1 else y.new_empty(R, width, dtype=torch.float32)
        for first in range(0, O, width):
            end = min(first + width, O)
            kernels.route_kernel[(num_tiles * _tiles(end - first, block),)](
                left, weight, gates, other, self.order, self.tiles, products, shares, R, num_tiles, first, end, width,
                left_fan, other_fan, E, I, O, transposed, **shape,
            )  # fmt: skip
            if fan > 1:
                kernels.sum_kernel[(_tiles(num_outputs, 16), _tiles(end - first, 128))](
                    products, y, num_outputs, first, end, width, fan, O, BLOCK_M=16, BLOCK_N=128
                )
        return y, None if shares is None else shares.sum(0)

    def matrix_gradient(
        self, left: Tensor, left_fan: int, right: Tensor, right_fan: int, gates: Tensor | None, atomic: bool
    ) -> Tensor:
        """leftᵀ (gate · right), summed over the rows of each expert: [E, I, O]."""
        E, I, O = self.num_experts, left.shape[1], right.shape[1]
        rows, columns, inner, warps, stages = self.blocks
        block_i, block_o = min(columns, _power(I)), min(columns, _power(O))
        tiles = self.cut(_ATOMIC_ROWS) if atomic else None
        pieces = E if tiles is None else tiles.shape[1]
        gradient = left.new_empty(E, I, O) if tiles is None else left.new_zeros(E, I, O, dtype=torch.float32)
        kernels.matrix_gradient_kernel[(pieces * _tiles(I, block_i) * _tiles(O, block_o),)](
            left, right, gates, self.order, self.offsets, tiles, gradient, pieces, left_fan, right_fan, E, I, O,
            block_i, block_o, min(rows, inner), self.precision, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return gradient.to(left.dtype)

    def fan(self, rows: int) -> int:
        """How many consecutive routes share one of so many rows."""
        return self.num_routes // rows

    def _shares(self, column_tiles: int) -> Tensor:
        return torch.empty(column_tiles, self.num_routes, dtype=torch.float32, device=self.order.device)


def _power(size: int) -> int:
    """The least power of two that is at least `size`, and 16, below which a tile cannot be multiplied."""
    return max(16, 1 << (size - 1).bit_length())


def _tiles(size: int, block: int | str) -> int:
    return -(-size // int(block))


def _mlp(
    x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return (y [N, D], relu(x up) [R, S] in sorted order); the second is empty unless `keep_hidden`."""
    if not len(order):
        return torch.zeros_like(x, memory_format=torch.contiguous_format), x.new_empty(0, up.shape[2])
    x, up, down, gates = (tensor.contiguous() for tensor in (x, up, down, gates))
    with torch.cuda.device_of(x):
        routes = _Sorted(order, offsets, x.dtype)
        hidden = routes.hidden(x, up)
        y, _ = routes.combine(hidden, 0, down, False, gates, len(x))
    return y, hidden if keep_hidden else hidden.new_empty(0, hidden.shape[1])


def _linear(
    x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, num_outputs: int
) -> Tensor:
    """Return y [M, O]."""
    if not len(order):
        return x.new_zeros(num_outputs, weight.shape[2])
    x, weight = x.contiguous(), weight.contiguous()
    gates = None if gates is None else gates.contiguous()
    with torch.cuda.device_of(x):
        routes = _Sorted(order, offsets, x.dtype)
        return routes.combine(x, routes.fan(len(x)), weight, False, gates, num_outputs)[0]


def _kernels(atomic: bool) -> Kernels:
    """The four functions; `atomic` says how the gradients of matrices are summed."""

    def mlp_backward(
        dy: Tensor, x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, hidden: Tensor,
        needed: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of x, up, down and gates; those not `needed` are empty.

        With H = relu(x up) and A = dy downᵀ for the rows of an expert: dgate = rowsum(H · A), which spares the output
        of the down projection; ddown = Hᵀ (gate · dy); with B = gate · A where H > 0: dup = xᵀ B and dx = B upᵀ.
        """
        if not len(order):
            return _zeros(x, needed[0]), _zeros(up, needed[1]), _zeros(down, needed[2]), _zeros(gates, needed[3])
        need_x, need_up, need_down, need_gates = needed
        dx, dup, ddown, dgates = x.new_empty(0), up.new_empty(0), down.new_empty(0), gates.new_empty(0)
        gates_dtype = gates.dtype
        dy, x, up, down, gates, hidden = (tensor.contiguous() for tensor in (dy, x, up, down, gates, hidden))
        with torch.cuda.device_of(x):
            routes, fan = _Sorted(order, offsets, x.dtype), len(order) // len(x)
            if need_down:
                ddown = routes.matrix_gradient(hidden, 0, dy, fan, gates, atomic)
            if need_x or need_up or need_gates:
                dhidden, gate_gradient = routes.hidden_gradient(dy, down, gates, hidden, need_gates)
                if gate_gradient is not None:
                    dgates = gate_gradient.to(gates_dtype)
                if need_up:
                    dup = routes.matrix_gradient(x, fan, dhidden, 0, None, atomic)
                if need_x:
                    dx, _ = routes.combine(dhidden, 0, up, True, None, len(x))
        return dx, dup, ddown, dgates

    def linear_backward(
        dy: Tensor, x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, needed: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and gates; those not `needed` are empty.

        With A = dy weightᵀ for the rows of an expert: dgate = rowsum(x · A); dweight = xᵀ (gate · dy); dx = gate · A.
        """
        need_x, need_weight, need_gates = needed
        dx, dweight, dgates = (
            x.new_empty(0),
            weight.new_empty(0),
            x.new_empty(0) if gates is None else gates.new_empty(0),
        )
        if not len(order):
            dgates = dgates if gates is None else _zeros(gates, need_gates)
            return _zeros(x, need_x), _zeros(weight, need_weight), dgates
        dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
        gates = None if gates is None else gates.contiguous()
        with torch.cuda.device_of(x):
            routes = _Sorted(order, offsets, x.dtype)
            x_fan, y_fan = routes.fan(len(x)), routes.fan(len(dy))
            if need_weight:
                dweight = routes.matrix_gradient(x, x_fan, dy, y_fan, gates, atomic)
            if need_x or need_gates:
                product, gate_gradient = routes.combine(
                    dy, y_fan, weight, True, gates, len(x), other=x if need_gates else None
                )
                dx = product if need_x else dx
                if gates is not None and gate_gradient is not None:
                    dgates = gate_gradient.to(gates.dtype)
        return dx, dweight, dgates

    return Kernels(_mlp, mlp_backward, _linear, linear_backward)


def _zeros(tensor: Tensor, need: bool) -> Tensor:
    return tensor.new_zeros(tensor.shape if need else 0)


deterministic: Operations = operations("triton", _kernels(atomic=False), hidden_dtype=lambda dtype: dtype)
atomic: Operations = operations("triton_atomic", _kernels(atomic=True), hidden_dtype=lambda dtype: dtype)
