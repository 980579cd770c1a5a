"""How are the two expert operations carried out with PyTorch's own grouped product?

`torch.nn.functional.grouped_mm` multiplies sorted rows by one matrix per expert in one call. It gathers and scatters
nothing, wants strides that are multiples of 16 bytes, and leaves rows without an expert unwritten: that is what this
file adds. Rows are gathered, and products summed over a row's routes, a piece of the workspace's size at a time, so
nothing of size R × D is stored; sums have a fixed order. Each product is rounded to the dtype of x before the sum over
a row's routes, which is in float32: the grouped product returns nothing wider.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from moeut.experts.operations import Kernels, operations

_WORKSPACE_BYTES = 16 * 2**20  # of a piece; a few such tensors live at a time
_ALIGNMENT_BYTES = 16


class _Sorted:
    """Sorted routes, and products over them."""

    def __init__(self, order: Tensor, offsets: Tensor) -> None:
        self.order, self.num_routes = order, len(order)
        self.ends = offsets[1:].int()
        self.unused = (offsets.diff() == 0)[:, None, None]
        self.without_expert = (torch.arange(self.num_routes, device=order.device) >= offsets[-1])[:, None]

    def rows(self, num_rows: int) -> Tensor:
        """The row of each sorted route, of so many rows."""
        return self.order // (self.num_routes // num_rows)

    def product(self, left: Tensor, rows: Tensor | None, weight: Tensor) -> Tensor:
        """left[rows] weight[e] by position, [R, O]; zero for routes without an expert. Without rows left is sorted."""
        result = left.new_empty(self.num_routes, weight.shape[2])
        weight = _aligned(weight)
        for begin, end in _pieces(self.num_routes, left.shape[1], left.dtype):
            piece = left[begin:end] if rows is None else left[rows[begin:end]]
            ends = (self.ends - begin).clamp(0, end - begin)
            result[begin:end] = grouped_mm(_aligned(piece), weight, offs=ends)
        return result.masked_fill_(self.without_expert, 0)

    def combine(
        self, left: Tensor, rows: Tensor | None, weight: Tensor, gates: Tensor | None, num_outputs: int,
        other: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Σ gate · left[rows] weight[e] over the routes of each output row: [M, O].

        Where `other` [rows, O] is given, also its dot product with left weight[e] for each route, [R] in float32.
        """
        y = left.new_empty(num_outputs, weight.shape[2])
        shares = left.new_zeros(self.num_routes, dtype=torch.float32)
        for begin, end in _pieces(weight.shape[2], self.num_routes, torch.float32):
            products = self.product(left, rows, weight[:, :, begin:end]).float()
            if other is not None:
                shares += (products * other[self.rows(len(other)), begin:end]).sum(1)
            products = self.by_route(products)
            if gates is not None:
                products *= gates[:, None]
            y[:, begin:end] = products.view(num_outputs, -1, end - begin).sum(1)
        return y, self.by_route(shares)

    def matrix_gradient(
        self, left: Tensor, left_rows: Tensor | None, right: Tensor, right_rows: Tensor | None, gates: Tensor | None
    ) -> Tensor:
        """left[left_rows]ᵀ (gate · right[right_rows]), summed over the rows of each expert: [E, I, O]."""
        gradient = left.new_empty(len(self.ends), left.shape[1], right.shape[1])
        for i, i_end in _pieces(left.shape[1], self.num_routes, left.dtype):
            a = left[:, i:i_end] if left_rows is None else left[left_rows, i:i_end]
            for o, o_end in _pieces(right.shape[1], self.num_routes, left.dtype):
                b = right[:, o:o_end] if right_rows is None else right[right_rows, o:o_end]
                b = b if gates is None else self.gated(b, gates)
                gradient[:, i:i_end, o:o_end] = grouped_mm(_aligned(a).mT, _aligned(b), offs=self.ends)
        return gradient.masked_fill_(self.unused, 0)

    def gated(self, values: Tensor, gates: Tensor) -> Tensor:
        """gate · values by position, in their dtype."""
        return (gates[self.order, None].float() * values).to(values.dtype)

    def by_route(self, values: Tensor) -> Tensor:
        """Values by route from values by position."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


def _mlp(
    x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return (y [N, D], relu(x up) [R, S] in sorted order); the second is empty unless `keep_hidden`."""
    if not len(order):
        return x.new_zeros(x.shape), x.new_empty(0, up.shape[2])
    routes = _Sorted(order, offsets)
    hidden = routes.product(x, routes.rows(len(x)), up).relu_()
    y, _ = routes.combine(hidden, None, down, gates, len(x))
    return y, hidden if keep_hidden else hidden.new_empty(0, hidden.shape[1])


