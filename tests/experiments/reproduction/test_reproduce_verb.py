"""Does `moeut reproduce` list, plan, command and refuse as it should?"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moeut.cli import build_parser, main
from moeut.experiments.reproduction.catalogue import studies
from moeut.experiments.reproduction.scales import PAPER, TINY

UNKNOWN_RUN = "--only: no run of this study is called 'x'; see --dry-run for their names"


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A command typed in an empty folder, which stays so: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["reproduce", *arguments])
        assert list(tmp_path.iterdir()) == []
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_the_list(typed):
    code, out, _ = typed("--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [study.name for study in studies(TINY)]
    assert json.loads(typed("--list", "--json")[1])["norms"] == "figure 8"


def test_a_dry_run_adds_up(typed):
    code, out, _ = typed("norms", "--seeds", "3", "--dry-run", "--json")
    assert code == 0
    facts = json.loads(out)
    assert [run["run"] for run in facts["runs"]][:4] == [
        "moeut-200k-stdlib-lr0.004-seed0", "moeut-pre-200k-stdlib-lr0.004-seed0",
        "moeut-post-200k-stdlib-lr0.004-seed0", "moeut-200k-stdlib-lr0.004-seed1",
    ]  # fmt: skip
    assert len(facts["runs"]) == 9
    assert facts["tokens"] == 9 * 300 * 1024
    assert facts["macs"] == sum(run["macs"] for run in facts["runs"])
    lines = typed("norms", "--seeds", "3", "--dry-run")[1].splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("9 runs")


def test_every_study_of_the_paper_can_be_planned(typed):
    for study in studies(PAPER):
        code, out, _ = typed(study.name, "--scale", "paper", "--dry-run", "--json", "--device", "cpu")
        assert code == 0
        tokens = {run["tokens"] for run in json.loads(out)["runs"]}
        assert tokens == ({20 * 65_536} if study.name == "time" else {6_553_600_000})


def test_commands_for_a_job_array(typed):
    code, out, _ = typed(
        "scaling", "--commands", "--data", "my texts/prose.txt", "--seeds", "2", "--learning-rates", "1e-3",
        "--out", "o", "--processes", "2", "--task-data", "items",
    )  # fmt: skip
    assert code == 0
    options = [build_parser().parse_args(shlex.split(line)[1:]) for line in out.splitlines()]
    assert len(options) == 12
    assert {one.only[0] for one in options} >= {"moeut-200k-prose-lr0.001-seed0", "sigma-moe-500k-prose-lr0.001-seed1"}
    assert all(len(one.only) == 1 for one in options)
    for one in options:
        assert (one.study, one.data, one.seeds, one.learning_rates) == ("scaling", "my texts/prose.txt", 2, [0.001])
        assert (one.out, one.processes, str(one.task_data), one.scale) == ("o", 2, "items", "tiny")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name a figure or table; --list says which there are"),
        (["norm"], "'norm' is no study; did you mean norms?"),
        (["norms", "--scale", "large"], "--scale: 'large' is none of tiny, small, paper"),
        (["norms", "--only", "x", "--dry-run"], UNKNOWN_RUN),
        (["norms", "--only", "x"], UNKNOWN_RUN),
        (["norms", "--model.norm", "pre"], "--model.norm=pre: unknown argument; see --help"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(typed, arguments: list[str], complaint: str):
    assert typed(*arguments) == (2, "", f"moeut: {complaint}\n")


def text(folder: Path) -> str:
    """A text of many documents, as a file."""
    file = folder / "text.jsonl"
    documents = (" ".join(str(number * step) for step in range(40)) for number in range(300))
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_goes_on(tmp_path: Path, number: signal.Signals):
    """In processes of its own: SIGTERM to it alone, Ctrl-C to it and its child, as a terminal does."""
    command = [
        sys.executable, "-m", "moeut", "reproduce", "norms", "--only", "moeut-200k-*", "--data", text(tmp_path),
        "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    run = tmp_path / "out" / "runs" / "moeut-200k-text-lr0.004-seed0"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not list(run.glob("checkpoints/step-*")):
            assert process.poll() is None
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    assert "moeut: interrupted and saved; the same command goes on from here" in err
    assert list((tmp_path / "out" / "claims").iterdir()) == []
    assert list(run.glob("checkpoints/step-*"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on after step" in again.stderr
    assert "norms-text/report.md: 1 of 3 runs are finished" in again.stdout
    report = (tmp_path / "out" / "norms-text" / "report.md").read_text()
    assert "- `moeut-pre-200k-text-lr0.004-seed0`: not run yet" in report
