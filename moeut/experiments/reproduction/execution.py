"""How is a study carried out? Run after run, each in a process of its own, by as many callers as one likes.

Whoever calls takes the next run that is neither finished nor claimed by somebody else, and ends when none is left. A
run is `moeut train` in a child process: its memory is its own, which is measured, and if it dies it dies alone.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moeut.experiments.dry_run import duration
from moeut.experiments.reproduction.claims import TakenError, claimed
from moeut.experiments.reproduction.expectation import seconds_of
from moeut.experiments.reproduction.results import Numbers, measured_file, numbers_of, trained_numbers
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.study import Study
from moeut.experiments.run_folder import RUN_CONFIG
from moeut.model.tensor_files import write_json
from moeut.training.distributed import Ranks, pick_device
from moeut.training.interruption import interruption
from moeut.training.progress import Progress
from moeut.training.report import given_up
from moeut.training.retention import checkpoints
from moeut.trees import write_yaml

POLL_SECONDS = 0.1
INTERRUPTED = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}
"""Exit codes of a training that was stopped, and what stopped it."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How runs are carried out. processes: so many train a run together, by torchrun. takeover: see `claimed`."""

    out: Path
    device: str = "auto"
    processes: int = 1
    takeover: bool = False
    quiet: bool = False


class Outcome(NamedTuple):
    """Runs that are not finished, by name, and why: those that went wrong, that others are at, that are not finite."""

    failed: dict[str, str]
    taken: dict[str, str]
    given_up: dict[str, str]


class FailedRunError(Exception):
    """A training that ended otherwise than it should."""


def carry_out(
    study: Study, runs: Callable[[], list[Run]], manner: Manner, measure: Callable[[Path], Numbers] | None,
    progress: Progress,
) -> Outcome:  # fmt: skip
    """Carry out whatever of the runs is neither finished nor claimed by somebody else.

    runs: those that are known to be needed; asked again after each, since results decide what else is. measure: what
    the study asks of a trained model. progress: not begun, since its bars and those of child processes would be drawn
    over each other. A run that fails is left, and the others go on; one that was given up is not tried again. Raises
    ValueError where a run folder belongs to another configuration, and KeyboardInterrupt, with the signal, where a
    training was stopped.
    """
    failed: dict[str, str] = {}
    while True:
        needed = runs()
        diverged = {run.name: why for run in needed if (why := given_up(run.folder(manner.out)))}
        done = failed.keys() | diverged.keys()
        todo = [run for run in needed if run.name not in done and numbers_of(run, study, manner.out) is None]
        taken: dict[str, str] = {}
        for run in todo:
            try:
                with claimed(manner.out / "claims" / run.name, takeover=manner.takeover) as lock:
                    progress.say(_standing(run, needed, todo, manner))
                    _finish(run, study, manner, measure, lock, progress)
                break
            except TakenError as reason:
                taken[run.name] = str(reason)
            except FailedRunError as reason:
                if given_up(run.folder(manner.out)) is None:
                    failed[run.name] = str(reason)
                break
        else:
            return Outcome(failed, taken, diverged)


def train_command(run: Run, manner: Manner) -> list[str]:
    """The command that trains a run whose folder has its configuration."""
    folder = run.folder(manner.out)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(manner.processes)]
    return [
        sys.executable,
        *(launcher if manner.processes > 1 else []),
        "-m", "moeut", "train",
        "--config", str(folder / RUN_CONFIG), "--run-folder", str(folder), "--device", manner.device,
        *(["--quiet"] if manner.quiet else []),
    ]  # fmt: skip


def run_child(command: list[str], lock: int) -> None:
    """Run a command that inherits a lock and can be stopped as `moeut train` can.

    A terminal's Ctrl-C reaches it by itself; SIGTERM is passed on. Raises KeyboardInterrupt, with the signal, where
    one ended it, and FailedRunError where it ends otherwise than it should.
    """
    with interruption() as noted, subprocess.Popen(command, pass_fds=(lock,), stdout=subprocess.DEVNULL) as child:
        while noted.received != signal.SIGTERM and child.poll() is None:
            time.sleep(POLL_SECONDS)
        if child.poll() is None:
            child.terminate()
        code = child.wait()
    if noted.received or code in INTERRUPTED:
        raise KeyboardInterrupt(noted.received or INTERRUPTED[code])
    if code < 0:
        raise FailedRunError(f"ended by {signal.Signals(-code).name}; after SIGKILL, memory may have run out")
    if code:
        raise FailedRunError(f"ended with exit code {code}; {shlex.join(command)}")


def _finish(
    run: Run, study: Study, manner: Manner, measure: Callable[[Path], Numbers] | None, lock: int, progress: Progress
) -> None:
    """Train a run to its end, if it is not there, and measure it."""
    folder, config = run.folder(manner.out), run.config(manner.out)
    if trained_numbers(folder, config) is None:
        folder.mkdir(parents=True, exist_ok=True)
        if not checkpoints(folder):
            write_yaml(folder / RUN_CONFIG, config)
        run_child(train_command(run, manner), lock)
        if trained_numbers(folder, config) is None:
            raise FailedRunError("ended well, but without results")
    file = measured_file(folder, study)
    if measure is not None and not file.is_file():
        if not checkpoints(folder):
            raise FailedRunError(
                f"finished, but of its model only the record is left; remove {folder}, and it is trained again"
            )
        file.parent.mkdir(exist_ok=True)
        with progress:
            write_json(file, measure(folder))


def _standing(run: Run, needed: list[Run], todo: list[Run], manner: Manner) -> str:
    """What comes next, and how long all of it may take."""
    if trained_numbers(run.folder(manner.out), run.config(manner.out)) is not None:
        return f"{run.name}: trained; to be measured"
    ranks = Ranks(world_size=manner.processes, device=pick_device(manner.device))
    seconds = seconds_of(needed, manner.out, ranks)
    left = sum(seconds[one.name] for one in todo)
    return (
        f"{run.name}: about {duration(seconds[run.name])}; with it {len(todo):,} of {len(needed):,} runs are left, "
        f"about {duration(left)}"
    )
