"""When has a token been thought about enough? Adaptive computation time: each token stops at a depth of its own.

After each layer a gate says how likely the token is to stop here. Its result is a mixture of its states at all depths;
what the layers read as keys and values is the mixture so far. Once next to nothing of a token goes on, it has halted:
its mixture stays, and deeper layers use it as it is.

Graves, arXiv 1603.08983; Universal Transformer, arXiv 1807.03819; Sparse Universal Transformer, arXiv 2310.07096, whose
way of making probabilities (each depth takes its share of what is left) serves all of them here. Letters: B batch, T
tokens, d hidden size, n depth (0 is the first layer), L executed layers.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from moeut.model.initialise import Linear, linear_default, zeros
from moeut.model.routing import wide_linear
from moeut.model.softmax_routing import LossForm
from moeut.settings import STRICT, NonNegativeFloat

MixtureName = Literal["accumulated", "interpolated"]
Mixture = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActConfig:
    """Adaptive computation time.

    threshold: τ; a token halts when less than 1 − τ of it goes on. mixture: how a state with weight w enters the
    result y: `accumulated`, y + w h (Graves, and SUT), or `interpolated`, y + w (h − y) (as the code of Dehghani et al.
    has it). act_loss_coef: weight of the expected depth in the loss. loss_form: `corrected` takes the expected depth
    once, at the end; `official` adds up what is expected of it after every layer, as the official training code does.
    """

    kind: Literal["act"] = "act"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.999
    mixture: MixtureName = "accumulated"
    act_loss_coef: NonNegativeFloat = 0.01
    loss_form: LossForm = "corrected"


class HaltingGate(nn.Module):
    """ln p(go on | h) and ln p(stop | h) = log_softmax(gelu(h W₁ + b₁) W₂), each [B, T], at least float32.

    hidden_proj: [d, d] and bias; gate_proj: [2, d], zero at first, so that all gates start at one half.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        uniform = linear_default(hidden_size)
        self.hidden_proj = Linear(hidden_size, hidden_size, uniform, bias=uniform)
        self.gate_proj = Linear(hidden_size, 2, zeros)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h: [B, T, d] → ln of the probabilities to go on and to stop."""
        hidden = nn.functional.gelu(wide_linear(h, self.hidden_proj.weight, self.hidden_proj.bias))
        go_on, stop = wide_linear(hidden, self.gate_proj.weight, None).log_softmax(dim=-1).unbind(dim=-1)
        return go_on, stop


class Pondering(NamedTuple):
    """Where every token stands between two layers.

    state: [B, T, d], what the last layer gave; queries of the next come from it. result: [B, T, d], the mixture that is
    handed on; keys and values of the next layer, and the output after the last. mixed: [B, T, d], the mixture of the
    states that stopping has been decided on. log_survival: [B, T], ln of the share that goes on. survival: the same
    share, 0 where the token has halted. depth: [B, T], Σ n p(stop at n) so far. expected: [B, T], depth and what is
    left, as if it stopped after the last layer: how many layers after the first a token takes.
    """

    state: Tensor
    result: Tensor
    mixed: Tensor
    log_survival: Tensor
    survival: Tensor
    depth: Tensor
    expected: Tensor


def begin(x: Tensor) -> Pondering:
    """Before the first layer: all of every token goes on. x: [B, T, d]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    nothing = x.new_zeros(x.shape[:2], dtype=dtype)
    return Pondering(x, x, torch.zeros_like(x, dtype=dtype), nothing, torch.ones_like(nothing), nothing, nothing)


def decide(now: Pondering, gate: HaltingGate, n: int, config: ActConfig) -> Pondering:
    """Before layer n ≥ 1: with p = (what went on before) · p(stop | state), the state enters the mixture."""
    log_go_on, log_stop = gate(now.state)
    stopping = (now.log_survival + log_stop).exp()
    log_survival = now.log_survival + log_go_on
    survival = log_survival.exp()
    return now._replace(
        mixed=mixture(config.mixture)(now.mixed, stopping.unsqueeze(-1), now.state),
        log_survival=log_survival,
        survival=survival.masked_fill(survival < 1 - config.threshold, 0),
        depth=now.depth + (n - 1) * stopping,
    )


def advance(now: Pondering, state: Tensor, n: int, config: ActConfig) -> Pondering:
    """After layer n, which gave `state`: what has not stopped goes into the result with it, unless the token halted."""
    survival = now.survival.unsqueeze(-1)
    result = mixture(config.mixture)(now.mixed, survival, state).to(state.dtype)
    return now._replace(
        state=state,
        result=now.result.where(survival == 0, result),
        expected=now.depth + now.survival * n,
    )


def mixture(name: MixtureName) -> Mixture:
    """(mixture so far, weight [B, T, 1], state) → the mixture with it."""
    match name:
        case "accumulated":
            return lambda mixed, weight, state: mixed + weight * state
        case "interpolated":
            return lambda mixed, weight, state: mixed + weight * (state - mixed)


def act_loss(expected: list[Tensor], real: Tensor | None, config: ActConfig) -> Tensor:
    """The weighted expected depth: its mean over a sequence's real tokens, averaged over sequences that have any.

    expected: [B, T] after each layer (`Pondering.expected`); real: [B, T], True at real tokens, or None.
    """
    depths = expected[-1] if config.loss_form == "corrected" else torch.stack(expected).sum(dim=0)
    weights = torch.ones_like(depths) if real is None else real.to(depths.dtype)
    counts = weights.sum(dim=1)
    means = (depths * weights).sum(dim=1) / counts.clamp(min=1)
    return config.act_loss_coef * means.sum() / (counts > 0).sum().clamp(min=1)
