"""How long will runs take here? A guess from their multiply-adds, corrected by all that are finished."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from moeut.config import RunConfig
from moeut.experiments.reproduction.results import trained_numbers
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.resources import expected_seconds
from moeut.experiments.run_folder import RUN_CONFIG
from moeut.training.distributed import Ranks
from moeut.trees import read_yaml
from moeut.validation import validate


def seconds_of(runs: Sequence[Run], out: Path, ranks: Ranks) -> dict[str, float]:
    """Seconds of training by the names of runs: those that finished ones took, and those that others may take.

    The guess is `moeut.experiments.resources.expected_seconds`, times how far it was off for the finished runs of
    whichever study. How fast the machine seems at the moment then no longer matters.
    """
    finished = {run.name: trained_numbers(run.folder(out), run.config(out)) for run in runs}
    taken = {name: 3600 * numbers["hours"] for name, numbers in finished.items() if numbers is not None}
    others = list(_finished_runs(out))
    guesses = expected_seconds([run.config(out) for run in runs] + [config for config, _ in others], ranks)
    correction = sum(seconds for _, seconds in others) / sum(guesses[len(runs) :]) if others else 1.0
    return {run.name: taken.get(run.name, correction * guess) for run, guess in zip(runs, guesses, strict=False)}


def _finished_runs(out: Path) -> Iterator[tuple[RunConfig, float]]:
    """Each with its configuration and the seconds that it took."""
    for file in sorted(out.glob(f"runs/*/{RUN_CONFIG}")):
        with contextlib.suppress(ValueError):  # one that cannot be read is reported by whoever needs it
            config = validate(RunConfig, read_yaml(file))
            numbers = trained_numbers(file.parent, config)
            if numbers is not None:
                yield config, 3600 * numbers["hours"]
