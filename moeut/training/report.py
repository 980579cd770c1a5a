"""What does a run say about itself while it goes on? Lines in `metrics.jsonl`, and progress on stderr.

Each line is a JSON object with `split`, `step` (steps done) and `tokens` (seen in training so far). `train` lines hold
means over the applied steps since the line before: cross_entropy, perplexity, regulariser, gradient_norm; the
learning_rate of the last step; skipped_steps since the run began; tokens_per_second, and model_flops_utilisation where
the device's peak is known; memory_bytes, the most that was in use; dead_experts and usage_entropy by `LAYER.ROUTER`;
and `seconds` spent in training steps since the run began. `held_out` lines hold cross_entropy, perplexity,
bits_per_byte, standard_error, scored_tokens and scored_bytes. A `given_up` line says where a run that ended was no
longer finite.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeut.evaluation.perplexity import Perplexity, perplexity
from moeut.training.health import RouteCounts
from moeut.training.progress import Progress
from moeut.training.step import StepResult
from moeut.training.trackers import Line, Tracker, finite, read_lines
from moeut.validation import validate

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
GIVEN_UP = "given_up"
SCORED = ("scored_tokens", "scored_bytes")
SCORES = ("cross_entropy", "perplexity", "bits_per_byte", "standard_error")


@dataclass
class Sums:
    """What has been added up since the last line, and since the run began (skipped_steps, run_seconds)."""

    steps: int = 0
    applied_steps: int = 0
    cross_entropy: float = 0.0
    regulariser: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    skipped_steps: int = 0
    run_seconds: float = 0.0

    def add(self, result: StepResult) -> None:
        """Count one more step."""
        self.steps += 1
        self.seconds += result.seconds
        self.run_seconds += result.seconds
        if result.applied:
            self.applied_steps += 1
            self.cross_entropy += result.cross_entropy
            self.regulariser += result.regulariser
            self.gradient_norm += result.gradient_norm
        else:
            self.skipped_steps += 1

    def mean(self, total: float) -> float:
        """A sum over the applied steps as their mean; not a number if there were none."""
        return total / self.applied_steps if self.applied_steps else math.nan


class Reporter:
    """Reports a run to its trackers, a line every `every` steps, and shows its progress. A context manager.

    trackers: of the lines; none on ranks other than the main one. samples: gets what the model wrote. num_steps: of the
    whole run. tokens_per_step: of all rows of a batch. routes: counts the experts chosen in training, or None.
    peak_memory_bytes: asked for every line. utilisation: tokens a second → share of the device's peak, or None.
    """

    def __init__(
        self, trackers: Sequence[Tracker], progress: Progress, *, num_steps: int, tokens_per_step: int, every: int,
        samples: Tracker | None = None, routes: RouteCounts | None = None,
        peak_memory_bytes: Callable[[], int] | None = None, utilisation: Callable[[float], float] | None = None,
    ) -> None:  # fmt: skip
        self.trackers, self.progress, self.samples, self.routes = trackers, progress, samples, routes
        self.num_steps, self.tokens_per_step, self.every = num_steps, tokens_per_step, every
        self.peak_memory_bytes, self.utilisation = peak_memory_bytes, utilisation
        self.sums = Sums()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self._all():
            tracker.close()

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after `step` steps with what `state` gave then; call it first, for a new run with 0 and {}."""
        self.sums = validate(Sums, state.get("sums", {}))
        if self.routes is not None:
            self.routes.load(state.get("routes", []))
        for tracker in self._all():
            tracker.resume(step)
        if step:
            self.progress.say(f"going on after step {step:,} of {self.num_steps:,}")

    def state(self) -> dict[str, Any]:
        """What `resume` needs, on every rank; all lines so far are on the disk when it returns."""
        for tracker in self._all():
            tracker.flush()
        return {"sums": asdict(self.sums)} | ({} if self.routes is None else {"routes": self.routes.state()})

    def step(self, step: int, result: StepResult) -> None:
        """Count a step; `step` steps are now done."""
        sums = self.sums
        sums.add(result)
        rate = self.tokens_per_step * sums.steps / sums.seconds if sums.seconds else math.inf
        memory = None if self.peak_memory_bytes is None else self.peak_memory_bytes()
        note = f"loss {sums.mean(sums.cross_entropy):.3f}  {rate:,.0f} tokens/s"
        self.progress("train", step, self.num_steps, note if memory is None else f"{note}  {human(memory)}")
        if step % self.every and step != self.num_steps:
            return
        cross_entropy = sums.mean(sums.cross_entropy)
        line: dict[str, Any] = {
            "split": "train",
            "step": step,
            "tokens": step * self.tokens_per_step,
            "cross_entropy": cross_entropy,
            "perplexity": perplexity(cross_entropy),
            "regulariser": sums.mean(sums.regulariser),
            "learning_rate": result.learning_rate,
            "gradient_norm": sums.mean(sums.gradient_norm),
            "skipped_steps": sums.skipped_steps,
            "tokens_per_second": rate,
            "seconds": sums.run_seconds,
        }
        if memory is not None:
            line["memory_bytes"] = memory
        if self.utilisation is not None:
            line["model_flops_utilisation"] = self.utilisation(rate)
        if self.routes is not None:
            health = self.routes.health()
            line["dead_experts"] = {name: router.dead_experts for name, router in health.items()}
            line["usage_entropy"] = {name: router.usage_entropy for name, router in health.items()}
            self.routes.clear()
        self._write(line)
        self.sums = Sums(run_seconds=sums.run_seconds, skipped_steps=sums.skipped_steps)

    def held_out(self, step: int, result: Perplexity) -> None:
        """Report how well held-out text is predicted after `step` steps."""
        self._write(
            {
                "split": "held_out",
                "step": step,
                "tokens": step * self.tokens_per_step,
                **{name: getattr(result, name) for name in SCORES},
                "scored_tokens": result.tokens,
                "scored_bytes": result.bytes,
            }
        )
        self.progress.say(
            f"step {step:,}  held-out cross entropy {result.cross_entropy:.4f}  perplexity {result.perplexity:.2f}  "
            f"bits per byte {result.bits_per_byte:.4f}"
        )

    def given_up(self, step: int, where: str) -> None:
        """Report that the run ends after `step` steps because it is no longer finite, and where that begins."""
        self._write({"split": GIVEN_UP, "step": step, "tokens": step * self.tokens_per_step, "not_finite": where})

    def sample(self, step: int, text: str) -> None:
        """Keep what the model wrote after `step` steps."""
        if self.samples is not None:
            self.samples.write({"step": step, "text": text})

    def notice(self, text: str) -> None:
        """Tell the user something that is no progress, even a quiet one."""
        self.progress.warn(text)

    def _all(self) -> list[Tracker]:
        return [*self.trackers, *filter(None, [self.samples])]

    def _write(self, line: Line) -> None:
        for tracker in self.trackers:
            tracker.write(finite(line))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`. Raises ValueError if there are none."""
    lines = read_lines(run / METRICS)
    if not lines:
        raise ValueError(f"{run}: no {METRICS} with anything in it; this is no run folder")
    return lines


def finished(run: Path, num_steps: int) -> Perplexity | None:
    """What a run whose last step and evaluation are done said of held-out text; None of one that is not finished."""
    for line in read_lines(run / METRICS):
        if line.get("split") == "held_out" and line["step"] == num_steps and {*SCORES, *SCORED} <= line.keys():
            values = {name: math.inf if line[name] is None else line[name] for name in SCORES}
            return Perplexity(**values, tokens=line["scored_tokens"], bytes=line["scored_bytes"])
    return None


def given_up(run: Path) -> str | None:
    """Where and when a run stopped being finite and ended; None of one that did not end so."""
    for line in read_lines(run / METRICS)[-1:]:
        if line.get("split") == GIVEN_UP:
            return f"step {line['step']:,}: not finite is {line['not_finite']}"
    return None


def human(num_bytes: int) -> str:
    """A number of bytes in words: 64 kB, 512 MB, 1.2 GB."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
