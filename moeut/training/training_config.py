"""How is a model trained, in numbers? Everything of a run that is neither its data nor its model."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from moeut.settings import STRICT, NonNegativeInt, PositiveInt, refuse
from moeut.training.optimizer import OptimizerConfig
from moeut.training.precision import Precision
from moeut.training.schedule import ConstantSchedule, CosineSchedule, ScheduleConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """How a model is trained.

    batch_tokens: tokens of a step over all ranks: a whole number of sequences of `context_length` tokens.
    micro_batch_size: sequences that a rank computes at a time, whose gradients are added up; `auto`: as many as fit
    into the memory there is. precision: see `moeut.training.precision`. gradient_checkpointing: compute each layer
    again in the backward pass instead of keeping what it computed. evaluate_every_steps: held-out text is scored (and
    the run saved) so often, and at the end. report_every_steps: steps that a line of the metrics stands for.
    sample_every_steps: the model continues `sample_prompt` so often (None: never). max_skipped_steps: so many steps in
    a row without a finite loss and gradient end the run. seed: of the initial weights, dropout and the order of the
    data.
    """

    num_steps: PositiveInt
    batch_tokens: PositiveInt
    context_length: PositiveInt
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    gradient_checkpointing: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, Field(discriminator="kind")] = CosineSchedule()
    evaluate_every_steps: PositiveInt = 500
    save_every_steps: PositiveInt = 500
    report_every_steps: PositiveInt = 10
    sample_every_steps: PositiveInt | None = None
    sample_prompt: str = ""
    keep_checkpoints: PositiveInt = 2
    max_skipped_steps: PositiveInt = 5
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse a batch that is not made of whole sequences, and a schedule that is longer than the run."""
        warmup = self.schedule.warmup_steps
        cooldown = self.schedule.cooldown_steps if isinstance(self.schedule, ConstantSchedule) else 0
        rest = self.batch_tokens % self.context_length
        micro = self.micro_batch_size
        refuse(
            [
                (
                    rest != 0,
                    f"batch_tokens: {self.batch_tokens:,} tokens are no whole number of sequences of "
                    f"{self.context_length:,} (context_length); {self.batch_tokens - rest + self.context_length:,} are",
                ),
                (
                    rest == 0 and micro != "auto" and micro > self.batch_size,
                    f"micro_batch_size: {micro} sequences are more than the {self.batch_size} of a step (batch_tokens)",
                ),
                (
                    warmup + cooldown > self.num_steps,
                    f"schedule: {warmup} warm-up and {cooldown} cool-down steps do not fit into {self.num_steps} "
                    "(num_steps)",
                ),
            ]
        )

    @property
    def batch_size(self) -> int:
        """Sequences of a step over all ranks."""
        return self.batch_tokens // self.context_length

    def is_evaluated(self, step: int) -> bool:
        """Whether held-out text is scored when `step` steps are done."""
        return step == self.num_steps or (step > 0 and step % self.evaluate_every_steps == 0)

    def is_saved(self, step: int) -> bool:
        """Whether there is a checkpoint of the moment when `step` steps are done."""
        return step % self.save_every_steps == 0 or self.is_evaluated(step)

    def is_sampled(self, step: int) -> bool:
        """Whether the model continues the prompt when `step` steps are done."""
        return self.sample_every_steps is not None and step > 0 and step % self.sample_every_steps == 0
