"""How do four plain functions of a backend become the two expert operations?

A backend computes with tensors and knows nothing of autograd. Here its functions become custom ops: they have
gradients, a compiled graph holds them as they are (so how many rows an expert has, known only at run time, stays out of
it), and they say what shapes they return without computing anything.

Gradients of gradients are not offered; `moeut.experts.reference` has them.

Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from moeut.experts.reference import accumulation_dtype
from moeut.experts.routes import Routes


class Kernels(NamedTuple):
    """What a backend computes. order [R] and offsets [E + 1] are those of `moeut.experts.routes.Routes`.

    mlp: (x [N, D], up [E, D, S], down [E, S, D], order, offsets, gates [R], keep_hidden) → y [N, D] and H = relu(x up)
    [R, S] in sorted order, in a dtype of the backend's choice; H is empty ([0, S]) unless `keep_hidden`.
    mlp_backward: (dy, x, up, down, order, offsets, gates, H, needed) → gradients of x, up, down, gates; those not
    `needed` (four truth values) are empty.
    linear: (x [N, I], weight [E, I, O], order, offsets, gates or None, M) → y [M, O].
    linear_backward: (dy, x, weight, order, offsets, gates or None, needed) → gradients of x, weight, gates, likewise.

    Every result is contiguous and shares no memory with an argument. Arguments may have any strides.
    """

    mlp: Callable[..., tuple[Tensor, Tensor]]
    mlp_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    linear: Callable[..., Tensor]
    linear_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


class FewRoutes(NamedTuple):
    """What a backend computes where routes are few and nobody asks for gradients, as in decoding.

    There, a custom op and the sorting of routes take as long as the products: these functions are called as they are,
    and get the expert of each route, unsorted.

    take: whether so many routes, of rows in this dtype, are few. mlp: (x [N, D], up [E, D, S], down [E, S, D], expert
    [R], gates [R]) → y [N, D]. linear: (x [N, I], weight [E, I, O], expert, gates or None, M) → y [M, O]. traceable:
    whether they are made of PyTorch's operations, so that a compiled graph may have them instead of the custom op.
    """

    take: Callable[[int, torch.dtype], bool]
    mlp: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
    traceable: bool


class Ops(NamedTuple):
    """The same functions as custom ops."""

    mlp: OpOverload
    mlp_backward: OpOverload
    linear: OpOverload
    linear_backward: OpOverload


class Operations(NamedTuple):
    """`moeut.experts.expert_mlp` and `expert_linear` of one backend, and the custom ops that they are made of."""

    expert_mlp: Callable[[Tensor, Tensor, Tensor, Routes, Tensor], Tensor]
    expert_linear: Callable[[Tensor, Tensor, Routes, Tensor | None, int], Tensor]
    ops: Ops


def operations(
    backend: str,
    kernels: Kernels,
    hidden_dtype: Callable[[torch.dtype], torch.dtype] = accumulation_dtype,
    few: FewRoutes | None = None,
) -> Operations:
    """The operations of a backend; `backend` becomes part of the names of its custom ops.

    hidden_dtype: the dtype of H for a dtype of x. few: what computes few routes without gradients, where that is not
    left to `kernels`.
    """

    def mlp_shapes(
        x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, keep_hidden: bool
    ) -> tuple[Tensor, Tensor]:
        hidden = x.new_empty((order.shape[0] if keep_hidden else 0, up.shape[2]), dtype=hidden_dtype(x.dtype))
        return x.new_empty(x.shape), hidden

    shapes = Kernels(mlp_shapes, _mlp_backward_shapes, _linear_shapes, _linear_backward_shapes)
    ops = Ops(
        *(
            _custom_op(f"expert_{kind}_{backend}", kernel, fake)
            for (kind, kernel), fake in zip(kernels._asdict().items(), shapes, strict=True)
        )
    )

    def differentiate_mlp(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5)]
        gradients = ops.mlp_backward(dy, *ctx.saved_tensors, needed)
        dx, dup, ddown, dgates = (gradient if need else None for gradient, need in zip(gradients, needed, strict=True))
        return dx, dup, ddown, None, None, dgates, None

    def differentiate_linear(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
        gradients = ops.linear_backward(dy, *ctx.saved_tensors, needed)
        dx, dweight, dgates = (gradient if need else None for gradient, need in zip(gradients, needed, strict=True))
        return dx, dweight, None, None, dgates, None

    torch.library.register_autograd(ops.mlp, differentiate_mlp, setup_context=_save_mlp)
    torch.library.register_autograd(ops.linear, differentiate_linear, setup_context=_save_linear)

    def expert_mlp(x: Tensor, up: Tensor, down: Tensor, routes: Routes, gates: Tensor) -> Tensor:
        differentiable = _differentiable(x, up, down, gates)
        if few is not None and not differentiable and _at_once(few, routes, x):
            return few.mlp(x, up, down, routes.expert, gates)
        return ops.mlp(x, up, down, routes.order, routes.offsets, gates, differentiable)[0]

    def expert_linear(x: Tensor, weight: Tensor, routes: Routes, gates: Tensor | None, num_outputs: int) -> Tensor:
        if few is not None and not _differentiable(x, weight, gates) and _at_once(few, routes, x):
            return few.linear(x, weight, routes.expert, gates, num_outputs)
        return ops.linear(x, weight, routes.order, routes.offsets, gates, num_outputs)

    return Operations(expert_mlp, expert_linear, ops)


def _custom_op(name: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> OpOverload:
    """What `torch.library.custom_op` makes, but for its check that no result shares memory with an argument.

    The tests check that. At every call it takes longer than a small product.
    """
    qualified = f"moeut::{name}"
    schema = torch.library.infer_schema(kernel, mutates_args=())
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    # A graph that was compiled calls the kernel as it is, and nothing shall be compiled inside it.
    untraced = torch._disable_dynamo(kernel)  # pyright: ignore
    torch.library.impl(qualified, "default", untraced)
    torch.library.register_fake(qualified, shapes)
    return getattr(torch.ops.moeut, name).default


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _at_once(few: FewRoutes, routes: Routes, x: Tensor) -> bool:
    # What else stands for a tensor, as one without values does, needs the custom op: it is what it knows.
    known = few.traceable if torch.compiler.is_compiling() else type(x) is Tensor
    return known and few.take(len(routes.expert), x.dtype)


def _save_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, up, down, order, offsets, gates, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, up, down, order, offsets, gates, output[1])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _mlp_backward_shapes(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor, gates: Tensor, hidden: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x, needed[0]), _like(up, needed[1]), _like(down, needed[2]), _like(gates, needed[3])


def _linear_shapes(
    x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, num_outputs: int
) -> Tensor:
    return x.new_empty((num_outputs, weight.shape[2]))


def _linear_backward_shapes(
    dy: Tensor, x: Tensor, weight: Tensor, order: Tensor, offsets: Tensor, gates: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dgates = x.new_empty(0) if gates is None else _like(gates, needed[2])
    return _like(x, needed[0]), _like(weight, needed[1]), dgates


def _like(tensor: Tensor, need: bool) -> Tensor:
    return tensor.new_empty(tensor.shape if need else 0)
