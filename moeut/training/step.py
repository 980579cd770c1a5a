"""What is one step? The gradient of a whole batch, in micro-batches and over all ranks, clipped; then an update.

    loss = Σ over micro-batches and ranks of  cross_entropy · n/N + regulariser · s/S

n of the batch's N scored targets and s of its S sequences are in a micro-batch: the loss of the batch computed at once.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeut.data.sampler import Batches
from moeut.settings import IGNORED_TARGET
from moeut.training.distributed import Ranks, accumulating, whole
from moeut.training.guard import Guard
from moeut.training.health import RouteCounts
from moeut.training.precision import autocast, resolve_precision
from moeut.training.training_config import TrainingConfig

Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Inputs and targets [rows, T] of one rank."""


class StepResult(NamedTuple):
    """What one training step came to, the same on every rank.

    cross_entropy, regulariser: of the whole batch. gradient_norm: before clipping. seconds: forward, backward and
    update. applied: whether the weights changed; they do not where a loss or the gradient is not finite.
    """

    cross_entropy: float
    regulariser: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    applied: bool


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    learning_rate: float,
    config: TrainingConfig,
    ranks: Ranks,
    guard: Guard,
    routes: RouteCounts | None = None,
) -> StepResult:
    """One update on this rank's `rows` of a batch, unless loss or gradient is not finite.

    model: as `moeut.training.distributed.parallelise` returned it. routes: gets the experts that were chosen.
    """
    started = time.perf_counter()
    optimizer.zero_grad()
    losses = backward(model, rows, config, ranks, guard.scale, routes)
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    # The only moment at which the processor waits for the device.
    cross_entropy, regulariser, norm = torch.stack([*losses, norm.to(losses)]).tolist()
    scale, norm = guard.scale, norm / guard.scale
    applied = guard.passes(cross_entropy + regulariser, norm)
    if applied:
        shrink_gradients(model, min(1.0, (config.optimizer.max_grad_norm or math.inf) / (norm + 1e-6)) / scale)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    return StepResult(cross_entropy, regulariser, norm, learning_rate, time.perf_counter() - started, applied)


def backward(
    model: nn.Module, rows: Rows, config: TrainingConfig, ranks: Ranks, scale: float, routes: RouteCounts | None
) -> Tensor:
    """Leave the whole batch's gradient, times `scale`, in the parameters; cross entropy and regulariser [2]."""
    batches = micro_batches(rows, config, ranks)
    precision = resolve_precision(config.precision, ranks.device)
    scored = ranks.sum(torch.stack([(targets != IGNORED_TARGET).sum() for _, targets in batches]).sum()).clamp(min=1)
    losses: list[Tensor] = []
    for index, (inputs, targets) in enumerate(batches, 1):
        with accumulating(model, last=index == len(batches)):
            with autocast(precision, ranks.device):
                output = model(inputs, targets, return_routing=routes is not None)
            share = (targets != IGNORED_TARGET).sum().to(output.cross_entropy) / scored
            cross_entropy = output.cross_entropy * share
            regulariser = output.regulariser * (len(inputs) / config.batch_size)
            if routes is not None:
                routes.add(output.routing)
            # The logits are let go before the backward pass needs room for their gradients.
            del output
            # Gradients are averaged over ranks, where a sum is meant.
            ((cross_entropy + regulariser) * (scale * ranks.world_size)).backward()
        losses.append(torch.stack([cross_entropy, regulariser]).detach())
    return ranks.sum(torch.stack(losses).sum(dim=0))


def rows_of_rank(batches: Batches, step: int, ranks: Ranks) -> Rows:
    """This rank's equal share of the batch of a step, counted from 0."""
    share = batches.batch_size // ranks.world_size
    return batches.batch(step, slice(ranks.rank * share, (ranks.rank + 1) * share))


def micro_batches(rows: Rows, config: TrainingConfig, ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
    """A rank's rows as inputs and targets on its device, `micro_batch_size` of them at a time."""
    inputs, targets = (torch.from_numpy(array).to(ranks.device) for array in rows)
    size = len(inputs) if config.micro_batch_size == "auto" else config.micro_batch_size
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def shrink_gradients(model: nn.Module, factor: float) -> None:
    """Multiply the gradient of every parameter by a factor."""
    if factor != 1.0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
