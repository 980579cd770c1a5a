"""What did a study find? Means over seeds, and what the paper says beside what came out here, whatever that is."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from moeut.data.tokens import Manifest
from moeut.experiments.reproduction.results import Estimate, Numbers, estimates
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.study import Direction, Entrant, Quantity, Study, quantities


@dataclass(frozen=True)
class Findings:
    """What is known of a study.

    runs: all that are known to be needed. judged: those of each entrant, by its name, that its numbers are means of.
    numbers: of each finished run, by its name. left: why others are not finished. texts: what they learnt, by name.
    """

    study: Study
    runs: Sequence[Run]
    judged: Mapping[str, Sequence[Run]]
    numbers: Mapping[str, Numbers]
    left: Mapping[str, str]
    texts: Mapping[str, Manifest]

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Means over the finished seeds of each entrant, by its name."""
        finished = {name: [self.numbers[run.name] for run in self._finished(name)] for name in self.judged}
        return {name: estimates(seeds) for name, seeds in finished.items() if seeds}

    def first_runs(self) -> Iterator[tuple[Entrant, Run]]:
        """Entrants that have a finished run, each with that of its first seed."""
        for entrant in self.study.entrants:
            yield from ((entrant, run) for run in self._finished(entrant.name)[:1])

    def estimate(self, quantity: Quantity) -> Estimate | None:
        """A number over seeds; None where it is not known."""
        return self.estimates.get(quantity.entrant.name, {}).get(quantity.metric)

    def _finished(self, name: str) -> list[Run]:
        return [run for run in self.judged[name] if run.name in self.numbers]


class Verdict(NamedTuple):
    """What was found of a direction: both sides, more − less with its standard error, and whether it held.

    held: None where something is not known, or where the difference is within twice its standard error. The error is
    √Σ(cᵢ sᵢ)² over the entrants' numbers, of which the difference is Σ cᵢ xᵢ; it is infinite where it cannot be told
    because there is one seed; then the sign alone decides.
    """

    less: Estimate | None
    more: Estimate | None
    difference: float
    standard_error: float
    held: bool | None


def verdict(findings: Findings, direction: Direction) -> Verdict:
    """Whether a direction of the paper is there."""
    terms = [(quantity, -sign) for quantity, sign in quantities(direction.less)] + quantities(direction.more)
    less, more, both = (
        total(findings, parts) for parts in (quantities(direction.less), quantities(direction.more), terms)
    )
    if both is None:
        return Verdict(less, more, math.nan, math.nan, None)
    difference, error, _ = both
    unsure = math.isfinite(error) and abs(difference) < 2 * error
    return Verdict(less, more, difference, error, None if unsure else difference > 0)


def total(findings: Findings, terms: Sequence[tuple[Quantity, int]]) -> Estimate | None:
    """A sum of numbers that do not depend on each other, some of them taken away; None where one is not known.

    A number that occurs twice has an error that counts twice. seeds: the fewest.
    """
    factors: Counter[Quantity] = Counter()
    for quantity, sign in terms:
        factors[quantity] += sign
    estimated = [(factor, findings.estimate(quantity)) for quantity, factor in factors.items()]
    found = [(factor, estimate) for factor, estimate in estimated if estimate is not None]
    if len(found) < len(estimated):
        return None
    return Estimate(
        sum(factor * estimate.mean for factor, estimate in found),
        math.hypot(*(factor * estimate.standard_error for factor, estimate in found)),
        min(estimate.seeds for _, estimate in found),
    )
