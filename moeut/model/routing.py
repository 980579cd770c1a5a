"""Which experts does a token go to, and are they used evenly? Scores, top-k, gates, the balance term.

Paper sections 2.1 to 2.3. Letters: B batch, T tokens, G groups of experts (heads; 1 in a feed-forward layer), E experts
in a group, K selected in each group, d hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import Routes
from moeut.experts.autocast import without_autocast
from moeut.model.initialise import Distribution, initialise, zeros
from moeut.model.surroundings import Tokens, token_weights
from moeut.settings import STRICT, NonNegativeFloat, PositiveInt, Probability, refuse

GateName = Literal["sigmoid", "softmax", "softmax_of_selected"]
BalanceScope = Literal["sequence", "batch", "application"]
StatisticsT = TypeVar("StatisticsT", bound=NamedTuple)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RouterConfig:
    """What every part with σ-MoE's routers says of them.

    gate: a selected expert's weight is the `sigmoid` of its score, its share in a `softmax` over all scores, or its
    share in a `softmax_of_selected` scores. router_bias: add a learned number to each score. expert_dropout: rate at
    which an expert is hidden from a token's choice in training.

    router_aux_loss_coef: weight of the balance term; balance_scope: what use is averaged over before its entropy is
    taken: a `sequence` and all repeats of the layer (MoEUT), the whole `batch` and all repeats (the original σ-MoE; see
    docs/variants.md), or a sequence in each `application` of the layer, whose terms are averaged.
    """

    kind: str
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    router_aux_loss_coef: NonNegativeFloat = 0.0
    balance_scope: BalanceScope = "sequence"
    gate: GateName = "sigmoid"
    router_bias: bool = False
    expert_dropout: Probability = 0.0

    def __post_init__(self) -> None:
        """Refuse to select more experts than there are."""
        refuse([too_many(self.num_experts_per_tok, self.num_experts)])


def too_many(selected: int, experts: int) -> tuple[bool, str]:
    """Whether more experts are to be selected than there are, and what to say then (`moeut.settings.refuse`)."""
    return selected > experts, f"num_experts_per_tok: {selected} experts cannot be chosen from {experts}"


class Usage(NamedTuple):
    """How the experts were used, a sum over tokens that may be added over applications of a layer.

    probability: [B, G, E] sum of softmax(scores) over a sequence's tokens. tokens: [B] number of terms in it.
    """

    probability: Tensor
    tokens: Tensor


class Selection(NamedTuple):
    """What one router decided for every token.

    experts: [B, T, G, K] numbers within the group; E for nobody, where expert dropout left fewer than K to choose from
    or the token has halted. gates: [B, T, G, K] weights of the experts' results, in the dtype of the layer's input.
    statistics: what the router's regulariser asks of this application of the layer; None outside training and where
    its coefficients are 0. All fields of it may be added. scores: [B, T, G, E], raw, at least float32, what the choice
    was made of; None where nobody asked for them.
    """

    experts: Tensor
    gates: Tensor
    statistics: Any
    scores: Tensor | None


class Router(nn.Module):
    """σ-MoE's router: s = x Wᵀ (+ b); S = top-K of s in each group; gate p_e = σ(s_e) for e in S, not renormalised.

    weight: [G·E, d]; bias: [G·E]. Scores are computed in at least float32 with autocast off, and the K best are chosen
    on the raw scores: sigmoids in bfloat16 saturate and tie. Differs from the official release in that, and in expert
    dropout, which hides experts from the choice only: gates come from the unmasked scores, and when fewer than K
    experts survive only these are used. Equations 2 and 3 (feed-forward), 7 to 10 (attention).

    name: under which a layer reports what this router selected.
    """

    def __init__(
        self, name: str, config: RouterConfig, hidden_size: int, num_groups: int, weight: Distribution
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.num_groups = num_groups
        self.initial = {"weight": weight, "bias": zeros}
        self.weight = nn.Parameter(torch.empty(num_groups * config.num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_groups * config.num_experts)) if config.router_bias else None
        initialise(self)

    def forward(self, x: Tensor, tokens: Tokens) -> tuple[Selection, Routes]:
        """Select for x [B, T, d]; only real tokens count as usage, and halted ones go to nobody.

        The routes are the same selection, sorted for the expert products; expert e of group g has number g·E + e.
        """
        config, nobody = self.config, self.num_groups * self.config.num_experts
        scores = self.scores(x)
        choosable = scores
        dropping = self.training and config.expert_dropout > 0
        if dropping:
            choosable = scores.masked_fill(torch.rand_like(scores) < config.expert_dropout, -torch.inf)
        best, experts = choosable.detach().topk(config.num_experts_per_tok, dim=-1)
        gates = gate_function(config.gate)(scores, experts).to(x.dtype)
        numbers = experts
        if self.num_groups > 1:
            first_of_group = torch.arange(0, nobody, config.num_experts, device=x.device)
            numbers = experts + first_of_group.unsqueeze(-1)
        if dropping:
            experts, numbers = unless(best == -torch.inf, experts, numbers, config.num_experts, nobody)
        if tokens.survival is not None:
            halted = (tokens.survival == 0)[:, :, None, None]
            experts, numbers = unless(halted, experts, numbers, config.num_experts, nobody)
        usage = None
        if self.training and config.router_aux_loss_coef > 0:
            usage = usage_sum(scores, token_weights(tokens))
        return Selection(experts, gates, usage, scores), Routes(numbers, nobody)

    def scores(self, x: Tensor) -> Tensor:
        """Raw scores [B, T, G, E], at least float32."""
        return wide_linear(x, self.weight, self.bias).unflatten(-1, (self.num_groups, self.config.num_experts))

    def regulariser(self, applications: Sequence[Usage]) -> Tensor:
        """The coefficient times the balance term, of what all applications of the layer in one pass reported."""
        match self.config.balance_scope:
            case "sequence":
                terms = [total(applications)]
            case "batch":
                terms = [Usage(*(field.sum(dim=0, keepdim=True) for field in total(applications)))]
            case "application":
                terms = applications
        return self.config.router_aux_loss_coef * torch.stack([balance_loss(*usage) for usage in terms]).mean()


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in at least float32, with autocast off: what scores and probabilities are made of."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        return nn.functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def unless(
    nobody: Tensor, experts: Tensor, numbers: Tensor, expert_of_nobody: int, number_of_nobody: int
) -> tuple[Tensor, Tensor]:
    """Experts and their numbers over all groups [B, T, G, K], nobody's where `nobody` is true."""
    return experts.masked_fill(nobody, expert_of_nobody), numbers.masked_fill(nobody, number_of_nobody)