def _mlp_backward(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, hidden: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, up, down and gates; those not `needed` are empty.

    With H = relu(x up) and A = dy downᵀ for the rows of an expert: dgate = rowsum(H · A); ddown = Hᵀ (gate · dy); with
    B = gate · A where H > 0: dup = xᵀ B and dx = B upᵀ.
    """
    need_x, need_up, need_down, need_gates = needed
    if not len(order):
        return _zeros(x, need_x), _zeros(up, need_up), _zeros(down, need_down), _zeros(gates, need_gates)
    routes = _Sorted(order, offsets)
    rows = routes.rows(len(x))
    dx, dup, ddown, dgates = (tensor.new_empty(0) for tensor in (x, up, down, gates))
    if need_down:
        ddown = routes.matrix_gradient(hidden, None, dy, rows, gates)
    if need_x or need_up or need_gates:
        a = routes.product(dy, rows, down.mT)
        if need_gates:
            dgates = routes.by_route((hidden.float() * a).sum(1)).to(gates.dtype)
        b = torch.ops.aten.threshold_backward(routes.gated(a, gates), hidden, 0)
        if need_up:
            dup = routes.matrix_gradient(x, rows, b, None, None)
        if need_x:
            dx, _ = routes.combine(b, None, up.mT, None, len(x))
    return dx, dup, ddown, dgates


def _linear(
    x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, num_outputs: int
) -> Tensor:
    """Return y [M, O]."""
    if not len(order):
        return x.new_zeros(num_outputs, weight.shape[2])
    routes = _Sorted(order, offsets)
    return routes.combine(x, routes.rows(len(x)), weight, gates, num_outputs)[0]


def _linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and gates; those not `needed` are empty.

    With A = dy weightᵀ for the rows of an expert: dgate = rowsum(x · A); dweight = xᵀ (gate · dy); dx = gate · A.
    """
    need_x, need_weight, need_gates = needed
    dx, dweight, dgates = x.new_empty(0), weight.new_empty(0), (x if gates is None else gates).new_empty(0)
    if not len(order):
        return _zeros(x, need_x), _zeros(weight, need_weight), dgates if gates is None else _zeros(gates, need_gates)
    routes = _Sorted(order, offsets)
    x_rows, y_rows = routes.rows(len(x)), routes.rows(len(dy))
    if need_weight:
        dweight = routes.matrix_gradient(x, x_rows, dy, y_rows, gates)
    if need_x or need_gates:
        product, shares = routes.combine(dy, y_rows, weight.mT, gates, len(x), x if need_gates else None)
        dx = product if need_x else dx
        dgates = shares.to(gates.dtype) if gates is not None and need_gates else dgates
    return dx, dweight, dgates


def _pieces(length: int, width: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Begins and ends that cut `length` into pieces whose [piece, width] numbers fit the workspace."""
    unit = _ALIGNMENT_BYTES // 2  # so many numbers are aligned, whatever their dtype
    step = max(1, _WORKSPACE_BYTES // (max(1, width) * dtype.itemsize * unit)) * unit
    return ((begin, min(begin + step, length)) for begin in range(0, length, step))


def _aligned(matrices: Tensor) -> Tensor:
    """The same numbers with strides that a grouped product takes: a copy where they are not so already.

    What fills the copy up is zero: oneDNN's product for AMX reads past the end of bfloat16 rows and multiplies by zero
    what it finds, which fresh memory could make NaN.
    """
    unit = _ALIGNMENT_BYTES // matrices.dtype.itemsize
    rows, columns = matrices.shape[-2:]
    for size, stride, unit_stride in (
        (columns, matrices.stride(-2), matrices.stride(-1)), (rows, matrices.stride(-1), matrices.stride(-2))
    ):  # fmt: skip
        outer_aligned = matrices.ndim == 2 or matrices.stride(0) % unit == 0
        if unit_stride == 1 and stride >= size and stride % unit == 0 and outer_aligned:
            return matrices
    padded = matrices.new_empty(*matrices.shape[:-1], -(-columns // unit) * unit)
    padded[..., columns:] = 0
    return padded[..., :columns].copy_(matrices)


def _zeros(tensor: Tensor, need: bool) -> Tensor:
    return tensor.new_zeros(tensor.shape if need else 0)


expert_mlp, expert_linear, ops = operations(
    "grouped", Kernels(_mlp, _mlp_backward, _linear, _linear_backward), hidden_dtype=lambda dtype: dtype
)
