"""How are rows multiplied by their experts' matrices on a GPU? The kernels, written in Triton.

`fused.py` launches them. Importing this file imports triton. Under TRITON_INTERPRET=1 triton runs the same kernels on a
CPU, slowly; then 16-bit numbers are widened as they are loaded, because the interpreter multiplies bfloat16 wrongly.

A *position* is a place in the order by expert, a *tile* BLOCK_M consecutive positions of one expert; routes without an
expert have tiles of their own (expert number E), whose results are zero. A *fan* says which row a route reads:
route // fan, or, with a fan of 0, the row of its position. Every sum has a fixed order, save those of
`matrix_gradient_kernel` where it is told to add atomically.

Letters: R routes, E experts, D hidden size, S expert size; of any product, I features of a row, O of a result.
"""

from typing import Any

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton import knobs  # pyright: ignore[reportMissingImports]

_jit: Any = triton.jit  # a kernel is launched as kernel[grid](…), which type checkers cannot see

INTERPRETED: bool = knobs.runtime.interpret  # as it was when the kernels below were defined
_WIDEN = tl.constexpr(INTERPRETED)


@_jit
def _load(pointer, mask):
    """Numbers, and zeros where the mask is false."""
    values = tl.load(pointer, mask=mask, other=0.0)
    if _WIDEN:
        values = values.to(tl.float32)
    return values


@_jit
def _tile(tiles, tile, num_tiles):
    """The expert of a tile, its first position and the end of its positions, equal where the tile is not needed."""
    return tl.load(tiles + tile), tl.load(tiles + num_tiles + tile), tl.load(tiles + 2 * num_tiles + tile)


@_jit
def _row(position, route, FAN: tl.constexpr):
    if FAN == 0:
        return position
    else:  # noqa: RET505 - both branches must be seen, only one is compiled
        return route // FAN