def gate_function(name: GateName) -> Callable[[Tensor, Tensor], Tensor]:
    """(scores [B, T, G, E], experts [B, T, G, K]) → gates [B, T, G, K]; names as in `RouterConfig`."""
    match name:
        case "sigmoid":
            return lambda scores, experts: at_experts(scores, experts).sigmoid()
        case "softmax":
            return lambda scores, experts: at_experts(scores.softmax(dim=-1), experts)
        case "softmax_of_selected":
            return lambda scores, experts: at_experts(scores, experts).softmax(dim=-1)


def at_experts(values: Tensor, experts: Tensor) -> Tensor:
    """Those of values [..., E] that belong to experts [..., K]: [..., K].

    The gradient of `gather` is a scatter, and the code that torch 2.13's compiler makes for CPUs may read the result
    of a scatter before it is there, which leaves routers of five or six experts without their gradient. A compiled
    graph has a sum instead, of which all terms but one are 0.
    """
    if not torch.compiler.is_compiling():
        return values.gather(-1, experts)
    numbers = torch.arange(values.shape[-1], device=values.device)
    return torch.where(experts.unsqueeze(-1) == numbers, values.unsqueeze(-2), 0).sum(dim=-1)


def without_scores(selections: dict[str, Selection]) -> dict[str, Selection]:
    """What routers selected, by name, without the scores, which are E / K times as large as the rest."""
    return {name: selection._replace(scores=None) for name, selection in selections.items()}


def total(applications: Sequence[StatisticsT]) -> StatisticsT:
    """The statistics of several applications of a layer, added field by field."""
    sums = (torch.stack(field).sum(dim=0) for field in zip(*applications, strict=True))
    return type(applications[0])._make(sums)


def usage_sum(scores: Tensor, weights: Tensor | None) -> Usage:
    """Σ_t w_t softmax_e(scores_te) [B, G, E] and Σ_t w_t [B] for scores [B, T, G, E], weights [B, T] (None: ones)."""
    probabilities = scores.softmax(dim=-1)
    if weights is None:
        count = torch.full(scores.shape[:1], scores.shape[1], device=scores.device)
        return Usage(probabilities.sum(dim=1), count)
    return Usage((probabilities * weights[:, :, None, None]).sum(dim=1), weights.sum(dim=1))


def balance_loss(probability: Tensor, count: Tensor) -> Tensor:
    """The entropy term of one shared layer: mean over sequences and groups of Σ_e P_e ln P_e, between −ln E and 0.

    probability: [B, G, E] sum of softmax(scores) over a sequence's tokens and over the layer's repeats; count: [B]
    number of terms in that sum, so P = probability / count. Sequences without a single real token are left out. Paper
    section 2.2, equation 5 (the average is inside a sequence, unlike the original σ-MoE's over the batch).
    """
    mean = probability / count.where(count > 0, 1)[:, None, None]
    # Clamped inside the logarithm: the slope of x ln x at 0 is infinite, and infinity times a mask of 0 is NaN.
    logarithm = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    negative_entropy = (mean * logarithm).sum(dim=-1).mean(dim=-1)
    present = (count > 0).to(negative_entropy.dtype)
    return (negative_entropy * present).sum() / present.sum().clamp(min=1)
