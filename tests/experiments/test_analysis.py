"""From a command to a folder of figures, numbers and a page, whole or not at all; mistakes are one line."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from examined import save_rival, subject, tiny_model
from small_run import prepared, small_run

from moeut.data.tokens import TokenStream
from moeut.experiments.analysis import ANALYSIS, PAGE, AnalysisPlan, analyse, example
from moeut.experiments.run import train
from moeut.experiments.subjects import Reading
from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.training.progress import Progress

Run = Callable[..., tuple[int, str, str]]
QUIET = Progress(quiet=True)
CPU = Reading(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model whose feed-forward layer alone has experts, its data, and a text."""
    folder = tmp_path_factory.mktemp("analysis")
    config = small_run(prepared(folder), num_steps=1)
    attention = DenseAttentionConfig(num_attention_heads=2, head_dim=8)
    train(replace(config, model=replace(config.model, attention=attention)), folder / "run", quiet=True)
    (folder / "text.txt").write_text("some text, 1 2 3, some more text\n" * 20)
    return folder


@pytest.fixture
def moeut(moeut: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command beside the run: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    return moeut


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed, which is quicker."""
    monkeypatch.setattr("moeut.experiments.analysis.find_spec", lambda name: None)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_run_is_analysed_on_what_it_was_not_trained_on(moeut: Run, folder: Path, tmp_path: Path):
    out = tmp_path / "deep" / "analysis"
    code, said, err = moeut("analyse", "run", "--out", str(out))
    assert code == 0, err
    assert "analyse" in err
    assert names(out.parent) == {"analysis"}
    assert names(out) == {"figures", "tables", PAGE, ANALYSIS}
    figures = names(out / "figures")
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}
    assert "experts_across_depth-feed_forward.svg" in figures
    assert (out / "figures" / "overlap-feed_forward.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((out / ANALYSIS).read_text())
    [model] = facts["models"]
    assert (model["name"], model["context_length"], list(facts["data"])) == ("run", 16, [str(folder / "data")])
    lines = said.splitlines()
    assert lines[0] == f"run: {model['tokens']:,} tokens, cross entropy {model['cross_entropy']:.4f} nats a token"
    assert lines[3].split()[:4] == ["0.feed_forward", "2", "of", "4"]
    tables = {name.partition(".")[0] for name in names(out / "tables")}
    assert tables == {"routers", "experts", "top_tokens", "tokens", "depths", "places", "stream"}
    for name in tables:
        rows = json.loads((out / "tables" / f"{name}.json").read_text())
        assert pyarrow.parquet.read_table(out / "tables" / f"{name}.parquet").to_pylist() == rows
    text = (out / PAGE).read_text()
    assert f"{model['tokens']:,} tokens of {folder / 'data'}" in text
    code, said, _ = moeut("evaluate", "run", "--json", "--quiet", "--output", str(tmp_path / "evaluation"))
    evaluated = json.loads(said)
    assert model["tokens"] == evaluated["tokens"]
    assert model["cross_entropy"] == pytest.approx(evaluated["cross_entropy"])


@pytest.mark.usefixtures("without_figures")
def test_two_models_side_by_side_and_the_same_folder_again(moeut: Run, tmp_path: Path):
    out = tmp_path / "both"
    texts = ("--data", "text.txt", "--data", "0.txt", "--tokens", "200")
    code, said, err = moeut("analyse", "run", "run/final", *texts, "--out", str(out), "--quiet")
    assert code == 0
    assert "pip install 'moeut[plot]'" in err
    assert "run 0.feed_forward" in said
    assert "run/final 0.feed_forward" in said
    assert names(out) == {"tables", PAGE, ANALYSIS}
    facts = json.loads((out / ANALYSIS).read_text())
    assert [model["name"] for model in facts["models"]] == ["run", "run/final"]
    assert facts["models"][0]["sources"] == ["text.txt", "0.txt"]
    assert [model["tokens"] for model in facts["models"]] == [200, 200]
    places = json.loads((out / "tables" / "places.json").read_text())
    assert {row["source"] for row in places} == {"text.txt", "0.txt"}
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in "ab":
        (texts / f"{name}.txt").write_text(f"{name} text\n" * 9)
    code, said, _ = moeut("analyse", "run", "--data", str(texts), "--repeats", "3", "--out", str(out), "--json")
    assert code == 0
    [model] = json.loads(said)["models"]
    assert (model["num_repeats"], model["sources"]) == (3, [str(texts)])
    assert json.loads(said)["routers"][0]["depths"] == [0, 1, 2]
    code, said, _ = moeut("analyse", "run", "--data", str(texts), "--by-source", "--out", str(out), "--json")
    [model] = json.loads(said)["models"]
    assert {Path(name).name for name in model["sources"]} == {"a.txt", "b.txt"}
    assert names(tmp_path) == {"both", "texts"}


def test_a_dense_model_says_that_it_has_no_experts(folder: Path, moeut: Run, tmp_path: Path):
    config = small_run(folder / "data", num_steps=1)
    dense = replace(
        config.model, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=8),
    )  # fmt: skip
    train(replace(config, model=dense), tmp_path / "dense", quiet=True)
    code, said, _ = moeut("analyse", str(tmp_path / "dense"), "--out", str(tmp_path / "out"), "--quiet")
    assert code == 0
    assert "it has no experts, so only its stream is shown" in said
    assert {Path(name).stem for name in names(tmp_path / "out" / "figures")} == {
        "update_sizes", "hidden_states", "logit_lens"
    }  # fmt: skip
    assert (tmp_path / "out" / PAGE).is_file()


def test_the_page_shows_the_first_document_that_fills_it():
    ids = np.concatenate([[0], np.full(5, 66), [0], np.full(2500, 67), [0], np.full(3000, 68), [0]])
    stream = TokenStream([ids], np.array([[1, 5], [7, 2500], [2508, 3000]]))
    short_one = TokenStream([ids[:7]], np.array([[1, 5]]))
    anybody = subject(tiny_model())
    assert example(anybody, {"a": [short_one], "b": [stream]}) == "B" * 2000
    assert example(anybody, {"a": [short_one]}) == "A" * 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "run"], "run run: name one model, or two different ones"),
        (["run", "a", "b"], "name one model, or two different ones"),
        (["nowhere"], "nowhere: no model here"),
        (["run", "--data", "nowhere"], "nowhere"),
        (["run", "--out", "data"], "data: something else than an analysis is in the way"),
        (["run", "--out", "text.txt"], "text.txt: a file is in the way"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], expected: str, moeut: Run, folder: Path):
    before = names(folder)
    code, out, err = moeut("analyse", *arguments, "--quiet")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert expected in line
    assert names(folder) == before


def test_what_somebody_put_beside_an_analysis_is_not_replaced(folder: Path, tmp_path: Path, moeut: Run):
    (tmp_path / ANALYSIS).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = moeut("analyse", "run", "--out", str(tmp_path), "--quiet")
    assert code == 2
    assert "something else than an analysis is in the way" in err
    assert names(tmp_path) == {ANALYSIS, "notes.txt"}


def test_a_model_of_others_cannot_be_asked(tmp_path: Path, moeut: Run):
    save_rival(tmp_path / "rival")
    code, _, err = moeut(
        "analyse", str(tmp_path / "rival"), "--data", "text.txt", "--out", str(tmp_path / "out"), "--quiet"
    )
    assert code == 2
    assert "no model of this package" in err
    assert names(tmp_path) == {"rival"}


def test_a_failure_leaves_nothing_half_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither where there was nothing, nor where there was an analysis."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moeut.experiments.analysis.figures", interrupt)
    plan = AnalysisPlan(reading=CPU, texts=(folder / "text.txt",), tokens=50)
    with pytest.raises(KeyboardInterrupt):
        analyse([str(folder / "run")], plan, tmp_path / "out", QUIET)
    assert names(tmp_path) == set()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ANALYSIS).write_text("an earlier one")
    with pytest.raises(KeyboardInterrupt):
        analyse([str(folder / "run")], plan, tmp_path / "out", QUIET)
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / ANALYSIS).read_text() == "an earlier one"


@pytest.mark.usefixtures("without_figures")
def test_what_a_killed_process_left_is_cleared_away(folder: Path, tmp_path: Path):
    """It is killed while it draws; what is left has a hidden name."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moeut", "analyse", "run", "--out", str(out)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    drawn = tmp_path / ".out.partial" / "figures"
    while time.monotonic() < deadline and not (drawn.exists() and any(drawn.iterdir())):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=120)
    assert names(tmp_path) == {".out.partial"}
    analyse([str(folder / "run")], AnalysisPlan(reading=CPU), out, QUIET)
    assert names(tmp_path) == {"out"}
    assert names(out) == {"tables", PAGE, ANALYSIS}
