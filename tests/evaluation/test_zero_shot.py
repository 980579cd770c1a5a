"""Do both scorings come out in one table, from items of any number, and is chance chance?"""

import math
from dataclasses import replace

import pytest
from examined import ITEMS, oracle, subject, tiny_model, tokenizer_of_items, uniform

from moeut.evaluation.likelihood import Examiner
from moeut.evaluation.outcomes import Row
from moeut.evaluation.task_data import from_folder
from moeut.evaluation.zero_shot import LM_EVAL, PAPER, SCORINGS, TASKS, average, check, run_task

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'moeut[eval]'")

METRICS = {
    "lambada": [("lm-eval", "acc"), ("lm-eval", "perplexity"), ("paper", "acc")],
    "blimp": [("lm-eval", "acc"), ("paper", "acc")],
    **{
        task: [("lm-eval", "acc"), ("lm-eval", "acc_norm"), ("paper", "acc")]
        for task in ("cbt", "hellaswag", "piqa", "arc_easy")
    },
}


def tiny() -> Examiner:
    tokenizer = tokenizer_of_items()
    return Examiner(subject(tiny_model(tokenizer.get_vocab_size()).double(), tokenizer))


@pytest.mark.parametrize("task", TASKS)
def test_both_scorings_of_every_task(task: str):
    sets = from_folder(ITEMS, [task])[task].sets
    if task == "cbt":  # whose items are long
        sets = {name: sets[name][:1] for name in ("cbt_ne", "cbt_p")}
    count = sum(map(len, sets.values()))
    found = run_task(tiny(), task, sets)
    assert [(row.scoring, row.metric) for row in found.rows] == METRICS[task]
    dropped = 1 if task == "arc_easy" else 0
    assert [row.items for row in found.rows] == [count - dropped * (row.scoring == PAPER) for row in found.rows]
    assert {row.task for row in found.rows} == {outcome.task for outcome in found.outcomes} == {task}
    assert found.versions.keys() == sets.keys()
    for scoring in SCORINGS:
        alone = run_task(tiny(), task, sets, [scoring])
        assert [replace(row, seconds=0) for row in alone.rows] == [
            replace(row, seconds=0) for row in found.rows if row.scoring == scoring
        ]
        items = [(outcome.set, outcome.index, outcome.item) for outcome in alone.outcomes]
        assert len(set(items)) == len(items)


def test_one_item_is_enough():
    for task, data in from_folder(ITEMS, ["lambada", "blimp", "piqa"]).items():
        sets = {name: items[:1] for name, items in data.sets.items()}
        found = run_task(tiny(), task, sets)
        assert all(row.items == len(sets) for row in found.rows), task
        assert all(row.value in (0, 1) or len(sets) > 1 or row.metric == "perplexity" for row in found.rows)
        assert all(row.standard_error == math.inf for row in found.rows)


def test_who_knows_the_passage_has_perplexity_one():
    text = "He said it was the naïveté"
    it = subject(uniform())
    [ids] = it.encode([text])
    found = run_task(Examiner(subject(oracle([ids]))), "lambada", {"lambada_openai": [{"text": text}] * 2})
    assert {(row.scoring, row.metric): (row.value, row.standard_error) for row in found.rows} == {
        ("lm-eval", "acc"): (1, 0), ("lm-eval", "perplexity"): (1, 0), ("paper", "acc"): (1, 0),
    }  # fmt: skip


def test_three_items_by_hand():
    """To a model to which all tokens are equal, lm-eval's `acc` takes the shortest choice and of equal ones the first.

    Of equal choices, whichever is right: lm-eval takes the first, the paper none. `acc_norm` divides by characters: of
    two letters of one byte and one letter of two, the second is likelier a byte but not a character.
    """
    items = [
        {"goal": "", "sol1": "ab", "sol2": "abc", "label": 0},  # the shorter one; its beginning is the longer's
        {"goal": "", "sol1": "same", "sol2": "same", "label": 0},
        {"goal": "", "sol1": "same", "sol2": "same", "label": 1},
        {"goal": "", "sol1": "ééé", "sol2": "abcd", "label": 1},  # six bytes in three characters against four in four
    ]
    found = run_task(Examiner(subject(uniform())), "piqa", {"piqa": items})
    ours = {scoring: [o.metrics for o in found.outcomes if o.scoring == scoring] for scoring in SCORINGS}
    assert [metrics["acc"] for metrics in ours[LM_EVAL]] == [1, 1, 0, 1]
    assert [metrics["acc_norm"] for metrics in ours[LM_EVAL]] == [0, 1, 0, 1]
    assert [metrics["acc"] for metrics in ours[PAPER]][1:3] == [0, 0]
    lengths = [[-round(score / math.log(257)) for score in o.log_likelihoods] for o in found.outcomes[:4]]
    assert lengths == [[3, 4], [5, 5], [5, 5], [7, 5]]


def test_endings_longer_than_the_model_reads():
    """They lose their beginning, in both scorings, and are counted."""
    items = [
        {"goal": "a", "sol1": "b" * 50, "sol2": "c" * 10, "label": 0},
        {"goal": "a", "sol1": "b", "sol2": "c", "label": 0},
    ]
    found = run_task(Examiner(subject(uniform(), max_length=20)), "piqa", {"piqa": items})
    assert [(row.scoring, row.metric, row.truncated) for row in found.rows] == [
        ("lm-eval", "acc", 1), ("lm-eval", "acc_norm", 1), ("paper", "acc", 1),
    ]  # fmt: skip
    assert found.outcomes[0].log_likelihoods == pytest.approx([-20 * math.log(257), -11 * math.log(257)])
    assert not found.outcomes[1].truncated


def test_no_item_that_can_be_scored():
    item = {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    with pytest.raises(ValueError, match="arc_easy: none of its items can be scored as the paper does"):
        run_task(tiny(), "arc_easy", {"arc_easy": [item]}, [PAPER])


def test_average_of_six():
    rows = [Row("m", task, PAPER, "acc", number / 10, 0.1, 5, 1, 2.0) for number, task in enumerate(TASKS)]
    [mean] = average([*rows, replace(rows[0], scoring=LM_EVAL, value=1.0), replace(rows[0], metric="x")])
    assert (mean.task, mean.scoring, mean.metric) == ("average", PAPER, "acc")
    assert mean.value == pytest.approx(0.25)
    assert mean.standard_error == pytest.approx(0.1 / math.sqrt(6))
    assert (mean.items, mean.truncated, mean.seconds) == (30, 6, 12.0)
    assert average(rows[:5]) == []


def test_what_there_is_not(monkeypatch: pytest.MonkeyPatch):
    check(TASKS, SCORINGS)
    with pytest.raises(ValueError, match="--tasks: winogrande, boolq is not among lambada, blimp"):
        check(["piqa", "winogrande", "boolq"], SCORINGS)
    with pytest.raises(ValueError, match="--scoring: mine is not among lm-eval, paper"):
        check(["piqa"], ["mine"])
    monkeypatch.setattr("moeut.evaluation.zero_shot.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--tasks: needs lm-eval: pip install 'moeut\[eval\]'"):
        check(["piqa"], SCORINGS)
    check(["piqa"], [PAPER])
