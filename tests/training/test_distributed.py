"""Do two ranks compute what one does? torchrun starts them once for all the checks in `ranked_checks.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_command import tiny_command
from tiny_run import final_state, metrics
from torchrun import torchrun, torchrun_process

from moeut.cli import main
from moeut.data.tokens import open_prepared
from moeut.training.distributed import Ranks, pick_device, ranks

PROGRAM = Path(__file__).with_name("ranked_checks.py")
RUNS = Path(__file__).with_name("ranked_runs.py")
CHECKS = [
    "ranks_speak",
    "impossible_divisions_are_refused",
    "values_are_spread",
    "gradients_equal_one_ranks",
    "gradients_equal_one_ranks_in_every_row",
    "losses_over_the_batch_are_means_over_ranks",
    "collectives_are_few",
    "collectives_do_not_depend_on_the_data",
    "evaluation_leaves_nothing_gathered",
    "routers_see_float32",
]
SLOW_CHECKS = ["gradients_equal_one_ranks_in_every_variant", "compiled_equals_eager"]


def passed(checks: list[str], results: Path, processes: int = 2) -> tuple[list[str], str]:
    """Which checks so many ranks passed, and what they said."""
    process = torchrun(PROGRAM, results, *checks, processes=processes)
    done = results.read_text().splitlines() if results.exists() else []
    return done, process.stderr[-6000:]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return passed(CHECKS, tmp_path_factory.mktemp("ranks") / "results")


@pytest.mark.parametrize("check", CHECKS)
def test_on_two_ranks(outcome, check):
    done, said = outcome
    assert check in done, said


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW_CHECKS)
def test_on_two_ranks_slowly(tmp_path, check):
    done, said = passed([check], tmp_path / "results")
    assert done == [check], said


@pytest.mark.slow
def test_on_four_ranks(tmp_path):
    """Two replicas of two parts each: HSDP with both of its dimensions."""
    checks = ["values_are_spread", "gradients_equal_one_ranks"]
    assert passed(checks, tmp_path / "results", processes=4)[0] == checks


@pytest.mark.slow
def test_trouble_on_one_rank_ends_both(tmp_path):
    process = torchrun(RUNS, tmp_path, "alone_in_trouble")
    assert process.returncode != 0
    said = process.stderr.splitlines()
    assert "rank 1: something is wrong here" in said
    # Its end may reach the other one as a lost connection, or as torchrun's signal.
    assert all("rank 0: another process is gone" in line for line in said if line.startswith("rank 0"))
    assert not [line for line in said if line.startswith("[rank")], "a traceback of ours"


def test_one_process_needs_no_group():
    with ranks("cpu") as own:
        assert own == Ranks(0, 1, torch.device("cpu"))
        assert not torch.distributed.is_initialized()
    assert own.is_main
    tensor = torch.ones(2)
    assert own.sum(tensor) is tensor
    assert own.any(True)
    assert own.gather("alone") == ["alone"]
    assert own.on_main(lambda: 3) == 3


def test_devices_that_are_not_there(monkeypatch):
    assert pick_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match="--device: 'gpu' cannot be used here"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="under torchrun cpu, cuda or auto, not 'cuda:0'"):
        pick_device("cuda:0", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 of this machine has no GPU: there are 1; start as many"):
        pick_device("auto", 1)


# The command line


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(tmp_path):
    """With torchrun in front, by each way of sharing a model; what there is to say is said once."""
    command = tiny_command(tmp_path)
    assert main([*command, "--run", str(tmp_path / "one")]) == 0
    for parallel in ("ddp", "fsdp"):
        run = tmp_path / parallel
        process = torchrun("-m", "moeut", *command, "--parallel", parallel, "--run-folder", run)
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[0] == f"{run}: 4 of 4 steps"
        assert len(process.stdout.splitlines()) == 2
        assert held_out(run) == pytest.approx(held_out(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
def test_more_ranks_than_blocks_are_refused(tmp_path):
    tokens = len(open_prepared(data_of(command := tiny_command(tmp_path))).train)
    length = tokens * 2 // 3
    settings = {"context_length": length, "batch_tokens": 2 * length}
    words = [word for name, value in settings.items() for word in (f"--training.{name}", str(value))]
    process = torchrun("-m", "moeut", *command, *words, "--run-folder", tmp_path / "run")
    assert process.returncode != 0
    [line] = mistakes(process.stderr)
    assert "training.context_length: " in line
    assert f"has 1 sequences of {length:,} tokens, fewer than the 2 processes" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's processes in /proc")
def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_end(tmp_path):
    """SIGTERM to torchrun, then SIGKILL to one rank, then Ctrl-C; to the last bit."""
    command = tiny_command(tmp_path, num_steps=240, save_every_steps=40, report_every_steps=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert torchrun("-m", "moeut", *command, "--run-folder", whole).returncode == 0
    for step, stop in (30, terminate), (100, kill_one_rank), (170, interrupt):
        with torchrun_process("-m", "moeut", *command, "--run-folder", parts) as process:
            said = stop_at(step, process, parts, stop)
        assert process.returncode != 0
        told = [line for line in said.splitlines() if "interrupted and saved" in line]
        assert len(told) == (0 if stop is kill_one_rank else 1), said
        done = json.loads((parts / "final/training/state.json").read_text())["step"]
        assert done < 240
        assert (done % 40 == 0) == (stop is kill_one_rank) or done >= step
    assert torchrun("-m", "moeut", *command, "--run-folder", parts).returncode == 0
    assert metrics(parts) == metrics(whole)
    assert final_state(parts) == final_state(whole)


def stop_at(step: int, process: subprocess.Popen[str], run: Path, stop: Callable[[int], None]) -> str:
    """Call `stop` with torchrun's process when a run has come to a step; what was said on stderr until the end."""
    deadline = time.monotonic() + 300
    while not (path := run / "metrics.jsonl").exists() or metrics(run)[-1:] == [] or metrics(run)[-1]["step"] < step:
        assert time.monotonic() < deadline, path
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    stop(process.pid)
    return process.communicate(timeout=120)[1]


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def kill_one_rank(pid: int) -> None:
    os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1]), signal.SIGKILL)


def interrupt(pid: int) -> None:
    os.kill(pid, signal.SIGINT)


def mistakes(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("moeut: ")]


def data_of(command: list[str]) -> str:
    return command[command.index("--data") + 1]


def held_out(run: Path) -> float:
    return metrics(run)[-1]["cross_entropy"]
