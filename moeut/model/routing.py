"""Which experts does a token go to, and are they used evenly? Scores, top-k, gates, the balance term.

Paper sections 2.1 to 2.3. Letters: B batch, T tokens, G groups of experts (heads; 1 in a feed-forward layer), E experts
in a group, K selected in each group, d hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from moeut.experts import Routes
from moeut.model.initialise import Distribution, initialise


class Selection(NamedTuple):
    """What one router decided for every token.

    experts: [B, T, G, K] numbers within the group; E where expert dropout left fewer than K to choose from.
    gates: [B, T, G, K] sigmoid of the raw score, in the dtype of the layer's input.
    usage: [B, G, E] sum over the sequence's real tokens of softmax(scores), or None where nobody asked.
    """

    experts: Tensor
    gates: Tensor
    usage: Tensor | None


class Router(nn.Module):
    """σ-MoE's router: s = x Wᵀ; S = top-K of s in each group; gate p_e = σ(s_e) for e in S, not renormalised.

    weight: [G·E, d]. Scores are computed in at least float32 with autocast off, and the K best are chosen on the raw
    scores: sigmoids in bfloat16 saturate and tie. Differs from the official release in that, and in expert dropout,
    which hides experts from the choice only: gates come from the unmasked scores, and when fewer than K experts survive
    only these are used. Equations 2 and 3 (feed-forward), 7 to 10 (attention).
    """

    def __init__(
        self,
        hidden_size: int,
        num_groups: int,
        num_experts: int,
        num_experts_per_tok: int,
        *,
        expert_dropout: float,
        weight: Distribution,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.expert_dropout = expert_dropout
        self.initial = {"weight": weight}
        self.weight = nn.Parameter(torch.empty(num_groups * num_experts, hidden_size))
        initialise(self)

    def forward(self, x: Tensor, token_mask: Tensor | None, *, with_usage: bool) -> tuple[Selection, Routes]:
        """Select for x [B, T, d]; token_mask [B, T] is True at real tokens (None: all), which alone count as usage.

        The routes are the same selection, sorted for the expert products; expert e of group g has number g·E + e.
        """
        scores = self.scores(x)
        choosable = scores
        if self.training and self.expert_dropout > 0:
            choosable = scores.masked_fill(torch.rand_like(scores) < self.expert_dropout, -torch.inf)
        best, experts = choosable.detach().topk(self.num_experts_per_tok, dim=-1)
        gates = scores.gather(-1, experts).sigmoid().to(x.dtype)
        first_of_group = torch.arange(self.num_groups, device=x.device).unsqueeze(-1) * self.num_experts
        numbers = experts + first_of_group
        if self.training and self.expert_dropout > 0:
            survived = best > -torch.inf
            experts = experts.where(survived, self.num_experts)
            numbers = numbers.where(survived, self.num_groups * self.num_experts)
        usage = usage_sum(scores, token_mask) if with_usage else None
        return Selection(experts, gates, usage), Routes.sort(numbers, self.num_groups * self.num_experts)

    def scores(self, x: Tensor) -> Tensor:
        """Raw scores [B, T, G, E], at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            flat = nn.functional.linear(x.to(dtype), self.weight.to(dtype))
        return flat.unflatten(-1, (self.num_groups, self.num_experts))


def usage_sum(scores: Tensor, token_mask: Tensor | None) -> Tensor:
    """Σ_t softmax_e(scores_te) over the real tokens: [B, T, G, E] → [B, G, E]."""
    probabilities = scores.softmax(dim=-1)
    if token_mask is not None:
        probabilities = probabilities * token_mask[:, :, None, None]
    return probabilities.sum(dim=1)


def balance_loss(usage: Tensor, count: Tensor) -> Tensor:
    """The entropy term of one shared layer: mean over sequences and groups of Σ_e P_e ln P_e, between −ln E and 0.

    usage: [B, G, E] sum of softmax(scores) over a sequence's tokens and over the layer's repeats; count: [B] number of
    terms in that sum, so P = usage / count. Sequences without a single real token are left out. Paper section 2.2,
    equation 5 (the average is inside a sequence, unlike the original σ-MoE's over the batch).
    """
    mean = usage / count.clamp(min=1)[:, None, None]
    # Clamped inside the logarithm: the slope of x ln x at 0 is infinite, and infinity times a mask of 0 is NaN.
    logarithm = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    negative_entropy = (mean * logarithm).sum(dim=-1).mean(dim=-1)
    present = (count > 0).to(negative_entropy.dtype)
    return (negative_entropy * present).sum() / present.sum().clamp(min=1)
