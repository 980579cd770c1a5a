"""How are sorted routes cut into groups that fit the cache, and what is done to the rows of one group?

Letters: R routes, D features of a row, n rows of one group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SCRATCH_BYTES = 4 * 2**20  # of one gathered group: small enough for the cache, large enough to hide the calls


@dataclass(frozen=True)
class Group:
    """Consecutive routes, in sorted order, that are processed together.

    span: their positions in the order.
    experts, sizes: the expert and the number of rows of each piece.
    continued: whether the piece goes on with an expert whose first rows were in an earlier group.
    """

    span: slice
    experts: list[int]
    sizes: list[int]
    continued: list[bool]

    @property
    def size(self) -> int:
        """The number of rows, n."""
        return self.span.stop - self.span.start


def cut(offsets: Tensor, width: int, dtype: torch.dtype) -> list[Group]:
    """Cut the routes that have an expert into groups whose rows of `width` numbers fit the scratch.

    Experts without rows are not visited. Only an expert that is too large for one group is itself cut.
    """
    limit = max(1, _SCRATCH_BYTES // (max(1, width) * dtype.itemsize))
    used, bounds = offsets.diff().nonzero()[:, 0].tolist(), offsets.tolist()
    pieces = [
        (begin, min(begin + limit, bounds[expert + 1]), expert, begin > bounds[expert])
        for expert in used
        for begin in range(bounds[expert], bounds[expert + 1], limit)
    ]
    groups: list[Group] = []
    first = 0
    for last in range(1, len(pieces) + 1):
        if last == len(pieces) or pieces[last][1] - pieces[first][0] > limit:
            begins, ends, experts, continued = zip(*pieces[first:last], strict=True)
            sizes = [end - begin for begin, end in zip(begins, ends, strict=True)]
            groups.append(Group(slice(begins[0], ends[-1]), list(experts), sizes, list(continued)))
            first = last
    return groups


def scratch(groups: list[Group], width: int, dtype: torch.dtype) -> Tensor:
    """Room for the rows of the largest group."""
    return torch.empty(max((group.size for group in groups), default=0), width, dtype=dtype)


def gather(x: Tensor, rows: Tensor, room: Tensor) -> Tensor:
    """The rows of x, written into the room in its dtype: [n, D]."""
    out = room[: len(rows)]
    return torch.index_select(x, 0, rows, out=out) if x.dtype == out.dtype else out.copy_(x.index_select(0, rows))


def scatter(y: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add each of the [n, D] values to its row of y, in order."""
    # Of torch's ways to do this, an index expanded over the last dimension is the one that sorts and sums row by row.
    y.scatter_add_(0, rows[:, None].expand_as(values), values)


def multiply(group: Group, left: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = left weight[e], for the rows of each expert e of the group."""
    for expert, rows, result in zip(group.experts, left.split(group.sizes), out.split(group.sizes), strict=True):
        torch.mm(rows, weight[expert].to(out.dtype), out=result)


def accumulate(group: Group, left: Tensor, right: Tensor, gradient: Tensor) -> None:
    """gradient[e] = leftᵀ right, for the rows of each expert e of the group, plus what earlier groups put there."""
    pieces = zip(group.experts, group.continued, left.split(group.sizes), right.split(group.sizes), strict=True)
    for expert, continued, a, b in pieces:
        target = gradient[expert]
        torch.addmm(target, a.mT, b, beta=float(continued), out=target)
