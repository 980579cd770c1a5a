"""Is one model really better than another? Item by item, on the same items, and in words.

Two answers: how much the mean differs, with an interval by paired bootstrap (items are drawn again and again, each with
both models' outcomes, within their sets); and whether the items on which just one model is right are divided so
unevenly that chance is no explanation (McNemar's test, exact).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeut.evaluation.outcomes import Outcome

RESAMPLES = 10_000
SEED = 0
SURE = 0.05
Key = tuple[str, str, str]
"""Task, scoring, metric."""


@dataclass(frozen=True)
class Comparison:
    """Models A and B on the same items of a task, in one scoring and metric.

    first, second: their means, as in `outcomes.mean_of_means`. low, high: between these lies first − second, says the
    bootstrap, 95 of 100 times. only_first, only_second: items that just one is right on; both_or_none: the others.
    p_value: how often chance divides them at least as unevenly, if each of the two is as likely.
    """

    task: str
    scoring: str
    metric: str
    first_model: str
    second_model: str
    first: float
    second: float
    low: float
    high: float
    only_first: int
    only_second: int
    both_or_none: int
    p_value: float

    def in_words(self) -> str:
        """A sentence or two for those who do not read p-values."""
        one, other = self.only_first, self.only_second
        better, worse = (self.first_model, self.second_model) if one >= other else (self.second_model, self.first_model)
        verdict = (
            f"{better} is better: if the two were equally good, a split as uneven as this would come by chance in "
            f"{_percent(self.p_value)} of such tests"
            if self.p_value < SURE
            else f"no difference is shown: between equally good models, a split at least as uneven as this comes by "
            f"chance in {_percent(self.p_value)} of such tests"
        )
        return (
            f"{self.task} ({self.scoring}, {self.metric}), {one + other + self.both_or_none:,} items: "
            f"{self.first_model} {self.first:.2%}, {self.second_model} {self.second:.2%}, a difference of "
            f"{100 * (self.first - self.second):+.2f} points (95% interval {100 * self.low:+.2f} to "
            f"{100 * self.high:+.2f}). Only {better} is right on {max(one, other):,}, only {worse} on "
            f"{min(one, other):,}; {verdict}."
        )


def compare(first: Iterable[Outcome], second: Iterable[Outcome], names: tuple[str, str]) -> list[Comparison]:
    """Two models of these names, each with the outcomes of the same items, in all metrics that are right or wrong.

    Raises ValueError where they are not on the same items.
    """
    ours, theirs = _by_key(first), _by_key(second)
    if set(ours) != set(theirs):
        differing = sorted({f"{task} ({scoring})" for task, scoring, _ in set(ours) ^ set(theirs)})
        raise ValueError(f"only one of the two has outcomes of {', '.join(differing)}")
    return [_comparison(key, ours[key], theirs[key], names) for key in ours]


def models(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each model, by its name."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.model].append(outcome)
    return dict(found)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value of a split of n items on which two models differ: 2 · P(X ≤ least), X ~ B(n, ½)."""
    count, least = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def bootstrap(differences: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean over sets of the mean difference, when items are drawn anew.

    differences: for each set, first − second on each item: −1, 0 or 1. How many of each come in a new draw is
    multinomial, which is drawn instead of the items.
    """
    generator = np.random.default_rng(SEED)
    total = np.zeros(RESAMPLES)
    for values in differences:
        kinds, counts = np.unique(values, return_counts=True)
        total += generator.multinomial(len(values), counts / len(values), RESAMPLES) @ kinds / len(values)
    low, high = np.percentile(total / len(differences), [2.5, 97.5])
    return float(low), float(high)


def _by_key(outcomes: Iterable[Outcome]) -> dict[Key, dict[tuple[str, int, str], float]]:
    """By task, scoring and metric: each item, by set, number and content, with what came of it."""
    found: dict[Key, dict[tuple[str, int, str], float]] = defaultdict(dict)
    for outcome in outcomes:
        for metric, value in outcome.metrics.items():
            if metric != "nats":
                key = (outcome.task, outcome.scoring, metric)
                found[key][outcome.set, outcome.index, outcome.item] = value
    return dict(found)


def _comparison(
    key: Key, ours: dict[tuple[str, int, str], float], theirs: dict[tuple[str, int, str], float], names: tuple[str, str]
) -> Comparison:
    task, scoring, metric = key
    if set(ours) != set(theirs):
        raise ValueError(f"{task}: the two were not on the same items; evaluate both on the same data and --limit")
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item, value in ours.items():
        pairs[item[0]].append((value, theirs[item]))
    sets = [np.array(values) for values in pairs.values()]
    first, second = (float(np.mean([values[:, side].mean() for values in sets])) for side in (0, 1))
    differences = [values[:, 0] - values[:, 1] for values in sets]
    only_first, only_second = (sum(int((sign * values > 0).sum()) for values in differences) for sign in (1, -1))
    low, high = bootstrap(differences)
    return Comparison(
        task, scoring, metric, *names, first, second, low, high, only_first, only_second,
        len(ours) - only_first - only_second, mcnemar(only_first, only_second),
    )  # fmt: skip


def _percent(share: float) -> str:
    """A share of all cases, small ones not as nothing."""
    return "under 0.01%" if share < 1e-4 else f"{share:.2%}"
