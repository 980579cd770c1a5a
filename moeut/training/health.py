"""Are the experts of a run well? Which of them nobody chooses, and how evenly the others are used.

Letters: G groups of experts (heads; 1 in a feed-forward layer), E experts in a group, K selected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import ModelConfig
from moeut.model.routing import Selection
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.training.distributed import Ranks


class RouterHealth(NamedTuple):
    """How a router's experts were used.

    dead_experts: those that no token chose. usage_entropy: −Σ f ln f / ln E with f the share of the choices that an
    expert got, averaged over groups: 1 where all are used alike, 0 where one is used alone.
    """

    dead_experts: int
    usage_entropy: float


class RouteCounts:
    """How often each expert was chosen since the last report, by the layer it belongs to, over all ranks.

    Counting a step costs one pass over its choices and never waits for the device.
    """

    def __init__(self, config: ModelConfig, ranks: Ranks) -> None:
        self.ranks, self.schedule = ranks, config.schedule
        # One expert more in each group, which stands for none.
        self.shapes = {
            f"{layer}.{name}": (groups, experts + 1)
            for layer in range(config.group_size)
            for name, (groups, experts) in router_sizes(config).items()
        }
        size = sum(map(math.prod, self.shapes.values()))
        self.here = torch.zeros(size, dtype=torch.int64, device=ranks.device)
        self.everywhere = torch.zeros_like(self.here)

    def add(self, routing: Sequence[Mapping[str, Selection]]) -> None:
        """Count what the routers of each executed layer selected."""
        views = self._by_router(self.here)
        for layer, selections in zip(self.schedule, routing, strict=True):
            for name, selection in selections.items():
                # [B, T, G, K] → [G, B·T·K]
                experts = selection.experts.movedim(2, 0).flatten(1)
                views[f"{layer}.{name}"].scatter_add_(1, experts, torch.ones_like(experts))

    def state(self) -> list[int]:
        """The counts of all ranks, the same on each; every rank calls it."""
        self.everywhere += self.ranks.sum(self.here)
        self.here.zero_()
        return self.everywhere.tolist()

    def load(self, state: Sequence[int]) -> None:
        """Go on from what `state` gave, or begin with nothing."""
        self.clear()
        self.everywhere += torch.tensor(state or 0, device=self.ranks.device)

    def clear(self) -> None:
        """Begin anew."""
        self.here.zero_()
        self.everywhere.zero_()

    def health(self) -> dict[str, RouterHealth]:
        """How the experts of each router were used, by `LAYER.ROUTER`; every rank calls it."""
        counts = torch.tensor(self.state())
        return {name: router_health(router) for name, router in self._by_router(counts).items()}

    def _by_router(self, counts: Tensor) -> dict[str, Tensor]:
        parts = counts.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def router_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """G and E of each router of a layer, by the name under which the layer reports its selections."""
    sizes: dict[str, tuple[int, int]] = {}
    match config.attention:
        case SwitchHeadConfig(num_attention_heads=heads, num_experts=experts):
            sizes |= {"attention_value": (heads, experts), "attention_output": (heads, experts)}
        case AttentionExpertsConfig(num_experts=experts):
            sizes["attention"] = (1, experts)
        case DenseAttentionConfig():
            pass
    match config.feed_forward:
        case SigmaMoEConfig(num_experts=experts) | SoftmaxMoEConfig(num_experts=experts):
            sizes["feed_forward"] = (1, experts)
        case MLPConfig():
            pass
    return sizes


def router_health(counts: Tensor) -> RouterHealth:
    """Dead experts and usage entropy from counts [G, E + 1], the last of each group standing for no expert."""
    chosen = counts[:, :-1].double()
    shares = chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(dim=1).mean().item()
    return RouterHealth(int((chosen == 0).sum()), entropy / math.log(chosen.shape[1]) if chosen.shape[1] > 1 else 1.0)
