"""From a command to a folder of figures, numbers and a page, whole or not at all; mistakes are one line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from examined import save_rival
from small_run import prepared, small_run

from moeut.cli import main
from moeut.experiments.analysis import ANALYSIS, AnalysisPlan, analyse
from moeut.experiments.run import train
from moeut.experiments.subjects import Reading
from moeut.files import sha256
from moeut.training.progress import Progress

Run = Callable[..., tuple[int, str, str]]
QUIET = Progress(quiet=True)
CPU = Reading(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of small models on the same prepared texts, of which the second is dense; and a text."""
    folder = tmp_path_factory.mktemp("analysis")
    data = prepared(folder)
    config = small_run(data, num_steps=1)
    train(config, folder / "run", quiet=True)
    (folder / "text.txt").write_text("some text, 1 2 3, some more text\n" * 20)
    return folder


@pytest.fixture
def moeut(capfd: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `moeut analyse` beside the runs: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["analyse", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_run_is_analysed_on_what_it_was_not_trained_on(moeut: Run, folder: Path, tmp_path: Path):
    out = tmp_path / "deep" / "analysis"
    code, said, err = moeut("run", "--out", str(out))
    assert code == 0, err
    assert "analyse" in err
    assert names(out.parent) == {"analysis"}
    assert names(out) == {"figures", "tables", "index.html", ANALYSIS}
    figures = names(out / "figures")
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}
    assert "experts_across_depth-feed_forward.svg" in figures
    assert (out / "figures" / "overlap-feed_forward.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((out / ANALYSIS).read_text())
    [model] = facts["models"]
    assert (model["name"], model["context_length"], list(facts["data"])) == ("run", 16, [str(folder / "data")])
    lines = said.splitlines()
    assert lines[0] == f"run: {model['tokens']:,} tokens, cross entropy {model['cross_entropy']:.4f} nats a token"
    assert [line.split()[0] for line in lines[3:6]] == ["0.attention_value", "0.attention_output", "0.feed_forward"]
    tables = {name.partition(".")[0] for name in names(out / "tables")}
    assert tables == {"routers", "experts", "top_tokens", "tokens", "depths", "places", "stream"}
    for name in tables:
        rows = json.loads((out / "tables" / f"{name}.json").read_text())
        assert pyarrow.parquet.read_table(out / "tables" / f"{name}.parquet").to_pylist() == rows


def test_the_cross_entropy_is_that_of_evaluate(folder: Path, moeut: Run, tmp_path: Path, capfd):
    code, said, _ = moeut("run", "--data", "text.txt", "--json", "--quiet", "--out", str(tmp_path / "a"))
    assert code == 0
    facts = json.loads(said)
    assert list(facts["data"]) == ["text.txt"]
    assert main(["evaluate", "run", "--data", "text.txt", "--json", "--quiet", "--output", str(tmp_path / "e")]) == 0
    evaluated = json.loads(capfd.readouterr().out)
    [model] = facts["models"]
    assert model["tokens"] == evaluated["tokens"]
    assert model["cross_entropy"] == pytest.approx(evaluated["cross_entropy"])


def test_two_models_side_by_side(moeut: Run, tmp_path: Path):
    out = tmp_path / "both"
    arguments = ("--data", "text.txt", "--data", "0.txt", "--tokens", "200", "--out", str(out), "--quiet")
    code, said, err = moeut("run", "run/final", *arguments)
    assert (code, err) == (0, "")
    assert "run 0.feed_forward" in said
    assert "run/final 0.feed_forward" in said
    facts = json.loads((out / ANALYSIS).read_text())
    assert [model["name"] for model in facts["models"]] == ["run", "run/final"]
    assert facts["models"][0]["sources"] == ["text.txt", "0.txt"]
    assert all(100 < model["tokens"] <= 200 for model in facts["models"])
    assert "source-feed_forward.png" in names(out / "figures")
    # The same folder again, with another depth and without the second text: all of it is replaced.
    code, said, _ = moeut("run", "--data", "text.txt", "--repeats", "1", "--out", str(out), "--quiet")
    assert code == 0
    facts = json.loads((out / ANALYSIS).read_text())
    assert [model["num_repeats"] for model in facts["models"]] == [1]
    assert "source-feed_forward.png" not in names(out / "figures")
    assert "overlap-feed_forward.png" not in names(out / "figures"), "one repeat has nothing to compare"
    assert names(tmp_path) == {"both"}


def test_a_dense_model_says_that_it_has_no_experts(folder: Path, moeut: Run, tmp_path: Path):
    from dataclasses import replace

    from moeut.model.attention import DenseAttentionConfig
    from moeut.model.feedforward import MLPConfig

    config = small_run(folder / "data", num_steps=1)
    dense = replace(
        config.model, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=8),
    )  # fmt: skip
    train(replace(config, model=dense), tmp_path / "dense", quiet=True)
    code, said, _ = moeut(str(tmp_path / "dense"), "--out", str(tmp_path / "out"), "--quiet")
    assert code == 0
    assert "it has no experts, so only its stream is shown" in said
    assert {Path(name).stem for name in names(tmp_path / "out" / "figures")} == {
        "update_sizes", "hidden_states", "logit_lens"
    }  # fmt: skip
    assert (tmp_path / "out" / "index.html").is_file()


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
    code, out, err = moeut(*arguments, "--quiet")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert expected in line
    assert names(folder) == before


def test_a_model_of_others_cannot_be_asked(tmp_path: Path, moeut: Run):
    save_rival(tmp_path / "rival")
    code, _, err = moeut(str(tmp_path / "rival"), "--data", "text.txt", "--out", str(tmp_path / "out"), "--quiet")
    assert code == 2
    assert "no model of this package" in err
    assert names(tmp_path) == {"rival"}


def test_without_matplotlib_the_numbers_are_there(moeut: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moeut.experiments.analysis.find_spec", lambda name: None)
    code, _, err = moeut("run", "--out", str(tmp_path / "out"), "--quiet")
    assert code == 0
    assert "pip install 'moeut[plot]'" in err
    assert names(tmp_path / "out") == {"tables", "index.html", ANALYSIS}


def test_a_failure_leaves_nothing_half_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moeut.experiments.analysis.figures", interrupt)
    plan = AnalysisPlan(reading=CPU, texts=(folder / "text.txt",))
    with pytest.raises(KeyboardInterrupt):
        analyse([str(folder / "run")], plan, tmp_path / "out", QUIET)
    assert names(tmp_path) == set()
    monkeypatch.undo()
    analyse([str(folder / "run")], plan, tmp_path / "out", QUIET)
    before = sha256(tmp_path / "out" / ANALYSIS)
    monkeypatch.setattr("moeut.experiments.analysis.figures", interrupt)
    with pytest.raises(KeyboardInterrupt):
        analyse([str(folder / "run")], plan, tmp_path / "out", QUIET)
    assert names(tmp_path) == {"out"}
    assert sha256(tmp_path / "out" / ANALYSIS) == before


def test_a_terminated_process_leaves_what_there_was(folder: Path, tmp_path: Path):
    """It is stopped as it draws; whatever is left has a hidden name, and the next analysis clears it away."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moeut", "analyse", "run", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 120
    partial = tmp_path / ".out.partial" / "figures"
    while time.monotonic() < deadline and not (partial.exists() and any(partial.iterdir())):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not out.exists()
    analyse([str(folder / "run")], AnalysisPlan(reading=CPU), out, QUIET)
    assert names(tmp_path) == {"out"}
