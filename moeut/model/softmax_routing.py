"""How does the Sparse Universal Transformer choose experts? A two-layer router, softmax, and losses over the batch.

SUT is arXiv 2310.07096; the numbers follow the training code of arXiv 2405.16039. Letters: B batch, T tokens, E
experts, K selected, d hidden size, w the weight of a token (its survival, 1 without halting; 0 for padding).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.experts import Routes
from moeut.model.initialise import Linear, initialise, linear_default
from moeut.model.routing import Selection, at_experts, too_many, total, unless, wide_linear
from moeut.model.surroundings import Tokens, token_weights
from moeut.settings import STRICT, NonNegativeFloat, PositiveInt, refuse

LossForm = Literal["corrected", "official"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoftmaxRouterConfig:
    """What SUT's parts say of their routers. The losses and their coefficients are those of `SoftmaxRouter`.

    loss_form: `corrected`, or `official` as the official code computes it, which pushes the other way (see
    `mutual_information_loss`).
    """

    kind: str
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt = 2
    mutual_information_loss_coef: NonNegativeFloat = 0.001
    variation_loss_coef: NonNegativeFloat = 0.0
    switch_loss_coef: NonNegativeFloat = 0.0
    z_loss_coef: NonNegativeFloat = 0.0
    loss_form: LossForm = "corrected"

    def __post_init__(self) -> None:
        """Refuse to select more experts than there are."""
        refuse([too_many(self.num_experts_per_tok, self.num_experts)])


class SoftmaxUsage(NamedTuple):
    """How the experts were used: sums over tokens x of probabilities p(e|x), which may be added over applications.

    weight: Σ w. probability: [E], Σ w p. negative_entropy: Σ w Σ_e p ln p. Then over tokens with w > 0, all alike:
    tokens: their number. plain_probability: [E], Σ p. gate: [E], Σ of the experts' gates. choices: [E], how often each
    was selected. squared_log_normaliser: Σ (ln Σ_e exp s_e)².
    """

    weight: Tensor
    probability: Tensor
    negative_entropy: Tensor
    tokens: Tensor
    plain_probability: Tensor
    gate: Tensor
    choices: Tensor
    squared_log_normaliser: Tensor


class SoftmaxRouter(nn.Module):
    """s = tanh(x W₁ + b₁) W₂; p = softmax(s); S = top-K of s; gate p_e / (Σ_S p + 10⁻⁶) for e in S.

    hidden_proj: [d, d] and bias; weight: W₂ᵀ, [E, d]. At least float32 with autocast off, as in
    `moeut.model.routing.Router`. sampled: in training, the last so many of the K are drawn, with probabilities p +
    10⁻⁶, from the experts that are not among the first.

    Losses over all tokens of the batch and all applications of the layer, each times its coefficient:
    mutual information (`mutual_information_loss`), `variation_loss`, `switch_loss`, `z_loss`.
    """

    def __init__(self, name: str, config: SoftmaxRouterConfig, hidden_size: int, sampled: int = 0) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.sampled = sampled
        uniform = linear_default(hidden_size)
        self.hidden_proj = Linear(hidden_size, hidden_size, uniform, bias=uniform)
        self.initial = {"weight": uniform}
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        initialise(self)

    def forward(self, x: Tensor, tokens: Tokens) -> tuple[Selection, Routes]:
        """Select for x [B, T, d]: one group of experts. Halted tokens go to nobody, with gates of 0."""
        scores = self.scores(x)
        probabilities = scores.softmax(dim=-1)
        experts = numbers = self._choose(scores, probabilities)
        chosen = at_experts(probabilities, experts)
        gates = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-6)
        if tokens.survival is not None:
            halted, nobody = (tokens.survival == 0).unsqueeze(-1), self.config.num_experts
            gates = gates.masked_fill(halted, 0)
            experts, numbers = unless(halted, experts, numbers, nobody, nobody)
        usage = self._usage(scores, probabilities, experts, gates, tokens) if self.training and self._losses() else None
        selection = Selection(experts.unsqueeze(2), gates.unsqueeze(2).to(x.dtype), usage, scores.unsqueeze(2))
        return selection, Routes(numbers, self.config.num_experts)

    def scores(self, x: Tensor) -> Tensor:
        """Raw scores [B, T, E], at least float32."""
        hidden = wide_linear(x, self.hidden_proj.weight, self.hidden_proj.bias).tanh()
        return wide_linear(hidden, self.weight, None)

    def regulariser(self, applications: Sequence[SoftmaxUsage]) -> Tensor:
        """The weighted losses of what all applications of the layer in one pass reported."""
        usage = total(applications)
        return torch.stack([coefficient * loss(usage) for coefficient, loss in self._losses()]).sum()

    def _losses(self):
        config = self.config
        losses = [
            (config.mutual_information_loss_coef, lambda usage: mutual_information_loss(usage, config.loss_form)),
            (config.variation_loss_coef, variation_loss),
            (config.switch_loss_coef, switch_loss),
            (config.z_loss_coef, z_loss),
        ]
        return [(coefficient, loss) for coefficient, loss in losses if coefficient > 0]

    def _choose(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """The K experts of each token, [B, T, K]."""
        sampled = self.sampled if self.training else 0
        best = scores.detach().topk(self.config.num_experts_per_tok - sampled, dim=-1).indices
        if not sampled:
            return best
        others = (probabilities.detach() + 1e-6).scatter(-1, best, 0.0)
        drawn = torch.multinomial(others.flatten(0, 1), sampled).view(*others.shape[:2], sampled)
        return torch.cat([best, drawn], dim=-1)

    def _usage(
        self, scores: Tensor, probabilities: Tensor, experts: Tensor, gates: Tensor, tokens: Tokens
    ) -> SoftmaxUsage:
        weights = token_weights(tokens)
        weight = scores.new_ones(scores.shape[:2]) if weights is None else weights.to(scores.dtype)
        present = (weight > 0).to(scores.dtype)
        entropy = (probabilities * scores.log_softmax(dim=-1)).sum(dim=-1)
        # Without halting, the official code divides by tokens · experts where it means tokens.
        scale = self.config.num_experts if self.config.loss_form == "official" and tokens.survival is None else 1
        nobody = scores.new_zeros(*scores.shape[:2], self.config.num_experts + 1)
        gates_by_expert = nobody.scatter(-1, experts, gates)[..., :-1]
        choices = nobody.scatter(-1, experts, 1.0)[..., :-1]
        return SoftmaxUsage(
            weight=weight.sum() * scale,
            probability=torch.einsum("bt,bte->e", weight, probabilities),
            negative_entropy=(weight * entropy).sum(),
            tokens=present.sum(),
            plain_probability=torch.einsum("bt,bte->e", present, probabilities),
            gate=torch.einsum("bt,bte->e", present, gates_by_expert),
            choices=torch.einsum("bt,bte->e", present, choices),
            squared_log_normaliser=(present * scores.logsumexp(dim=-1).square()).sum(),
        )


def mutual_information_loss(usage: SoftmaxUsage, form: LossForm) -> Tensor:
    """H(E|X) − H(E), the negative mutual information of tokens and experts: least where each token is sure of its
    expert and all experts are used alike, −ln E.

    With w normalised over all tokens, P_e = Σ_x w_x p(e|x): H(E) = −Σ_e P_e ln P_e, H(E|X) = −Σ_x w_x Σ_e p ln p. The
    `official` form is H(E|X) + H(E), least where one expert gets everything.
    """
    weight = usage.weight.where(usage.weight > 0, 1)
    marginal = usage.probability / weight
    # The slope of x ln x at 0 is infinite, and infinity times a weight of 0 is NaN.
    negative_entropy = (marginal * marginal.clamp(min=torch.finfo(marginal.dtype).tiny).log()).sum()
    conditional = -usage.negative_entropy / weight
    return conditional + negative_entropy if form == "corrected" else conditional - negative_entropy


def variation_loss(usage: SoftmaxUsage) -> Tensor:
    """The squared coefficient of variation of the experts' shares of all gates: variance / (mean² + 10⁻¹⁰)."""
    share = _share(usage.gate)
    return share.var() / (share.mean().square() + 1e-10) if len(share) > 1 else share.new_zeros(())


def switch_loss(usage: SoftmaxUsage) -> Tensor:
    """E Σ_e (e's share of all probability) · (e's share of all choices), 1 where both are even (arXiv 2101.03961)."""
    return len(usage.choices) * (_share(usage.plain_probability) * _share(usage.choices)).sum()


def z_loss(usage: SoftmaxUsage) -> Tensor:
    """The mean over tokens of (ln Σ_e exp s_e)², which keeps scores small (arXiv 2202.08906)."""
    return usage.squared_log_normaliser / usage.tokens.clamp(min=1)


def _share(values: Tensor) -> Tensor:
    return values / values.sum().clamp(min=1e-12)
