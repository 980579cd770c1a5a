"""Is every run carried out once, whoever takes part, whatever dies, and whatever one of them does wrong?"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
from small_study import MODEL, long_study, prepared, small_study

from moeut.config import RunConfig
from moeut.experiments.reproduction.execution import (
    FailedRunError,
    Manner,
    carry_out,
    run_child,
    train_command,
)
from moeut.experiments.reproduction.results import measured_file, numbers_of
from moeut.experiments.reproduction.runs import Effort, Run, wanted
from moeut.experiments.reproduction.study import Study
from moeut.training.progress import Progress
from moeut.trees import read_yaml
from moeut.validation import validate

PROGRAM = Path(__file__).with_name("carrying_out.py")
QUIET = Progress(quiet=True)


def runs_of(study: Study) -> list[Run]:
    return list(wanted(study, Effort(), lambda run: None))


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_runs_are_carried_out_measured_and_not_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """One of the three cannot be trained; it does not stop the others."""
    measured: list[Path] = []

    def measure(run: Path) -> dict[str, float]:
        measured.append(run)
        assert (run / "final").is_dir()
        return {"size": 1.5}

    study = small_study(prepared(tmp_path))
    wrong = replace(study.entrants[0], name="wrong", model=replace(MODEL, vocab_size=100))
    study = replace(study, entrants=[wrong, *study.entrants], measure=lambda means: measure)
    runs, manner = runs_of(study), Manner(out=tmp_path / "out", device="cpu", quiet=True)
    outcome = carry_out(study, lambda: runs, manner, measure, QUIET)
    assert outcome.taken == {}
    assert list(outcome.failed) == [runs[0].name]
    assert "ended with exit code 2" in outcome.failed[runs[0].name]
    assert "more than model.vocab_size 100" in capfd.readouterr().err
    assert measured == [run.folder(manner.out) for run in runs[1:]]
    for run in runs[1:]:
        config = validate(RunConfig, read_yaml(run.folder(manner.out) / "config.yaml"))
        assert replace(config, model=replace(config.model, expert_backend="auto")) == run.config(manner.out)
        numbers = numbers_of(run, study, manner.out)
        assert numbers is not None
        assert numbers["size"] == 1.5
    files = {path: path.stat().st_mtime_ns for path in manner.out.rglob("*") if path.is_file()}
    carry_out(study, lambda: runs[1:], manner, measure, QUIET)
    assert len(measured) == 2
    assert {path: path.stat().st_mtime_ns for path in manner.out.rglob("*") if path.is_file()} == files

    # Of one only the record is left. It counts as long as all that is asked of it is known.
    folder, measurement = runs[1].folder(manner.out), measured_file(runs[1].folder(manner.out), study)
    shutil.rmtree(folder / "checkpoints")
    assert carry_out(study, lambda: runs[1:], manner, measure, QUIET) == ({}, {}, {})
    measurement.unlink()
    record = (folder / "metrics.jsonl").read_bytes()
    outcome = carry_out(study, lambda: runs[1:], manner, measure, QUIET)
    assert outcome.failed[runs[1].name] == (
        f"finished, but of its model only the record is left; remove {folder}, and it is trained again"
    )
    assert (folder / "metrics.jsonl").read_bytes() == record


def test_two_processes_share_the_runs(tmp_path: Path):
    data, out = prepared(tmp_path), tmp_path / "out"
    runs = runs_of(small_study(data))
    with start(data, out) as one, start(data, out) as other:
        said = [process.communicate()[1] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    begun = [run.name for words in said for run in runs if f"{run.name}: about" in words]
    assert sorted(begun) == sorted(run.name for run in runs)
    assert all(numbers_of(run, small_study(data), out) is not None for run in runs)


def test_what_was_killed_is_said_and_taken_over(tmp_path: Path):
    data, out, steps = prepared(tmp_path), tmp_path / "out", 200
    study = long_study(data, steps)
    run, _ = runs_of(study)
    with start(data, out, steps) as killed:
        while not list(run.folder(out).glob("checkpoints/step-*")):
            assert killed.poll() is None
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    manner = Manner(out=out, device="cpu", quiet=True)
    left = carry_out(study, lambda: [run], manner, None, QUIET)
    assert left.failed == {}
    assert f"process {killed.pid} " in left.taken[run.name]
    assert left.taken[run.name].endswith("has ended; --takeover goes on in its place")
    assert carry_out(study, lambda: [run], replace(manner, takeover=True), None, QUIET) == ({}, {}, {})
    assert numbers_of(run, study, out) is not None
    lines = [json.loads(line) for line in (run.folder(out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, steps + 1))


def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, time; {code}"]


def test_how_a_child_ends(tmp_path: Path):
    lock = os.open(tmp_path, os.O_RDONLY)
    run_child(child(f"os.fstat({lock})"), lock)  # an OSError if it has not inherited it
    with pytest.raises(FailedRunError, match="exit code 3"):
        run_child(child("exit(3)"), lock)
    with pytest.raises(FailedRunError, match="SIGKILL; "):
        run_child(child("os.kill(os.getpid(), 9)"), lock)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_child(child("exit(130)"), lock)
    assert stopped.value.args == (signal.SIGINT,)
    os.close(lock)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_child_to_save(number: signal.Signals, tmp_path: Path):
    """SIGTERM is passed on; Ctrl-C is only noted, because a terminal sends it to the child as well."""
    lock, saved, begun = os.open(tmp_path, os.O_RDONLY), tmp_path / "saved", tmp_path / "begun"
    save = f"open({str(saved)!r}, 'w').close(); os._exit(143)"
    waiting = (
        f"signal.signal(15, lambda *_: exec({save!r})); signal.signal(2, 15 and signal.SIG_IGN); "
        f"open({str(begun)!r}, 'w').close(); time.sleep(60 if {number} == 15 else 0.5); exec({save!r})"
    )

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = Timer(0, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_child(child(waiting), lock)
    finally:
        signal.signal(signal.SIGINT, former)
        timer.join()
        os.close(lock)
    assert stopped.value.args == (number,)
    assert saved.exists()


def test_several_processes_train_a_run_by_torchrun(tmp_path: Path):
    run = runs_of(small_study(tmp_path))[0]
    command = train_command(run, Manner(out=tmp_path, processes=2))
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert command[6:9] == ["-m", "moeut", "train"]
    assert train_command(run, Manner(out=tmp_path))[1:4] == command[6:9]