@_jit
def _product(
    left, row, counted, weight, expert, column, end_column,
    E: tl.constexpr, I: tl.constexpr, O: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left[row] @ weight[expert][:, column] in float32, zero for rows not counted; weight: [E, I, O], or [E, O, I]."""
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    matrix = weight + expert * I * O
    for first in range(0, tl.where(expert < E, I, 0), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = _load(left + row[:, None] * I + k[None, :], counted[:, None] & (k < I)[None, :])
        if TRANSPOSED:
            b = matrix + k[:, None] + column[None, :] * I
        else:
            b = matrix + k[:, None] * O + column[None, :]
        b = _load(b, (k < I)[:, None] & (column < end_column)[None, :])
        product = tl.dot(a, b, product, input_precision=PRECISION)
    return product


@_jit(do_not_specialize=["num_routes", "num_tiles"])
def tile_kernel(offsets, tiles, num_routes, num_tiles, E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """tiles [3, T]: expert, first position and end of each tile, in order. Program e writes those of expert e."""
    expert = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    begins = tl.load(offsets + e, mask=e <= E, other=num_routes)
    ends = tl.load(offsets + e + 1, mask=e < E, other=num_routes)
    first = tl.sum(tl.where(e < expert, tl.cdiv(ends - begins, BLOCK_M), 0), 0)
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1, mask=expert < E, other=num_routes)
    # The last program also marks the tiles that nobody needs: they begin and end at the last route.
    number = tl.cdiv(end - begin, BLOCK_M) if expert < E else num_tiles - first
    for i in range(0, number, BLOCK_E):
        tile = first + i + e
        written = i + e < number
        here = tl.minimum(begin + (i + e) * BLOCK_M, end)
        tl.store(tiles + tile, expert + tl.zeros_like(here), mask=written)
        tl.store(tiles + num_tiles + tile, here, mask=written)
        tl.store(tiles + 2 * num_tiles + tile, tl.minimum(here + BLOCK_M, end), mask=written)


@_jit(do_not_specialize=["num_tiles"])
def hidden_kernel(
    x, up, order, tiles, hidden, num_tiles, FAN: tl.constexpr, E: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden [R, S] by position: relu(x up)."""
    column_tiles: tl.constexpr = (S + BLOCK_N - 1) // BLOCK_N
    expert, begin, end = _tile(tiles, tl.program_id(0) // column_tiles, num_tiles)
    if begin == end:
        return
    position = begin + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < end
    route = tl.load(order + position, mask=inside, other=0)
    product = _product(
        x, route // FAN, inside, up, expert, column, S, E, D, S, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    product = tl.where(product < 0, 0.0, product)  # unlike a maximum, this keeps NaN
    mask = inside[:, None] & (column < S)[None, :]
    tl.store(hidden + position[:, None] * S + column[None, :], product.to(hidden.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["num_routes", "num_tiles"])
def hidden_gradient_kernel(
    dy, down, gates, hidden, order, tiles, dhidden, shares, num_routes, num_tiles, FAN: tl.constexpr, E: tl.constexpr,
    D: tl.constexpr, S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With A = dy downᵀ: dhidden [R, S] by position: gate · A where hidden > 0; shares [column tiles, R] by route, or
    None: rowsum(hidden · A) of each column tile, whose sum is the gradient of the gate."""
    column_tiles: tl.constexpr = (S + BLOCK_N - 1) // BLOCK_N
    column_tile = tl.program_id(0) % column_tiles
    expert, begin, end = _tile(tiles, tl.program_id(0) // column_tiles, num_tiles)
    if begin == end:
        return
    position = begin + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < end
    counted = position < tl.where(expert < E, end, begin)
    route = tl.load(order + position, mask=inside, other=0)
    product = _product(
        dy, route // FAN, counted, down, expert, column, S, E, D, S, True, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )
    element = position[:, None] * S + column[None, :]
    mask = inside[:, None] & (column < S)[None, :]
    h = _load(hidden + element, mask).to(tl.float32)
    if shares is not None:
        tl.store(shares + column_tile.to(tl.int64) * num_routes + route, tl.sum(h * product, 1), mask=inside)
    gate = _load(gates + route, counted).to(tl.float32)
    product = tl.where(h <= 0, 0.0, product * gate[:, None])
    tl.store(dhidden + element, product.to(dhidden.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["num_routes", "num_tiles"])
def route_kernel(
    left, weight, gates, other, order, tiles, out, shares, num_routes, num_tiles, first_column, end_column, width,
    LEFT_FAN: tl.constexpr, OTHER_FAN: tl.constexpr, E: tl.constexpr, I: tl.constexpr, O: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [R, width] by route: gate · left weight, its columns first_column … end_column − 1; gates may be None.

    shares [column tiles of O, R] by route, or None: rowsum(other · left weight) of each column tile.
    """
    column_tiles = tl.cdiv(end_column - first_column, BLOCK_N)
    column_tile = tl.program_id(0) % column_tiles
    expert, begin, end = _tile(tiles, tl.program_id(0) // column_tiles, num_tiles)
    if begin == end:
        return
    position = begin + tl.arange(0, BLOCK_M)
    column = first_column + column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < end
    counted = position < tl.where(expert < E, end, begin)
    route = tl.load(order + position, mask=inside, other=0)
    product = _product(
        left, _row(position, route, LEFT_FAN), counted, weight, expert, column, end_column, E, I, O, TRANSPOSED,
        BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    if shares is not None:
        element = _row(position, route, OTHER_FAN)[:, None] * O + column[None, :]
        partner = _load(other + element, counted[:, None] & (column < end_column)[None, :]).to(tl.float32)
        share = shares + (first_column // BLOCK_N + column_tile).to(tl.int64) * num_routes + route
        tl.store(share, tl.sum(partner * product, 1), mask=inside)
    if gates is not None:
        product *= _load(gates + route, counted).to(tl.float32)[:, None]
    mask = inside[:, None] & (column < end_column)[None, :]
    place = route[:, None] * width + (column - first_column)[None, :]
    tl.store(out + place, product.to(out.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["num_rows"])
def sum_kernel(
    products, y, num_rows, first_column, end_column, width, FAN: tl.constexpr, O: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y [M, O], its columns first_column … end_column − 1: the sums of FAN consecutive rows of products [R, width]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < num_rows)[:, None] & (column < end_column - first_column)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(FAN):
        total += _load(products + (row * FAN + i)[:, None] * width + column[None, :], mask)
    place = row[:, None] * O + (first_column + column)[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["num_tiles"])
def matrix_gradient_kernel(
    left, right, gates, order, offsets, tiles, gradient, num_tiles,
    LEFT_FAN: tl.constexpr, RIGHT_FAN: tl.constexpr, E: tl.constexpr, I: tl.constexpr, O: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gradient [E, I, O]: leftᵀ (gate · right), summed over the rows of each expert; gates may be None.

    A program sums all rows of one expert, or, where tiles are given, the rows of a tile, and adds them atomically to a
    gradient in float32 that was zero before.
    """
    tiles_i: tl.constexpr = (I + BLOCK_I - 1) // BLOCK_I
    tiles_o: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    parts: tl.constexpr = tiles_i * tiles_o
    part = tl.program_id(0) % parts
    piece = tl.program_id(0) // parts
    if tiles is None:
        expert = piece.to(tl.int64)
        begin, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    else:
        expert, begin, end = _tile(tiles, piece, num_tiles)
        if (begin == end) | (expert == E):
            return
    i = part // tiles_o * BLOCK_I + tl.arange(0, BLOCK_I)
    o = part % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    for first in range(begin, end, BLOCK_R):
        position = first + tl.arange(0, BLOCK_R)
        inside = position < end
        route = tl.load(order + position, mask=inside, other=0)
        a = _load(left + _row(position, route, LEFT_FAN)[:, None] * I + i[None, :], inside[:, None] & (i < I)[None, :])
        b = _load(
            right + _row(position, route, RIGHT_FAN)[:, None] * O + o[None, :], inside[:, None] & (o < O)[None, :]
        )
        if gates is not None:
            b = (b.to(tl.float32) * _load(gates + route, inside).to(tl.float32)[:, None]).to(a.dtype)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    place = gradient + expert * I * O + i[:, None] * O + o[None, :]
    mask = (i < I)[:, None] & (o < O)[None, :]
    if tiles is None:
        tl.store(place, total.to(gradient.dtype.element_ty), mask=mask)
    else:
        tl.atomic_add(place, total, mask=mask, sem="relaxed")
