"""Runs on several ranks that are stopped, killed, damaged, and go on; torchrun's processes carry them out together.

`torchrun --nproc-per-node N ranked_runs.py FOLDER RUN…`: each function of this file that is named trains in FOLDER.
Numbers are float64, because ranks compute in other shapes than one does.
"""

import dataclasses
import itertools
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import final_state, metrics, run_training, tiny_model, tiny_training

from moeut.training.distributed import Ranks, ranks
from moeut.training.loop import TrainingResult
from moeut.training.retention import checkpoint_folder, checkpoints

NUM_STEPS, STOP_AT = 12, 5
# Eight sequences a step; on two ranks two micro-batches of two.
TRAINING = tiny_training(num_steps=NUM_STEPS, batch_tokens=96, micro_batch_size=2, keep_checkpoints=3)
WITH_DROPOUT = tiny_model(hidden_dropout=0.1)
TIED = tiny_model(tie_word_embeddings=True)
FSDP: dict[str, Any] = {"parallel": "fsdp"}


def stopping(own: Ranks, at: int) -> Callable[[int], object]:
    """Has one rank, not the main one where there are several, get SIGTERM before it has done `at` steps."""

    def stop(step: int) -> None:
        if step == at - 1 and own.rank == own.world_size - 1:
            signal.raise_signal(signal.SIGTERM)

    return stop


def train(own: Ranks, run: Path, *settings: Any, stop_at: int | None = None, **way: Any) -> TrainingResult:
    before_step = stopping(own, stop_at) if stop_at else lambda step: None
    return run_training(run, TRAINING, *settings, before_step=before_step, ranks=own, **way)


def whole(own: Ranks, folder: Path) -> None:
    """A run that nobody disturbs."""
    train(own, folder / "whole", TIED)


def stopped(own: Ranks, folder: Path) -> None:
    """A run that stops half-way."""
    assert train(own, folder / "stopped", TIED, stop_at=STOP_AT).step == STOP_AT


def stopped_on_several(own: Ranks, folder: Path) -> None:
    """The same by each way of sharing a model."""
    for name, way in (("ddp", {}), ("fsdp", FSDP), ("hsdp", FSDP | {"replicas": 2})):
        result = train(own, folder / f"stopped-{name}", TIED, stop_at=STOP_AT, **way)
        assert (result.step, result.interrupted_by) == (STOP_AT, signal.SIGTERM)


def gone_on(own: Ranks, folder: Path) -> None:
    """What one rank began ends here, and what two began in one way ends in another."""
    for name, way in (("ddp", FSDP), ("fsdp", {})):
        main_copies(own, folder / "stopped", folder / f"gone-on-{name}")
        assert train(own, folder / f"gone-on-{name}", TIED, **way).step == NUM_STEPS
        main_copies(own, folder / f"stopped-{name}", folder / f"changed-{name}")
        assert train(own, folder / f"changed-{name}", TIED, **way).step == NUM_STEPS


def exact(own: Ranks, folder: Path) -> None:
    """On as many ranks, a run with dropout goes on to the last bit; ranks draw different random numbers."""
    for name, way in (("ddp", {}), ("fsdp", FSDP)):
        train(own, folder / f"{name}-whole", WITH_DROPOUT, **way)
        train(own, folder / f"{name}-parts", WITH_DROPOUT, stop_at=STOP_AT, **way)
        train(own, folder / f"{name}-parts", WITH_DROPOUT, **way)
        own.on_main(lambda name=name: compare(folder / f"{name}-whole", folder / f"{name}-parts"))


def compare(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    assert final_state(one) == final_state(other)
    random_states = final_state(one)[2]["random"]
    assert random_states[0]["torch"] != random_states[1]["torch"]


def damaged(own: Ranks, folder: Path) -> None:
    """The main rank finds the damage, and every rank goes on from the checkpoint before."""
    run = folder / "damaged"
    main_copies(own, folder / "ddp-whole", run)

    def damage() -> None:
        weights = checkpoint_folder(run, NUM_STEPS) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    own.on_main(damage)
    steps: list[int] = []
    run_training(run, TRAINING, WITH_DROPOUT, before_step=steps.append, ranks=own)
    assert steps == [8, 9, 10, 11]
    own.on_main(lambda: compare(folder / "ddp-whole", run))


def unsaved(own: Ranks, folder: Path) -> None:
    """A save that fails ends every rank: the main one with the reason, the other quietly."""
    main_copies(own, folder / "stopped", folder / "unsaved")

    def occupy() -> None:
        checkpoint_folder(folder / "unsaved", 12).with_name(".step-00000006.partial").touch()

    def get_in_the_way(step: int) -> None:
        if step == STOP_AT:
            own.on_main(occupy)

    with pytest.raises(OSError if own.is_main else SystemExit, match="could not be saved" if own.is_main else "^2$"):
        run_training(folder / "unsaved", TRAINING, TIED, before_step=get_in_the_way, ranks=own)
    assert own.on_main(lambda: [path.name for path in checkpoints(folder / "unsaved")][-1]) == "step-00000005"


def main_copies(own: Ranks, source: Path, target: Path) -> None:
    own.on_main(lambda: shutil.copytree(source, target, symlinks=True) and None)


CALLS = 1_000_000
"""Moments at which a rank may die: those of about five steps and two saves."""


def killed(own: Ranks, folder: Path) -> None:
    """One of the ranks dies of SIGKILL at a moment that the number of the attempt decides, unless `live` is there."""
    attempt = own.on_main(lambda: len(list(folder.glob("attempt-*"))))
    own.on_main(lambda: (folder / f"attempt-{attempt}").touch())
    generator = random.Random(attempt)
    victim, calls_to_live = generator.randrange(own.world_size), generator.randrange(CALLS)
    calls = itertools.count()

    def count(*event: object) -> None:
        if next(calls) == calls_to_live:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_from_the_second_step_on(step: int) -> None:
        # The first one loads so much that most moments would be there.
        steps.append(step)
        if len(steps) == 2 and own.rank == victim and not (folder / "live").exists():
            sys.setprofile(count)

    steps: list[int] = []
    training = dataclasses.replace(TRAINING, num_steps=30, save_every_steps=2)
    run_training(
        folder / "killed", training, WITH_DROPOUT, before_step=count_from_the_second_step_on, ranks=own, **FSDP
    )  # fmt: skip
    sys.setprofile(None)


def alone_in_trouble(own: Ranks, folder: Path) -> None:
    """What goes wrong on one rank ends all of them; it is said by that rank, and the others say that it is gone."""

    def fail(step: int) -> None:
        if step == 2 and own.rank == 1:
            raise ValueError("something is wrong here")

    run_training(folder / "trouble", TRAINING, TIED, before_step=fail, ranks=own)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_default_dtype(torch.float64)
    try:
        with ranks("cpu") as own:
            for name in sys.argv[2:]:
                globals()[name](own, Path(sys.argv[1]))
                if own.is_main:
                    with (Path(sys.argv[1]) / "results").open("a") as file:
                        file.write(f"{name}\n")
    except (ValueError, OSError) as error:  # as the command line does
        sys.exit(str(error))
