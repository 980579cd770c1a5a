"""Are means and standard errors what they are by hand, and do outcomes survive on disk?"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeut.evaluation.outcomes import Outcome, identity, mean_of_means, read_outcomes, rows, write_outcomes

ONE = Outcome("m", "piqa", "piqa", 0, "abc", "lm-eval", {"acc": 1.0, "acc_norm": 0.0}, [-1.0, -2.5], False)


def test_mean_of_means_by_hand():
    """Sets of means 2/3 and 1/2: variances 1/3 and 1/3 … of 3 and 4 values: 1/9 and 1/12."""
    mean, error = mean_of_means([[1, 1, 0], [1, 1, 0, 0]])
    assert mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert error == pytest.approx(math.sqrt(1 / 9 + 1 / 12) / 2)
    assert mean_of_means([[1.0]]) == (1.0, math.inf)


def test_the_standard_error_is_the_spread_of_repetitions():
    generator = np.random.default_rng(0)
    found = [mean_of_means((generator.random((3, 50)) < 0.3).astype(float).tolist()) for _ in range(1000)]
    means, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_a_row_for_each_metric():
    outcomes = [
        ONE,
        replace(ONE, index=1, truncated=True),
        replace(ONE, index=2, metrics={"acc": 0.0, "acc_norm": 1.0}),
    ]
    acc, acc_norm = rows(outcomes, 1.5)
    assert (acc.model, acc.task, acc.scoring, acc.metric) == ("m", "piqa", "lm-eval", "acc")
    assert (acc.value, acc.items, acc.truncated, acc.seconds) == (pytest.approx(2 / 3), 3, 1, 1.5)
    assert acc.standard_error == pytest.approx(math.sqrt(1 / 9))
    assert acc_norm.value == pytest.approx(1 / 3)


def test_nats_become_a_perplexity():
    outcomes = [replace(ONE, index=index, metrics={"nats": nats}) for index, nats in enumerate((1.0, 2.0, 3.0))]
    [row] = rows(outcomes, 0)
    assert (row.metric, row.value) == ("perplexity", pytest.approx(math.exp(2)))
    assert row.standard_error == pytest.approx(math.exp(2) * math.sqrt(1 / 3))


def test_there_and_back(tmp_path: Path):
    outcomes = [ONE, replace(ONE, index=1, log_likelihoods=[-math.inf], metrics={"nats": math.inf})]
    write_outcomes(tmp_path / "s.jsonl", outcomes)
    assert read_outcomes(tmp_path / "s.jsonl") == outcomes


def test_what_is_no_file_of_outcomes(tmp_path: Path):
    write_outcomes(tmp_path / "s.jsonl", [ONE])
    with (tmp_path / "s.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"s.jsonl:2: not the outcome of an item"):
        read_outcomes(tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"s.jsonl: holds no outcomes"):
        read_outcomes(tmp_path / "s.jsonl")


def test_an_item_is_known_by_its_content():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})
