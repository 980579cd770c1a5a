"""How does a CPU carry out the two expert operations quickly, in PyTorch alone?

Routes are taken in the order of their experts, a group of experts at a time: gather the group's rows, multiply them by
one matrix after the other, scale, and add the results to their output rows. A group's rows stay in the processor's
cache, and nothing of size R × D is ever stored; for its backward, `expert_mlp` keeps R × S hidden values and no more.

Where there are few routes, as in decoding, reading the matrices takes the time: there the rows of a matrix are taken as
the vectors of an embedding, and one weighted sum of embeddings (`embedding_bag`) multiplies all routes at once.

Sums are taken in a fixed order: the same inputs give the same bits.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from moeut.experts.fresh_memory import fresh
from moeut.experts.groups import accumulate, cut, gather, multiply, scatter, scratch
from moeut.experts.operations import FewRoutes, Kernels, operations
from moeut.experts.reference import accumulation_dtype

_FEW_ROUTES = 256


def _mlp(
    x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return (y [N, D], relu(x up) [R, S] in sorted order); the second is empty unless `keep_hidden`."""
    dtype, D, S = accumulation_dtype(x.dtype), x.shape[1], up.shape[2]
    if not keep_hidden and _are_few(len(order), x.dtype):
        return _few_mlp(x, up, down, _experts(order, offsets), gates), x.new_empty(0, S)
    x, rows = x.contiguous(), _rows(order, x.shape[0])
    gate = gates.to(dtype)[order, None]
    y = x.new_zeros(x.shape, dtype=dtype)
    hidden = fresh((len(order) if keep_hidden else 0, S), dtype)
    hidden[offsets[-1] :] = 0  # routes without an expert
    groups = cut(offsets, D, dtype)
    scratch_rows, scratch_hidden, scratch_gated = (scratch(groups, width, dtype) for width in (D, S, S))
    for group in groups:
        z = gather(x, rows[group.span], scratch_rows)
        h = hidden[group.span] if keep_hidden else scratch_hidden[: group.size]
        multiply(group, z, up, h)
        h.relu_()
        gated = torch.mul(h, gate[group.span], out=scratch_gated[: group.size])
        multiply(group, gated, down, z)
        scatter(y, rows[group.span], z)
    return y.to(x.dtype), hidden


