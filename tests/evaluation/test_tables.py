"""Can a table be read by people and by machines?"""

import csv
import math

from moeut.evaluation.outcomes import Row
from moeut.evaluation.tables import comma_separated, markdown, together

ROWS = [
    Row("first", "piqa", "paper", "acc", 0.612345678, 0.0113, 1838, 0, 12.34),
    Row("first", "lambada", "lm-eval", "perplexity", 585209214.4732, 1.5e9, 5153, 3, 1.0),
    Row("second, longer", "piqa", "paper", "acc", 0.7, math.inf, 1, 0, 0.04),
]


def test_models_stand_below_each_other():
    assert [(row.model, row.task) for row in together(ROWS)] == [
        ("first", "piqa"), ("second, longer", "piqa"), ("first", "lambada"),
    ]  # fmt: skip


def test_for_people():
    assert markdown(ROWS) == [
        "| model          | task    | scoring | metric     |     value |       ± | items | truncated | seconds |",
        "| -------------- | ------- | ------- | ---------- | --------: | ------: | ----: | --------: | ------: |",
        "| first          | piqa    | paper   | acc        |    0.6123 |  0.0113 | 1,838 |         0 |    12.3 |",
        "| first          | lambada | lm-eval | perplexity | 5.852e+08 | 1.5e+09 | 5,153 |         3 |     1.0 |",
        "| second, longer | piqa    | paper   | acc        |    0.7000 |       ? |     1 |         0 |     0.0 |",
    ]


def test_for_machines():
    [heading, *lines] = csv.reader(comma_separated(ROWS))
    assert heading[:5] == ["model", "task", "scoring", "metric", "value"]
    assert [Row(*line[:4], *map(float, line[4:6]), *map(int, line[6:8]), float(line[8])) for line in lines] == ROWS  # type: ignore
