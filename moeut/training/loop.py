"""How does a model learn? Step by step: a batch, its gradient, an update; evaluation, samples and saving in between.

Everything is built outside and handed in. A step depends on nothing but its number, the weights, the optimizer's state
and the random state, all of which a checkpoint holds: a run that was stopped goes on to the same numbers. Every rank
runs this loop, and all of them decide the same.
"""

import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import nn

from moeut.data.sampler import Batches
from moeut.evaluation.perplexity import Perplexity
from moeut.training.checkpoint import Checkpointer, TrainingState
from moeut.training.diagnosis import give_up
from moeut.training.distributed import Ranks
from moeut.training.guard import Guard
from moeut.training.interruption import interruption
from moeut.training.report import Reporter
from moeut.training.step import rows_of_rank, training_step
from moeut.training.training_config import TrainingConfig
from moeut.validation import validate


class TrainingResult(NamedTuple):
    """How a run ended: after `step` steps, with this on held-out text, or by a signal before its end."""

    step: int
    held_out: Perplexity | None
    interrupted_by: signal.Signals | None


def train(
    config: TrainingConfig,
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[], Perplexity],
    sample: Callable[[], str],
    reporter: Reporter,
    checkpointer: Checkpointer,
    ranks: Ranks,
) -> TrainingResult:
    """Train up to `num_steps` steps, from the newest checkpoint if there is one.

    model: as `moeut.training.distributed.parallelise` returned it. evaluate: scores it on held-out text. sample: has it
    continue the prompt. SIGINT and SIGTERM to any rank end the run after the step they come in, saved. Raises
    ValueError after `max_skipped_steps` steps in a row without a finite loss and gradient.
    """
    state = checkpointer.restore()
    reporter.resume(state.step, state.report)
    guard = validate(Guard, state.loop) if state.loop else Guard.of(config.precision)
    step, held_out, received = state.step, None, None
    model.train()
    with interruption() as interrupted:
        while True:
            # Saved before, so that an evaluation that is cut short is done again and no training is lost.
            if config.is_evaluated(step) and not received:
                held_out = evaluate()
                reporter.held_out(step, held_out)
                checkpointer.held_out(step, held_out.cross_entropy)
            if config.is_sampled(step) and not received:
                reporter.sample(step, sample())
            if step >= config.num_steps or received:
                return TrainingResult(step, held_out, received)
            rows = rows_of_rank(batches, step, ranks)
            learning_rate = config.optimizer.learning_rate * config.schedule.factor(step, config.num_steps)
            result = training_step(model, optimizer, rows, learning_rate, config, ranks, guard, reporter.routes)
            step += 1
            reporter.step(step, result)
            if guard.failures >= config.max_skipped_steps:
                give_up(step, model, rows, config, checkpointer, reporter, ranks)
            if ranks.any(interrupted.received is not None):
                received = interrupted.received or signal.SIGTERM
            if config.is_saved(step) or received:
                checkpointer.save(TrainingState(step, reporter.state(), asdict(guard)))
