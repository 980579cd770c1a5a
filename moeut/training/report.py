"""What does a run say about itself while it goes on? Lines in `metrics.jsonl`, and progress on stderr.

Each line is a JSON object with `split`, `step` (steps done) and `tokens` (seen in training so far). `train` lines hold
means over the steps since the line before: cross_entropy, perplexity, regulariser, gradient_norm, tokens_per_second;
the learning_rate of the step; and `seconds` spent in training steps since the run began. `held_out` lines hold
cross_entropy, perplexity, bits_per_byte, standard_error.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from moeut.evaluation.perplexity import Perplexity, perplexity
from moeut.files import replacing
from moeut.training.progress import Progress


class StepResult(NamedTuple):
    """What one training step came to. gradient_norm: before clipping. seconds: forward, backward and update."""

    cross_entropy: float
    regulariser: float
    gradient_norm: float
    learning_rate: float
    seconds: float


@dataclass
class Sums:
    """What has been added up since the last line, and the seconds since the run began."""

    steps: int = 0
    cross_entropy: float = 0.0
    regulariser: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    run_seconds: float = 0.0

    def add(self, result: StepResult) -> None:
        """Count one more step."""
        self.steps += 1
        self.cross_entropy += result.cross_entropy
        self.regulariser += result.regulariser
        self.gradient_norm += result.gradient_norm
        self.seconds += result.seconds
        self.run_seconds += result.seconds


class Reporter:
    """Writes a run's `metrics.jsonl`, a line every `every` steps, and shows its progress. A context manager.

    num_steps: of the whole run. tokens_per_step: of all rows of a batch.
    """

    def __init__(self, run: Path, progress: Progress, *, num_steps: int, tokens_per_step: int, every: int) -> None:
        self.path, self.progress = run / "metrics.jsonl", progress
        self.num_steps, self.tokens_per_step, self.every = num_steps, tokens_per_step, every
        self.sums = Sums()
        self.file: IO[str] | None = None

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def resume(self, step: int, sums: Mapping[str, Any]) -> None:
        """Go on after `step` steps with the sums that `state` gave then; call it first, for a new run with 0 and {}.

        Lines of steps that will be done again are dropped, and with them the evaluation after `step`, which follows its
        checkpoint.
        """
        self.sums = Sums(**sums)
        kept = [line for line in _lines(self.path) if line["step"] < step + (line["split"] == "train")]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        if step:
            self.progress.say(f"going on after step {step:,} of {self.num_steps:,}")

    def state(self) -> dict[str, Any]:
        """What `resume` needs; all lines so far are on the disk when it returns."""
        assert self.file is not None
        os.fsync(self.file.fileno())
        return asdict(self.sums)

    def step(self, step: int, result: StepResult) -> None:
        """Count a step; `step` steps are now done."""
        sums = self.sums
        sums.add(result)
        rate = self.tokens_per_step * sums.steps / sums.seconds if sums.seconds else math.inf
        note = f"cross entropy {sums.cross_entropy / sums.steps:.3f}  {rate:,.0f} tokens/s"
        self.progress("train", step, self.num_steps, note)
        if step % self.every and step != self.num_steps:
            return
        cross_entropy = sums.cross_entropy / sums.steps
        self._write(
            split="train",
            step=step,
            tokens=step * self.tokens_per_step,
            cross_entropy=cross_entropy,
            perplexity=perplexity(cross_entropy),
            regulariser=sums.regulariser / sums.steps,
            learning_rate=result.learning_rate,
            gradient_norm=sums.gradient_norm / sums.steps,
            tokens_per_second=rate,
            seconds=sums.run_seconds,
        )
        self.sums = Sums(run_seconds=sums.run_seconds)

    def held_out(self, step: int, result: Perplexity) -> None:
        """Report how well held-out text is predicted after `step` steps."""
        self._write(
            split="held_out",
            step=step,
            tokens=step * self.tokens_per_step,
            cross_entropy=result.cross_entropy,
            perplexity=result.perplexity,
            bits_per_byte=result.bits_per_byte,
            standard_error=result.standard_error,
        )
        self.progress.say(
            f"step {step:,}  held-out cross entropy {result.cross_entropy:.4f}  perplexity {result.perplexity:.2f}  "
            f"bits per byte {result.bits_per_byte:.4f}"
        )

    def notice(self, text: str) -> None:
        """Tell the user something that is no progress, even a quiet one."""
        self.progress.warn(text)

    def _write(self, **fields: str | float) -> None:
        assert self.file is not None
        # JSON has no infinity.
        finite = {
            key: value if isinstance(value, str) or math.isfinite(value) else None for key, value in fields.items()
        }
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")
        self.file.flush()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`. Raises ValueError if there are none."""
    lines = _lines(run / "metrics.jsonl")
    if not lines:
        raise ValueError(f"{run}: no metrics.jsonl with anything in it; this is no run folder")
    return lines


def _lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of the file; a process that was killed may have left half a line at the end."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
