"""What did a router select, at which depth, for which token, where in the text? Counted while the text goes by.

Letters: N positions, V vocabulary, R repeats of a layer, S sources, P ranges of positions, G groups of experts (heads;
1 in a feed-forward layer), E experts in a group, K selected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeut.model.language_model import LanguageModel
from moeut.model.routing import Router, Selection
from moeut.model.softmax_routing import SoftmaxRouter

POSITION_RANGES = 16
"""P. They double: 1 | 2 | 3–4 | 5–8 … of a block, where the first position is 1; the last range has no end."""
POSITIONS_AT_A_TIME = 1024
"""So many are compared between depths at once, to bound what is kept for them."""


@dataclass(frozen=True)
class RouterRecording:
    """What one router of one shared layer selected.

    name: as the layer reports it. layer: its place in the group. depths: [R], when it ran, counted from 0.
    num_experts_per_tok: K. counts: [depth, token, group, expert], how often an expert was selected for an input token.
    place_counts: [source, position range, group, expert], the same by where the token stood. overlap: [group, depth,
    depth], Σ |S ∩ S′| / |S ∪ S′| over the positions at which some expert was selected at both depths, S and S′ the
    experts selected; overlap_positions: [group, depth, depth], how many there were. What halted tokens did not select
    counts nowhere.
    """

    name: str
    layer: int
    depths: tuple[int, ...]
    num_experts_per_tok: int
    counts: NDArray[np.int32]
    place_counts: NDArray[np.int64]
    overlap: NDArray[np.float64]
    overlap_positions: NDArray[np.int64]


class RouterTally:
    """The sums of a `RouterRecording`, with one expert more in each group, which is nobody.

    Counts are on the model's device, sums of ratios on the CPU, since not all devices have float64.
    """

    def __init__(
        self, router: Router | SoftmaxRouter, layer: int, depths: tuple[int, ...], vocab_size: int, sources: int
    ):
        device, repeats = router.weight.device, len(depths)
        self.name, self.layer, self.depths = router.name, layer, depths
        self.num_experts_per_tok = router.config.num_experts_per_tok
        self.nobody = router.config.num_experts
        groups, width = router.weight.shape[0] // self.nobody, self.nobody + 1
        self.counts = torch.zeros(repeats, vocab_size, groups, width, dtype=torch.int32, device=device)
        self.place_counts = torch.zeros(sources, POSITION_RANGES, groups, width, dtype=torch.int64, device=device)
        self.overlap = torch.zeros(groups, repeats, repeats, dtype=torch.float64)
        self.overlap_positions = torch.zeros(groups, repeats, repeats, dtype=torch.int64, device=device)

    def add(
        self, routing: Sequence[Mapping[str, Selection]], places: Tensor, tokens: Tensor, ranges: Tensor, source: int
    ) -> None:
        """Count one batch.

        routing: for each executed layer its selections [B, T, G, K]. places: [N], which of the B·T positions count;
        tokens: [N], their input tokens; ranges: [N], their ranges of positions.
        """
        selected = [routing[depth][self.name].experts.flatten(0, 1)[places] for depth in self.depths]
        for counts, experts in zip(self.counts, selected, strict=True):
            count(counts, tokens, experts)
            count(self.place_counts[source], ranges, experts)
        for part in torch.stack(selected, dim=-2).split(POSITIONS_AT_A_TIME):
            ratios, both = overlaps(part, self.nobody)
            self.overlap += ratios.cpu()
            self.overlap_positions += both

    def recording(self) -> RouterRecording:
        """What has been counted so far."""
        return RouterRecording(
            self.name, self.layer, self.depths, self.num_experts_per_tok,
            self.counts[..., :-1].cpu().numpy(), self.place_counts[..., :-1].cpu().numpy(),
            self.overlap.numpy(), self.overlap_positions.cpu().numpy(),
        )  # fmt: skip


def router_tallies(model: LanguageModel, sources: int) -> list[RouterTally]:
    """A tally for each router of each shared layer, in the order in which they select."""
    return [
        RouterTally(router, layer, depths, model.config.vocab_size, sources)
        for layer, depths, router in model.stack.routers()
    ]


def count(table: Tensor, rows: Tensor, experts: Tensor) -> None:
    """Adds one to table[rows[n], g, experts[n, g, k]] for every n, g and k. rows: [N]; experts: [N, G, K]."""
    _, groups, width = table.shape
    firsts = (rows.unsqueeze(1) * groups + torch.arange(groups, device=rows.device)) * width
    cells = (experts + firsts.unsqueeze(2)).flatten()
    table.view(-1).scatter_add_(0, cells, table.new_ones(()).expand_as(cells))


def overlaps(selected: Tensor, nobody: int) -> tuple[Tensor, Tensor]:
    """Σ_n |S ∩ S′| / |S ∪ S′| between all pairs of depths, [G, R, R], and over how many positions each.

    selected: [N, G, R, K]; `nobody` is in no set, and an empty set is compared with none.
    """
    members = torch.zeros(*selected.shape[:-1], nobody + 1, device=selected.device).scatter_(-1, selected, 1.0)
    members[..., nobody] = 0
    sizes = members.sum(dim=-1)
    common = members @ members.mT
    union = sizes.unsqueeze(-1) + sizes.unsqueeze(-2) - common
    present = sizes > 0
    both = present.unsqueeze(-1) & present.unsqueeze(-2)
    return (common / union.clamp(min=1)).sum(dim=0), both.sum(dim=0)


def position_ranges(length: int) -> NDArray[np.int64]:
    """The range of each position of a block, [length]: ⌈log₂ position⌉ where the first position is 1."""
    exponents = np.frexp(np.arange(length))[1]
    return np.minimum(exponents, POSITION_RANGES - 1).astype(np.int64)
