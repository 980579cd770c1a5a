"""Which expert does each route go to, and which routes does each expert get?

A route is one token's choice of one expert. Routes are numbered by token: with K choices a token, token t has the
routes t·K … t·K + K − 1. An expert wants its routes side by side, so they are sorted by expert once, and every
projection, its backward included, uses that one order. Where a few routes are multiplied one by one, nobody asks for
the order, and nothing is sorted.

Letters: R routes, E experts.
"""

import torch
from torch import Tensor

_RADIX_SORT = 2**15  # numbers: below, torch compares them with each other on a CPU
_MANY_COMPARISONS = 2**13  # from here on they take longer than a radix sort of `_RADIX_SORT` numbers


class Routes:
    """The chosen experts and the routes of each. Nothing here has a gradient.

    expert: [R] int64, the expert of each route. `num_experts` itself means "no expert": such a route contributes
        nothing and gets no gradient.
    num_experts: E.
    """

    def __init__(self, expert: Tensor, num_experts: int) -> None:
        """expert: integers 0 … `num_experts` of any shape, flattened to [R]; the last means "no expert"."""
        self.expert = expert.reshape(-1).long()
        self.num_experts = num_experts
        self._sorted: tuple[Tensor, Tensor] | None = None

    @property
    def order(self) -> Tensor:
        """[R] int64, the routes sorted by expert; routes of one expert stay in their own order."""
        return self._by_expert()[0]

    @property
    def offsets(self) -> Tensor:
        """[E + 1] int64: `order[offsets[e]:offsets[e + 1]]` are the routes of expert e.

        `order[offsets[-1]:]` are those without an expert.
        """
        return self._by_expert()[1]

    def _by_expert(self) -> tuple[Tensor, Tensor]:
        """Order and offsets, sorted at the first call, without waiting for the device."""
        if self._sorted is None:
            # 16-bit integers sort two to three times as fast: fewer digits for the radix sort.
            narrow = torch.int16 if self.num_experts < 2**15 else torch.int64
            ordered, order = _sort(self.expert.to(narrow), self.num_experts)
            boundaries = torch.arange(self.num_experts + 1, dtype=narrow, device=self.expert.device)
            self._sorted = order, torch.searchsorted(ordered, boundaries)
        return self._sorted


def _sort(expert: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """Experts in order, and the route of each; no expert is greater than `last`."""
    num_routes = len(expert)
    if expert.device.type == "cpu" and _MANY_COMPARISONS <= num_routes < _RADIX_SORT:
        padded = torch.nn.functional.pad(expert, (0, _RADIX_SORT - num_routes), value=last)
        ordered, order = torch.sort(padded, stable=True)
        return ordered[:num_routes], order[:num_routes]
    return torch.sort(expert, stable=True)
