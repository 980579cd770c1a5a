"""Does a comparison find a difference where there is one, and none where there is none?"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from moeut.evaluation.compare import bootstrap, compare, mcnemar, models
from moeut.evaluation.outcomes import Outcome


def outcomes(model: str, right: list[int], name: str = "piqa", task: str = "piqa") -> list[Outcome]:
    return [
        Outcome(model, task, name, index, f"{name}{index}", "paper", {"acc": float(value)}, [], False)
        for index, value in enumerate(right)
    ]


def test_mcnemar_by_counting():
    """The probability of a split among all 2^n ways in which n coins fall."""
    for one, other in [(0, 0), (1, 0), (3, 3), (5, 1), (2, 7)]:
        count, least = one + other, min(one, other)
        falls = [sum(coins) for coins in itertools.product((0, 1), repeat=count)]
        extreme = sum(heads <= least or heads >= count - least for heads in falls) / len(falls)
        assert mcnemar(one, other) == pytest.approx(min(1.0, extreme)), (one, other)
    assert mcnemar(30_000, 30_001) == pytest.approx(1.0, abs=0.01)
    assert 0 < mcnemar(400, 600) < 1e-9


def test_the_interval_is_that_of_drawing_items():
    generator = np.random.default_rng(1)
    values = generator.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.6, 0.3])
    low, high = bootstrap([values])
    draws = [generator.choice(values, 400).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)
    assert bootstrap([values]) == (low, high)
    assert bootstrap([np.zeros(5), np.zeros(7)]) == (0, 0)


def test_by_hand():
    """Of eight items, A alone is right on three, B alone on one."""
    [found] = compare(outcomes("a", [1, 1, 1, 0, 1, 1, 0, 0]), outcomes("b", [0, 0, 0, 1, 1, 1, 0, 0]), ("A", "B"))
    assert (found.first, found.second) == (0.625, 0.375)
    assert (found.only_first, found.only_second, found.both_or_none) == (3, 1, 4)
    assert found.p_value == pytest.approx(0.625)
    assert found.low < 0.25 < found.high
    assert found.in_words() == (
        f"piqa (paper, acc), 8 items: A 62.50%, B 37.50%, a difference of +25.00 points (95% interval "
        f"{100 * found.low:+.2f} to {100 * found.high:+.2f}). Only A is right on 3, only B on 1; no difference is "
        "shown: between equally good models, a split at least as uneven as this comes by chance in 62.50% of such "
        "tests."
    )


def test_a_difference_is_said():
    [found] = compare(outcomes("a", [0] * 40 + [1] * 60), outcomes("b", [1] * 70 + [0] * 30), ("A", "B"))
    assert found.p_value == mcnemar(30, 40)
    [found] = compare(outcomes("a", [0] * 100), outcomes("b", [1] * 90 + [0] * 10), ("A", "B"))
    assert found.high < 0
    assert "Only B is right on 90, only A on 0; B is better: if the two were equally good" in found.in_words()
    assert "under 0.01% of such tests" in found.in_words()


def test_sets_count_alike():
    """As in the mean of a task: a set of 2 items weighs as much as one of 8."""
    first = outcomes("a", [1] * 8, "x", "t") + outcomes("a", [0, 0], "y", "t")
    second = outcomes("b", [1] * 8, "x", "t") + outcomes("b", [1, 1], "y", "t")
    [found] = compare(first, second, ("A", "B"))
    assert (found.first, found.second) == (0.5, 1.0)
    assert (found.low, found.high) == (-0.5, -0.5)


def test_nats_are_not_right_or_wrong():
    first = [replace(one, metrics={"acc": 1.0, "nats": 3.0}) for one in outcomes("a", [1, 1])]
    assert [found.metric for found in compare(first, first, ("A", "B"))] == ["acc"]


def test_only_the_same_items_are_compared():
    ours = outcomes("a", [1, 0, 1])
    with pytest.raises(ValueError, match=r"^piqa: the two were not on the same items"):
        compare(ours, ours[:2], ("A", "B"))
    with pytest.raises(ValueError, match=r"^piqa: the two were not on the same items"):
        compare(ours, [replace(one, item="other") for one in ours], ("A", "B"))
    with pytest.raises(ValueError, match=r"^only one of the two has outcomes of cbt \(paper\)"):
        compare(ours, ours + outcomes("b", [1], "cbt_v", "cbt"), ("A", "B"))


def test_models_apart():
    found = models(outcomes("a", [1]) + outcomes("b", [0, 1]))
    assert {name: len(of) for name, of in found.items()} == {"a": 1, "b": 2}


def test_equally_good_models_seldom_differ():
    """The p-value is under 0.05 in at most so many of tests between models that guess alike."""
    generator = np.random.default_rng(0)
    splits = generator.binomial(60, 0.5, 2000)
    found = [mcnemar(int(one), 60 - int(one)) for one in splits]
    assert np.mean([p < 0.05 for p in found]) <= 0.05 + 3 * math.sqrt(0.05 / 2000)
