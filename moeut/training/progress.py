"""How does one see that something is going on? A bar on a terminal, a line now and then elsewhere, both on stderr."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL_SECONDS = 10.0


class Progress:
    """Progress of named stages; call it with how much of a stage is done. A context manager.

    quiet: show nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        # The stream as it is now: what is put in its place later, to silence somebody else, does not silence this.
        self.console = Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)
        self.bars = RichProgress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.tasks: dict[str, TaskID] = {}
        self.reached: dict[str, int] = {}
        self.started: dict[
            str, tuple[float, int]
        ] = {}  # when, and how much was done before: a run may go on from there
        self.spoken: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` (None: unknown) are done; a stage that falls back to a smaller number begins anew."""
        if not self.bars.disable:
            self._draw(stage, done, total, note)
        elif not self.quiet:
            self._speak(stage, done, total, note)

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line, quiet or not."""
        self.console.print(text)

    def _draw(self, stage: str, done: int, total: int | None, note: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
        task = self.tasks[stage]
        if done < self.bars.tasks[task].completed:
            self.bars.reset(task, total=total)
        self.bars.update(task, completed=done, total=total, note=note)

    def _speak(self, stage: str, done: int, total: int | None, note: str) -> None:
        """A line when a stage ends and every ten seconds on the way, with the time that the rest will take."""
        now = time.monotonic()
        if done < self.reached.get(stage, 0):
            del self.started[stage], self.spoken[stage]
        self.reached[stage] = done
        started, before = self.started.setdefault(stage, (now, done))
        if now - self.spoken.setdefault(stage, started) < PLAIN_INTERVAL_SECONDS and done != total:
            return
        self.spoken[stage] = now
        amount = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        parts = [stage, amount, note]
        if total is not None and before < done < total:
            parts.append(f"{(now - started) * (total - done) / (done - before):,.0f} s left")
        self.say("  ".join(part for part in parts if part))
