"""How large is the learning rate at each step? A factor on its height, as a pure function of the step.

Letters: t step, counted from 0; N steps in all; w warm-up steps; c cool-down steps; f share at the end.
"""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from moeut.settings import STRICT, NonNegativeInt

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CosineSchedule:
    """Warm-up, then half a cosine from 1 down to f: f + (1 − f)·½(1 + cos(π(t − w)/(N − w)))."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final_share: Share = 0.1

    def factor(self, step: int, num_steps: int) -> float:
        """The factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return _cosine((step - self.warmup_steps) / (num_steps - self.warmup_steps), self.final_share)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearSchedule:
    """Warm-up, then a straight line from 1 down to f: 1 − (1 − f)(t − w)/(N − w)."""

    kind: Literal["linear"] = "linear"
    warmup_steps: NonNegativeInt = 0
    final_share: Share = 0.0

    def factor(self, step: int, num_steps: int) -> float:
        """The factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return 1 - (1 - self.final_share) * (step - self.warmup_steps) / (num_steps - self.warmup_steps)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConstantSchedule:
    """Warm-up, then 1, then over the last c steps a straight line from 1 towards 0: (N − t)/c."""

    kind: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0
    cooldown_steps: NonNegativeInt = 0

    def factor(self, step: int, num_steps: int) -> float:
        """The factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if num_steps - step < self.cooldown_steps:
            return (num_steps - step) / self.cooldown_steps
        return 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PaperSchedule:
    """The paper's: a cosine that starts after the warm-up but keeps the period N, so that it ends a little above f.

    f + (1 − f)·½(1 + cos(π·max(0, t − w)/N)); with w = 4,000 and N = 100,000 the end is 0.1036 instead of 0.1.
    """

    kind: Literal["paper"] = "paper"
    warmup_steps: NonNegativeInt = 0
    final_share: Share = 0.1

    def factor(self, step: int, num_steps: int) -> float:
        """The factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return _cosine((step - self.warmup_steps) / num_steps, self.final_share)


ScheduleConfig = CosineSchedule | LinearSchedule | ConstantSchedule | PaperSchedule


def _cosine(progress: float, final_share: float) -> float:
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2