def _mlp_backward(
    dy: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    order: Tensor,
    offsets: Tensor,
    gates: Tensor,
    hidden: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, up, down and gates; those not `needed` are empty.

    With H = relu(x up) and A = dy downᵀ for the rows of an expert: dgate = rowsum(H · A), which spares the output of
    the down projection; ddown = (gate · H)ᵀ dy; with B = gate · A where H > 0: dup = xᵀ B and dx = B upᵀ.
    """
    dtype, D, S = hidden.dtype, x.shape[1], up.shape[2]
    need_x, need_up, need_down, need_gates = needed
    dy, x, rows = dy.contiguous(), x.contiguous(), _rows(order, x.shape[0])
    gate = gates.to(dtype)[order, None]
    dx = x.new_zeros(x.shape if need_x else 0, dtype=dtype)
    dgate = gate.new_zeros(len(order) if need_gates else 0, 1)
    dup, ddown = _fresh_gradient(up, need_up, offsets, dtype), _fresh_gradient(down, need_down, offsets, dtype)
    groups = cut(offsets, D, dtype)
    scratch_x, scratch_dy, scratch_hidden, scratch_a = (scratch(groups, width, dtype) for width in (D, D, S, S))
    for group in groups:
        row, h = rows[group.span], hidden[group.span]
        dz = gather(dy, row, scratch_dy)
        a = scratch_a[: group.size]
        multiply(group, dz, down.mT, a)
        product = scratch_hidden[: group.size]
        if need_gates:
            torch.sum(torch.mul(h, a, out=product), 1, keepdim=True, out=dgate[group.span])
        if need_down:
            accumulate(group, torch.mul(h, gate[group.span], out=product), dz, ddown)
        a.mul_(gate[group.span])
        torch.ops.aten.threshold_backward.grad_input(a, h, 0, grad_input=a)
        if need_up:
            accumulate(group, gather(x, row, scratch_x), a, dup)
        if need_x:
            multiply(group, a, up.mT, dz)
            scatter(dx, row, dz)
    return dx.to(x.dtype), dup.to(x.dtype), ddown.to(x.dtype), _unsort(dgate, order).to(gates.dtype)


def _linear(
    x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, num_outputs: int
) -> Tensor:
    """Return y [M, O]."""
    dtype, (_, I, O), x = accumulation_dtype(x.dtype), weight.shape, x.contiguous()
    if _are_few(len(order), x.dtype):
        return _few_linear(x, weight, _experts(order, offsets), gates, num_outputs)
    input_rows, output_rows = _rows(order, x.shape[0]), _rows(order, num_outputs)
    gate = None if gates is None else gates.to(dtype)[order, None]
    y = x.new_zeros(num_outputs, O, dtype=dtype)
    groups = cut(offsets, max(I, O), dtype)
    scratch_x, scratch_y = (scratch(groups, width, dtype) for width in (I, O))
    for group in groups:
        z, product = gather(x, input_rows[group.span], scratch_x), scratch_y[: group.size]
        if gate is not None and I < O:
            z.mul_(gate[group.span])
        multiply(group, z, weight, product)
        if gate is not None and I >= O:
            product.mul_(gate[group.span])
        scatter(y, output_rows[group.span], product)
    return y.to(x.dtype)


def _linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gates: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and gates; those not `needed` are empty.

    With A = dy weightᵀ for the rows of an expert: dgate = rowsum(x · A); dweight = xᵀ (gate · dy); dx = gate · A.
    """
    dtype, (_, I, O) = accumulation_dtype(x.dtype), weight.shape
    need_x, need_weight, need_gates = needed
    dy, x = dy.contiguous(), x.contiguous()
    input_rows, output_rows = _rows(order, x.shape[0]), _rows(order, dy.shape[0])
    gate = None if gates is None else gates.to(dtype)[order, None]
    dx = x.new_zeros(x.shape if need_x else 0, dtype=dtype)
    dgate = x.new_zeros(len(order) if need_gates else 0, 1, dtype=dtype)
    dweight = _fresh_gradient(weight, need_weight, offsets, dtype)
    groups = cut(offsets, max(I, O), dtype)
    scratch_x, scratch_a, scratch_dy = (scratch(groups, width, dtype) for width in (I, I, O))
    for group in groups:
        z = gather(x, input_rows[group.span], scratch_x)
        dz = gather(dy, output_rows[group.span], scratch_dy)
        a = scratch_a[: group.size]
        if need_x or need_gates:
            multiply(group, dz, weight.mT, a)
        if need_weight:
            accumulate(group, z, dz if gate is None else dz.mul_(gate[group.span]), dweight)
        if need_gates:
            torch.sum(z.mul_(a), 1, keepdim=True, out=dgate[group.span])
        if need_x:
            scatter(dx, input_rows[group.span], a if gate is None else a.mul_(gate[group.span]))
    return dx.to(x.dtype), dweight.to(x.dtype), _unsort(dgate, order).to(x.dtype if gates is None else gates.dtype)


def _are_few(num_routes: int, dtype: torch.dtype) -> bool:
    return 0 < num_routes <= _FEW_ROUTES and dtype in (torch.float32, torch.float64)


def _few_mlp(x: Tensor, up: Tensor, down: Tensor, expert: Tensor, gates: Tensor) -> Tensor:
    """Return y [N, D]. expert: [R], of each route."""
    hidden = _few_products(x, up, expert).relu_().mul_(_gates_of_experts(gates, expert, len(up)))
    return _few_products(hidden, down, expert).view(len(x), -1, x.shape[1]).sum(1)


def _few_linear(x: Tensor, weight: Tensor, expert: Tensor, gates: Tensor | None, num_outputs: int) -> Tensor:
    """Return y [M, O]. expert: [R], of each route."""
    products = _few_products(x, weight, expert)
    products *= _gates_of_experts(products.new_ones(()) if gates is None else gates, expert, len(weight))
    return products.view(num_outputs, -1, weight.shape[2]).sum(1)


def _few_products(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """x weight[e] of each route: [R, O]. x: [N, I]; weight: [E, I, O]; expert: [R].

    Routes without an expert get some expert's product.
    """
    E, I, O = weight.shape
    first = expert.clamp(max=E - 1)[:, None] * I
    weights = x.repeat_interleave(len(expert) // len(x), dim=0)
    return embedding_bag(first + torch.arange(I), weight.reshape(E * I, O), mode="sum", per_sample_weights=weights)


def _gates_of_experts(gates: Tensor, expert: Tensor, num_experts: int) -> Tensor:
    """[R, 1] gates, 0 for routes without an expert. gates: [R], or one for all."""
    return gates.masked_fill(expert == num_experts, 0)[:, None]


def _experts(order: Tensor, offsets: Tensor) -> Tensor:
    """The expert of each route [R], in the order of the routes; E for none."""
    sorted_experts = torch.bucketize(torch.arange(len(order)), offsets[1:], right=True)
    return torch.empty_like(order).index_copy_(0, order, sorted_experts)


def _rows(order: Tensor, rows: int) -> Tensor:
    """The row of each sorted route, when routes are spread evenly and in order over `rows` rows."""
    return order // (len(order) // rows) if rows else order


def _unsort(values: Tensor, order: Tensor) -> Tensor:
    """[R] values by route from [R, 1] values in sorted order; none from none."""
    return values.new_empty(len(values)).index_copy_(0, order[: len(values)], values[:, 0])


def _fresh_gradient(weight: Tensor, need: bool, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the gradient of `weight` in which only the experts without rows are zero; empty if there is no need."""
    if not need:
        return weight.new_empty(0, dtype=dtype)
    unused = (offsets.diff() == 0).nonzero()[:, 0]
    return fresh(weight.shape, dtype).index_fill_(0, unused, 0)


expert_mlp, expert_linear, ops = operations(
    "cpu", Kernels(_mlp, _mlp_backward, _linear, _linear_backward),
    few=FewRoutes(_are_few, _few_mlp, _few_linear, traceable=True),
)  # fmt: skip
