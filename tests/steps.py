"""How are tiny models built, run and compared? What the contract and other tests of whole models share.

Letters: B batch, T tokens, G groups of experts, E experts, K selected.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache

from moeut.model.halting import HaltingGate
from moeut.model.language_model import LanguageModel, ModelConfig, ModelOutput
from moeut.model.layer import AttentionConfig, FeedForwardConfig, Layer
from moeut.model.rope import Phases
from moeut.model.routing import Router, RouterConfig
from moeut.model.softmax_routing import SoftmaxRouter, SoftmaxRouterConfig
from moeut.model.switchhead import SwitchHeadConfig

BATCH, LENGTH = 3, 6
Step = tuple[ModelOutput, dict[str, Tensor]]
"""A training step: what the model returned, and every gradient."""


def build(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model for training, the same each time it is built. What starts at zero does so no longer."""
    torch.manual_seed(1)
    model = LanguageModel(config)
    for parameter in model.parameters():
        if parameter.count_nonzero() == 0:
            nn.init.normal_(parameter, std=0.5)
    return model.to(dtype)


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The same variant without the parts whose random numbers depend on the shape of the batch."""
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "expert_dropout": 0.0, "sample_topk": 0}
    return _with(config, lambda _: rates)


def without_batch_losses(config: ModelConfig) -> ModelConfig:
    """The same variant without the losses that are defined over the batch as a whole."""

    def weights(part: AttentionConfig | FeedForwardConfig) -> dict[str, float]:
        if isinstance(part, RouterConfig):
            return {"router_aux_loss_coef": 0.0} if part.balance_scope == "batch" else {}
        names = ("mutual_information_loss_coef", "variation_loss_coef", "switch_loss_coef", "z_loss_coef")
        return dict.fromkeys(names, 0.0)

    return _with(config, weights)


def _with(config: ModelConfig, values: Callable[[Any], dict[str, Any]]) -> ModelConfig:
    """The configuration and its parts with the values of those fields that each has."""

    def changed(part: Any) -> Any:
        mine = {field.name for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **{name: value for name, value in values(part).items() if name in mine})

    parts = {"attention": changed(config.attention), "feed_forward": changed(config.feed_forward)}
    return dataclasses.replace(changed(config), **parts)


def tokens(config: ModelConfig, batch: int = BATCH, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T], the same each time."""
    generator = torch.Generator().manual_seed(2)
    block = torch.randint(config.vocab_size, (batch, length + 1), generator=generator)
    return block[:, :-1], block[:, 1:]


def train_step(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 3) -> Step:
    """Forward and backward once: the output and a copy of every gradient."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(inputs, targets)
    output.loss.backward()
    return output, gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter's gradient; every parameter has one."""
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient: {missing}"
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_step(one: Step, other: Step) -> None:
    """Two training steps in float64 agree: logits, all three losses, every gradient."""
    for name in ("logits", "loss", "cross_entropy", "regulariser"):
        assert_close(getattr(one[0], name), getattr(other[0], name), rtol=1e-9, atol=1e-12)
    assert_close(one[1], other[1], rtol=1e-8, atol=1e-11)


def assert_identical_step(one: Step, other: Step) -> None:
    """Two training steps agree to the last bit."""
    assert_close((one[0].logits, one[0].loss), (other[0].logits, other[0].loss), rtol=0, atol=0)
    assert_close(one[1], other[1], rtol=0, atol=0)


def all_cuts(length: int) -> Iterator[list[int]]:
    """Every set of places at which a sequence can be cut."""
    for count in range(length):
        yield from (list(cuts) for cuts in itertools.combinations(range(1, length), count))


def in_chunks(model: LanguageModel, inputs: Tensor, cuts: list[int], real: Tensor | None = None) -> Tensor:
    """The logits of a sequence that is fed chunk by chunk through one cache."""
    cache = DynamicCache()
    logits = []
    for start, stop in itertools.pairwise([0, *cuts, inputs.shape[1]]):
        mask = None if real is None else real[:, :stop]
        logits.append(model(inputs[:, start:stop], attention_mask=mask, cache=cache).logits)
    assert cache.get_seq_length(model.config.num_hidden_layers - 1) == inputs.shape[1]
    return torch.cat(logits, dim=1)


EXPERT_PARAMETERS = [
    ("attention", "attention_value", "v_experts"),
    ("attention", "attention_output", "o_experts"),
    ("attention", "attention", "q_experts"),
    ("attention", "attention", "o_experts"),
    ("feed_forward", "feed_forward", "up_experts"),
    ("feed_forward", "feed_forward", "down_experts"),
    ("feed_forward", "feed_forward", "up.bias"),
    ("feed_forward", "feed_forward", "down.bias"),
]
"""Part, name of its router, parameter with a row for each expert."""


def used_experts(chosen: Tensor, weight: Tensor) -> Tensor:
    """Which of the weight's experts [G·E, …] occur in a selection [B, T, G, K]; number E is nobody."""
    groups = chosen.shape[2]
    per_group = weight.shape[0] // groups
    used = torch.zeros(groups, per_group + 1, dtype=torch.bool)
    for group in range(groups):
        used[group, chosen[:, :, group].flatten()] = True
    return used[:, :per_group].flatten()


@dataclasses.dataclass
class Seen:
    """phases, survival: of every executed layer. scored, halted: every router and halting gate, with what it read."""

    phases: list[Phases]
    survival: list[Tensor | None]
    scored: list[tuple[Router | SoftmaxRouter, Tensor]]
    halted: list[tuple[HaltingGate, Tensor]]


@contextmanager
def watch(model: LanguageModel) -> Iterator[Seen]:
    """Note what layers, routers and halting gates are given."""
    seen = Seen([], [], [], [])

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        match module:
            case Router() | SoftmaxRouter():
                seen.scored.append((module, inputs[0]))
            case HaltingGate():
                seen.halted.append((module, inputs[0]))
            case _:
                seen.phases.append(inputs[1].phases)
                seen.survival.append(inputs[1].tokens.survival)

    watched = [module for module in model.modules() if isinstance(module, Layer | Router | SoftmaxRouter | HaltingGate)]
    handles = [module.register_forward_pre_hook(note) for module in watched]
    yield seen
    for handle in handles:
        handle.remove()
    assert len(seen.phases) == model.config.num_hidden_layers
    assert bool(seen.scored) == any(isinstance(module, Router | SoftmaxRouter) for module in watched)
    assert bool(seen.halted) == (model.config.halting is not None)


def balance_bounds(config: ModelConfig) -> tuple[float, float]:
    """The least and the greatest regulariser there can be.

    σ-MoE: −G (γ ln E + 2δ ln A) to 0, the least where every router is perfectly even. SUT: mutual information between
    −ln E and 0; the other losses between 0 and E. Halting: up to L − 1 layers after the first.
    """
    lowest = highest = 0.0
    for part in (config.attention, config.feed_forward):
        if isinstance(part, RouterConfig):
            routers = 2 if isinstance(part, SwitchHeadConfig) else 1
            lowest -= routers * part.router_aux_loss_coef * math.log(part.num_experts)
        if isinstance(part, SoftmaxRouterConfig):
            lowest -= part.mutual_information_loss_coef * math.log(part.num_experts)
            highest += (part.variation_loss_coef + part.switch_loss_coef) * part.num_experts
    lowest, highest = config.group_size * lowest, config.group_size * highest
    if config.halting is not None:
        highest += config.halting.act_loss_coef * (config.num_hidden_layers - 1)
    return lowest, highest
