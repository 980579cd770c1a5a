"""Which trainings is a study? Each entrant at each learning rate, then with further seeds at the best of them.

Every entrant has as many rates and seeds as any other: nobody is tuned more than his rival.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from moeut.config import RunConfig
from moeut.experiments.reproduction.corpora import data_folder
from moeut.experiments.reproduction.study import Entrant, Study
from moeut.settings import suggestion


@dataclass(frozen=True)
class Run:
    """One training of an entrant."""

    entrant: Entrant
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Says what is trained on what, and how; studies that train the same share the run."""
        return f"{self.entrant.name}-lr{self.learning_rate:g}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        """Where it lies."""
        return out / "runs" / self.name

    def config(self, out: Path) -> RunConfig:
        """Everything that decides its result."""
        training = self.entrant.training
        return RunConfig(
            data=str(data_folder(self.entrant.corpus, out)),
            model=self.entrant.model,
            training=replace(
                training,
                seed=self.seed,
                optimizer=replace(training.optimizer, learning_rate=self.learning_rate),
            ),
        )


@dataclass(frozen=True)
class Effort:
    """What is spent on every entrant. seeds: how many, from 0. learning_rates: those tried; none: the scale's own."""

    seeds: int = 1
    learning_rates: tuple[float, ...] = ()


def sweep(entrant: Entrant, effort: Effort) -> list[Run]:
    """An entrant at each learning rate, with the first seed."""
    rates = effort.learning_rates or (entrant.training.optimizer.learning_rate,)
    return [Run(entrant, rate, 0) for rate in rates]


def best(entrant: Entrant, effort: Effort, loss: Callable[[Run], float | None]) -> Run | None:
    """The run of the learning rate with the least held-out loss; None until all of them are known.

    Where only one is tried, nothing has to be known of it. None, too, where the loss is infinite at all of them.
    """
    tried = sweep(entrant, effort)
    if len(tried) == 1:
        return tried[0]
    losses = [found for run in tried if (found := loss(run)) is not None]
    known = len(losses) == len(tried) and min(losses) < math.inf
    return tried[losses.index(min(losses))] if known else None


def runs_of(entrant: Entrant, effort: Effort, loss: Callable[[Run], float | None]) -> list[Run]:
    """The runs that an entrant is judged by: all seeds at its best learning rate; none until that is known."""
    first = best(entrant, effort, loss)
    return [] if first is None else [replace(first, seed=seed) for seed in range(effort.seeds)]


def wanted(study: Study, effort: Effort, loss: Callable[[Run], float | None]) -> Iterator[Run]:
    """All runs of a study that are known to be needed, in order: every entrant once before any has a second seed."""
    for entrant in study.entrants:
        yield from sweep(entrant, effort)
    by_entrant = [runs_of(entrant, effort, loss)[1:] for entrant in study.entrants]
    for seed in range(effort.seeds - 1):
        yield from (runs[seed] for runs in by_entrant if runs)


def chosen(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs that one of some patterns such as `dense-*` fits; without patterns all of them.

    Raises ValueError where a pattern fits none.
    """
    names = [run.name for run in runs]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = suggestion(pattern, names, "see --dry-run for their names")
            raise ValueError(f"--only: no run of this study is called {pattern!r}; {hint}")
    return [run for run in runs if not patterns or any(fnmatchcase(run.name, pattern) for pattern in patterns)]
