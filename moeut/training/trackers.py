"""Where do a run's reports go? Lines of JSON in its folder; TensorBoard and Weights & Biases where they are asked for.

A tracker gets every report as a flat or nested mapping of numbers with `split` and `step`, and is told after which step
a run goes on, so that the reports of steps that are done again replace the old ones.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from moeut.files import replacing

Line = Mapping[str, Any]
"""One report. Numbers are finite or None: JSON has no infinity."""


class Tracker(Protocol):
    """Something that keeps a run's reports."""

    def resume(self, step: int) -> None:
        """Begin, or go on after `step` steps; called once and first."""

    def write(self, line: Line) -> None:
        """Keep a report."""

    def flush(self) -> None:
        """Return when all reports so far will survive this process."""

    def close(self) -> None:
        """Nothing more will come."""


class LinesFile:
    """A file of JSON objects, one a line.

    Going on after `step` steps drops the lines of steps that will be done again, and what follows the checkpoint of
    that step: its evaluation and its sample.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] | None = None

    def resume(self, step: int) -> None:
        """See `Tracker`."""
        kept = [line for line in read_lines(self.path) if line["step"] < step + (line.get("split") == "train")]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """See `Tracker`."""
        assert self.file is not None
        self.file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
        self.file.flush()

    def flush(self) -> None:
        """See `Tracker`."""
        assert self.file is not None
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """See `Tracker`."""
        if self.file is not None:
            self.file.close()


class TensorBoard:
    """Curves for `tensorboard --logdir RUN/tensorboard`. Raises ValueError if tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("--tensorboard needs tensorboard: pip install 'moeut[track]'") from None
        self._open = SummaryWriter
        self.folder = folder

    def resume(self, step: int) -> None:
        """See `Tracker`. TensorBoard itself forgets what comes after a step that is purged."""
        self.writer = self._open(str(self.folder), purge_step=step + 1)

    def write(self, line: Line) -> None:
        """See `Tracker`."""
        for name, value in scalars(line):
            self.writer.add_scalar(f"{line['split']}/{name}", value, line["step"])

    def flush(self) -> None:
        """See `Tracker`."""
        self.writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


class WeightsAndBiases:
    """Curves on wandb.ai, or in RUN/wandb where `wandb offline` was said. Raises ValueError if wandb is not installed.

    A run that goes on after an interruption is the same run there: its id follows from the run folder's path.
    """

    def __init__(self, run: Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("--wandb needs wandb: pip install 'moeut[track]'") from None
        self._init = wandb.init
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        self.settings = {
            "project": project, "name": run.name, "id": identity, "dir": str(run), "config": dict(config),
            "resume": "allow",
        }  # fmt: skip

    def resume(self, step: int) -> None:
        """See `Tracker`. Reports carry their step as a value of their own, since wandb's counter never goes back."""
        self.session = self._init(**self.settings)
        self.session.define_metric("*", step_metric="step")

    def write(self, line: Line) -> None:
        """See `Tracker`."""
        values = {f"{line['split']}/{name}": value for name, value in scalars(line)}
        self.session.log(values | {"step": line["step"]})

    def flush(self) -> None:
        """See `Tracker`. wandb writes by itself."""

    def close(self) -> None:
        """See `Tracker`."""
        self.session.finish()


def scalars(line: Line, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a report by name, those inside a mapping as `mapping/name`; step and what is None left out."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", value


def finite(value: Any) -> Any:
    """The same report with None for every number that is infinite or none at all."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file; a process that was killed may have left half a line at the end.

    Raises ValueError where any other line is no report.
    """
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    texts = path.read_bytes().split(b"\n")
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path}: line {number} is not what a run wrote; remove it")
        lines.append(line)
    return lines
