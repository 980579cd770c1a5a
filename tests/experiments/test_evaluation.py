"""From a command to a table, to a record that says how, and to a comparison in words."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from examined import ITEMS, save_rival, save_tiny
from small_run import prepared, small_run

from moeut.evaluation.outcomes import read_outcomes
from moeut.evaluation.task_data import from_folder
from moeut.experiments.evaluation import Plan, compare_files, limited, measure, text_facts, text_lines, write_record
from moeut.experiments.run import train
from moeut.experiments.subjects import Reading
from moeut.files import sha256
from moeut.training.progress import Progress

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'moeut[eval]'")

Run = Callable[..., tuple[int, str, str]]
QUIET = Progress(quiet=True)
CPU = Reading(device=torch.device("cpu"))


@pytest.fixture
def moeut(moeut: Run, tmp_path: Path) -> Run:
    """Run `moeut evaluate` beside a model of ours and one of transformers: (exit code, stdout, stderr)."""
    save_tiny(tmp_path / "ours")
    save_rival(tmp_path / "theirs", max_position_embeddings=2048)
    return partial(moeut, "evaluate")


def test_two_models_on_tasks(moeut: Run, tmp_path: Path):
    tasks = ["--tasks", "lambada,blimp,piqa", "--task-data", str(ITEMS), "--limit", "2"]
    code, out, err = moeut("ours", "theirs", *tasks, "--samples", "s.jsonl", "--quiet")
    assert (code, err) == (0, "")
    heading, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert heading == ["model", "task", "scoring", "metric", "value", "±", "items", "truncated", "seconds"]
    assert [line[0] for line in lines] == ["ours", "theirs"] * 8
    assert [(line[1], line[2], line[3]) for line in lines[::2]] == [
        ("lambada", "lm-eval", "acc"), ("lambada", "lm-eval", "perplexity"), ("lambada", "paper", "acc"),
        ("blimp", "lm-eval", "acc"), ("blimp", "paper", "acc"),
        ("piqa", "lm-eval", "acc"), ("piqa", "lm-eval", "acc_norm"), ("piqa", "paper", "acc"),
    ]  # fmt: skip
    assert {line[6] for line in lines if line[1] == "blimp"} == {"5"}  # 2 of 3, 2 of 2, 1 of 1
    for name in ("ours", "theirs"):
        [file] = (tmp_path / name / "evaluation").iterdir()
        record = json.loads(file.read_text())
        assert record["model"]["files"]["model.safetensors"] == sha256(tmp_path / name / "model.safetensors")
        assert record["settings"]["limit"] == 2
        assert record["settings"]["scorings"] == ["lm-eval", "paper"]
        assert record["tasks"]["piqa"] == {
            "origin": {"piqa_validation.jsonl": sha256(ITEMS / "piqa_validation.jsonl")},
            "sets": {"piqa": {"items": 2, "version": 1.0}},
        }
        assert record["versions"]["lm_eval"]
        assert {row["model"] for row in record["rows"]} == {name}
        assert len(record["rows"]) == 8
    assert {outcome.model for outcome in read_outcomes(tmp_path / "s.jsonl")} == {"ours", "theirs"}

    code, out, err = moeut("--compare", "s.jsonl")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 7
    assert out.startswith("lambada (lm-eval, acc), 2 items: ours ")
    code, out, _ = moeut("--compare", "s.jsonl", "--json")
    assert [one["task"] for one in json.loads(out)["comparisons"]] == [*["lambada"] * 2, *["blimp"] * 2, *["piqa"] * 3]


def test_as_csv_and_as_json(moeut: Run):
    arguments = ["ours", "--tasks", "piqa", "--task-data", str(ITEMS), "--scoring", "paper", "--quiet"]
    code, out, _ = moeut(*arguments, "--format", "csv")
    assert code == 0
    [row] = csv.DictReader(out.splitlines())
    assert (row["model"], row["task"], row["scoring"], row["metric"], row["items"]) == (
        "ours",
        "piqa",
        "paper",
        "acc",
        "4",
    )
    for way in (["--format", "json"], ["--json"]):
        code, out, _ = moeut(*arguments, *way)
        assert json.loads(out)["rows"][0]["value"] == float(row["value"])
    code, out, _ = moeut("ours", "ours", *arguments[1:], "--json")
    assert len(json.loads(out)["models"]) == 2


def test_records_do_not_replace_each_other(moeut: Run, tmp_path: Path):
    arguments = ["ours", "--tasks", "piqa", "--task-data", str(ITEMS), "--scoring", "paper", "--quiet", "--limit", "1"]
    for _ in range(3):
        assert moeut(*arguments, "--output", "records")[0] == 0
    assert len(list((tmp_path / "records").iterdir())) == 3
    assert not (tmp_path / "ours" / "evaluation").exists()


def test_texts_of_several_models(moeut: Run, tmp_path: Path):
    (tmp_path / "a.txt").write_text("one text " * 40)
    (tmp_path / "b.txt").write_text("quite another text, " * 30)
    code, out, err = moeut("ours", "theirs", "--data", "a.txt", "--data", "b.txt", "--context-length", "32", "--quiet")
    assert (code, err) == (0, "")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["ours", "theirs"] * 9
    assert [line[1] for line in lines[::6]] == ["a.txt", "b.txt", "all of these"]
    assert [line[3] for line in lines[:6:2]] == ["cross_entropy", "perplexity", "bits_per_byte"]
    assert {line[2] for line in lines} == {"blocks of 32"}
    tokens = [int(line[6].replace(",", "")) for line in lines[::6]]
    assert tokens[2] == tokens[0] + tokens[1]

    code, one, _ = moeut("ours", "--data", "a.txt", "--context-length", "32", "--stride", "8", "--quiet")
    assert code == 0
    assert one.splitlines()[-1].endswith("of a.txt, in windows of 32, 8 apart")


def test_one_model_on_one_text(tmp_path: Path):
    data = prepared(tmp_path)
    train(small_run(data, num_steps=1), tmp_path / "run", quiet=True)
    [measured] = measure([str(tmp_path / "run")], Plan(reading=CPU), QUIET)
    facts = text_facts(measured)
    assert (facts["data"], facts["context_length"], facts["num_repeats"]) == (str(data), 16, 2)
    assert f"cross entropy   {facts['cross_entropy']:8.4f}" in text_lines(measured)[0]
    windows, sources = (
        measure([str(tmp_path / "run")], plan, QUIET)[0]
        for plan in (Plan(reading=CPU, stride=4), Plan(reading=CPU, by_source=True))
    )
    assert text_facts(windows)["cross_entropy"] != facts["cross_entropy"]
    assert windows.record["settings"]["stride"] == 4
    assert text_facts(sources)["cross_entropy"] == facts["cross_entropy"]
    bits = [row for row in measured.rows if row.metric == "bits_per_byte"]
    assert bits[0].standard_error == pytest.approx(
        facts["standard_error"] * facts["bits_per_byte"] / facts["cross_entropy"]
    )
    file = write_record(measured)
    assert file.parent == tmp_path / "run" / "evaluation"
    assert json.loads(file.read_text())["data"] == measured.record["data"]


def test_the_figure_is_the_same_in_any_batch(tmp_path: Path):
    save_tiny(tmp_path / "ours", torch.float64)
    results = [
        measure(
            [str(tmp_path / "ours")],
            Plan(reading=Reading(device=CPU.device, batch_size=size), tasks=("blimp", "hellaswag"), task_folder=ITEMS),
            QUIET,
        )[0]
        for size in (1, 3, 50)
    ]
    for other in results[1:]:
        for mine, theirs in zip(results[0].outcomes, other.outcomes, strict=True):
            assert mine.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-9)
            assert mine.metrics.keys() == theirs.metrics.keys()


def test_limit():
    data = from_folder(ITEMS, ["cbt"])["cbt"]
    assert {len(items) for items in limited(data, 1).sets.values()} == {1}
    assert {len(items) for items in limited(data, 99).sets.values()} == {3}
    assert limited(data, None) == data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model to evaluate, or two files of items with --compare"),
        (["ours", "--tasks", "boolq"], "--tasks: boolq is not among lambada, blimp, cbt"),
        (["ours", "--tasks", "piqa", "--scoring", "mine"], "--scoring: mine is not among lm-eval, paper"),
        (["ours", "--tasks", "piqa", "--task-data", "nowhere"], "nowhere: no such folder"),
        (["ours", "--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["ours", "--data", "a.txt", "--stride", "2000"], "stride is 2000; it must be at least 1 and at most"),
        (["ours", "--data", "a.txt", "--dtype", "int8"], "--dtype: 'int8' is not one of"),
        (["ours"], "ours: not part of a run"),
        (["ours", "--data", "a.txt", "--samples", "no/s.jsonl"], "--samples: there is no folder no"),
        (["--compare", "a.txt"], "a.txt:1: not the outcome of an item"),
        (["--compare", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(moeut: Run, tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "a.txt").write_text("text " * 20)
    code, out, err = moeut(*arguments, "--quiet")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert message in line


def test_what_can_be_compared(moeut: Run, tmp_path: Path):
    tasks = ["--tasks", "piqa", "--task-data", str(ITEMS), "--scoring", "paper", "--quiet"]
    assert moeut("ours", *tasks, "--samples", "a")[0] == 0
    assert moeut("ours", *tasks, "--samples", "b")[0] == 0
    [found] = compare_files([Path("a"), Path("b")])
    assert (found.first_model, found.second_model) == ("a", "b")
    assert (found.only_first, found.only_second, found.p_value) == (0, 0, 1.0)
    for files in (["a"], ["a", "b", "a"]):
        code, _, err = moeut("--compare", *files)
        assert code == 2
        assert "takes one file with two models, or two files with one each; a holds ours" in err
