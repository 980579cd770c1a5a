"""Do two ranks compute what one does? torchrun starts them once for all the checks in `ranked_checks.py`."""

from pathlib import Path

import pytest
import torch
from tiny_command import tiny_command
from tiny_run import metrics
from torchrun import torchrun

from moeut.cli import main
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


def passed(checks: list[str], results: Path) -> tuple[list[str], str]:
    """Which checks two ranks passed, and what they said."""
    process = torchrun(PROGRAM, results, *checks)
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


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """The same command with torchrun in front gives the same numbers, by each way of sharing a model."""
    command = tiny_command(tmp_path)
    assert main([*command, "--run", str(tmp_path / "one")]) == 0
    for parallel in ("ddp", "fsdp"):
        # After a bare -- torchrun reads no options: it would take --run for an abbreviation of its own.
        process = torchrun("-m", "moeut", "--", *command, "--parallel", parallel, "--run", tmp_path / parallel)
        assert process.returncode == 0, process.stderr
        assert held_out(tmp_path / parallel) == pytest.approx(held_out(tmp_path / "one"), rel=1e-4)
        process = torchrun("-m", "moeut", "--", *command, "--resume", "never", "--run", tmp_path / parallel)
        said = [line for line in process.stderr.splitlines() if line.startswith("moeut: ")]
        assert len(said) == 1, "said once, by the main rank"
        assert "has checkpoints already" in said[0]


def held_out(run: Path) -> float:
    return metrics(run)[-1]["cross_entropy"]
