"""Is a step in parts the step on the whole batch, and does a bad one change nothing?"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import VOCAB_SIZE, tiny_model, tiny_training
from torch import nn
from torch.testing import assert_close

from moeut.model.language_model import LanguageModel
from moeut.settings import IGNORED_TARGET
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts
from moeut.training.optimizer import OptimizerConfig, build_optimizer
from moeut.training.step import Rows, backward, rows_of_rank, training_step

ROWS, LENGTH = 5, 12
CONFIG = tiny_training(batch_tokens=ROWS * LENGTH, context_length=LENGTH)


def batch(unscored: tuple[int, ...] = (0, 3, 11, 12, 5)) -> Rows:
    """Rows whose first so many targets are not scored: unequal parts, one of them without a single target."""
    generator = np.random.default_rng(0)
    inputs, targets = generator.integers(0, VOCAB_SIZE, (2, ROWS, LENGTH))
    for row, count in enumerate(unscored):
        targets[row, :count] = IGNORED_TARGET
    return inputs, targets


def built(dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(tiny_model()).to(dtype)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_micro_batches_add_up_to_the_whole(size: int, scale: float):
    model = built()
    inputs, targets = map(torch.from_numpy, batch())
    output = model(inputs, targets)
    output.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    losses = backward(model, batch(), replace(CONFIG, micro_batch_size=size), Ranks(), scale, None)
    assert_close(losses, torch.stack([output.cross_entropy, output.regulariser]).detach())
    assert len(expected) == len(list(model.parameters()))
    assert_close(gradients(model), {name: gradient * scale for name, gradient in expected.items()})


@pytest.mark.parametrize("max_grad_norm", [None, 0.1, 1e6])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_is_torchs_own(max_grad_norm: float | None, scaled: bool):
    """The scale of a float16 run is taken away again before clipping; the rate is the one given."""
    config = replace(CONFIG, optimizer=OptimizerConfig(max_grad_norm=max_grad_norm))
    theirs, ours = built(), built()
    expected, optimizer = (build_optimizer(model, config.optimizer) for model in (theirs, ours))
    theirs(*map(torch.from_numpy, batch())).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or math.inf)
    for group in expected.param_groups:
        group["lr"] = 0.01
    expected.step()
    guard = Guard(scaled=scaled, scale=1024.0 if scaled else 1.0)
    result = training_step(ours, optimizer, batch(), 0.01, config, Ranks(), guard)
    assert result.applied
    assert result.gradient_norm == pytest.approx(norm.item())
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str):
    model = built()
    optimizer = build_optimizer(model, CONFIG.optimizer)
    training_step(model, optimizer, batch(), 0.01, CONFIG, Ranks(), Guard())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    if where == "loss":
        hook = model.norm.register_forward_hook(lambda *call: call[-1] * math.inf)
    else:
        hook = model.embedding.weight.register_hook(lambda gradient: gradient * math.nan)
    guard = Guard()
    result = training_step(model, optimizer, batch(), 0.01, CONFIG, Ranks(), guard)
    hook.remove()
    assert not result.applied
    assert math.isfinite(result.cross_entropy) == (where == "gradient")
    assert guard.failures == 1
    assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
    assert_close(
        {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}, momentum, rtol=0, atol=0
    )
    assert training_step(model, optimizer, batch(), 0.01, CONFIG, Ranks(), guard).applied
    assert guard.failures == 0


def test_choices_are_counted_in_every_micro_batch():
    counts = RouteCounts(tiny_model(), Ranks())
    backward(built(), batch(), replace(CONFIG, micro_batch_size=2), Ranks(), 1.0, counts)
    # Layers of the group, repeats, and choices of: 1 group of 2, twice 2 heads of 2.
    assert sum(counts.state()) == 2 * 2 * ROWS * LENGTH * (2 + 2 * 4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_are_nearly_as_good(precision: str):
    """Weights, gradients and the optimizer's state stay float32; the loss is off by what 16 bits lose."""
    exact = backward(built(torch.float32), batch(), CONFIG, Ranks(), 1.0, None)
    model = built(torch.float32)
    losses = backward(model, batch(), replace(CONFIG, precision=precision), Ranks(), 1.0, None)
    assert_close(losses, exact, rtol=1e-2, atol=1e-3)
    assert not torch.equal(losses, exact)
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}


def test_ranks_share_the_rows_of_a_batch():
    class Counting:
        batch_size = 6

        def batch(self, index: int, rows: slice):
            return list(range(6))[rows]

    shares = [rows_of_rank(Counting(), 0, Ranks(rank, 3)) for rank in range(3)]  # pyright: ignore[reportArgumentType]
    assert shares == [[0, 1], [2, 3], [4, 5]]
