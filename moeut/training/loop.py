"""How does a model learn? Step by step: a batch, its loss, its gradient, an update; evaluation and saving in between.

Everything is built outside and handed in. A step depends on nothing but its number, the weights, the optimizer's state
and the random state, all of which a checkpoint holds: a run that was stopped goes on to the same numbers.
"""

import math
import time
from collections.abc import Callable
from signal import Signals
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from moeut.data.sampler import Batches
from moeut.evaluation.perplexity import Perplexity
from moeut.model.language_model import LanguageModel
from moeut.settings import STRICT, NonNegativeInt, PositiveInt, refuse
from moeut.training.checkpoint import Checkpointer, TrainingState
from moeut.training.interruption import interruption
from moeut.training.optimizer import OptimizerConfig
from moeut.training.report import Reporter, StepResult
from moeut.training.schedule import ConstantSchedule, CosineSchedule, ScheduleConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """How a model is trained.

    batch_size: sequences a step, of context_length tokens each. evaluate_every_steps: held-out text is scored (and the
    run saved) so often, and at the end. report_every_steps: steps that a line of the metrics stands for. seed: of the
    initial weights, dropout and the order of the data.
    """

    num_steps: PositiveInt
    batch_size: PositiveInt
    context_length: PositiveInt
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, Field(discriminator="kind")] = CosineSchedule()
    evaluate_every_steps: PositiveInt = 500
    save_every_steps: PositiveInt = 500
    report_every_steps: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse a schedule that is longer than the run."""
        warmup = self.schedule.warmup_steps
        cooldown = self.schedule.cooldown_steps if isinstance(self.schedule, ConstantSchedule) else 0
        refuse(
            [
                (
                    warmup + cooldown > self.num_steps,
                    f"schedule: {warmup} warm-up and {cooldown} cool-down steps do not fit into {self.num_steps} "
                    "(num_steps)",
                )
            ]
        )


class TrainingResult(NamedTuple):
    """How a run ended: after `step` steps, with this on held-out text, or by a signal before its end."""

    step: int
    held_out: Perplexity | None
    interrupted_by: Signals | None


def train(
    config: TrainingConfig,
    model: LanguageModel,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[], Perplexity],
    reporter: Reporter,
    checkpointer: Checkpointer,
) -> TrainingResult:
    """Train up to `num_steps` steps, from the newest checkpoint if there is one.

    evaluate: scores the model on held-out text. SIGINT and SIGTERM end the run after the step they come in, saved.
    Raises ValueError if a loss or gradient is not finite; the weights of that step are not saved.
    """
    state = checkpointer.restore()
    reporter.resume(state.step, state.report)
    step, held_out, signal = state.step, None, None
    model.train()
    with interruption() as interrupted:
        while True:
            # Saved before, so that an evaluation that is cut short is done again and no training is lost.
            if _is_evaluated(config, step) and not signal:
                held_out = evaluate()
                reporter.held_out(step, held_out)
            if step >= config.num_steps or signal:
                return TrainingResult(step, held_out, signal)
            learning_rate = config.optimizer.learning_rate * config.schedule.factor(step, config.num_steps)
            result = training_step(model, optimizer, batches, step, learning_rate, config.optimizer.max_grad_norm)
            step += 1
            reporter.step(step, result)
            signal = interrupted.received
            if step % config.save_every_steps == 0 or _is_evaluated(config, step) or signal:
                checkpointer.save(TrainingState(step, reporter.state()))


def training_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    learning_rate: float,
    max_grad_norm: float | None,
) -> StepResult:
    """One update on batch number `step`; the loss is cross entropy + regulariser, the gradient's total norm is clipped.

    Raises ValueError if the loss or the gradient is not finite, before any weight is changed.
    """
    started = time.perf_counter()
    device = model.embedding.weight.device
    inputs, targets = (torch.from_numpy(array).to(device) for array in batches.batch(step))
    output = model(inputs, targets)
    optimizer.zero_grad()
    output.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
    _refuse_infinite(step + 1, output.loss, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    losses = output.cross_entropy.item(), output.regulariser.item(), norm.item()
    return StepResult(*losses, learning_rate, time.perf_counter() - started)


def _is_evaluated(config: TrainingConfig, step: int) -> bool:
    return step == config.num_steps or (step > 0 and step % config.evaluate_every_steps == 0)


def _refuse_infinite(step: int, loss: Tensor, norm: Tensor) -> None:
    for name, value in (("loss", loss.item()), ("length of the gradient", norm.item())):
        if not math.isfinite(value):
            raise ValueError(f"step {step}: the {name} is {value}; lower training.optimizer.learning_rate")
