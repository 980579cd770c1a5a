"""What of a run survives a stop? Folders that hold the model and all that training needs to go on to the last bit.

    RUN/checkpoints/step-00000500/   a model folder (`moeut.model.folder`), and
        training/optimizer.safetensors   the optimizer's state, `PARAMETER/exp_avg` and so on
        training/state.json              step, random state, what the reporter had added up
        checksums.json                   SHA-256 of every file above
    RUN/final → the last checkpoint

A checkpoint is written under a temporary name, flushed and renamed, so that what bears a step's name was once whole;
checksums find what was damaged later. Nothing is read with pickle.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from moeut.files import flush, sha256
from moeut.model.folder import (
    WEIGHTS,
    load_weights,
    read_json,
    read_tensors,
    save_model,
    write_json,
    write_tensors,
)
from moeut.model.language_model import LanguageModel
from moeut.training.random_state import random_state, set_random_state

CHECKSUMS = "checksums.json"
OPTIMIZER = "training/optimizer.safetensors"
STATE = "training/state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: steps done, and what its reporter had added up by then."""

    step: int = 0
    report: dict[str, float] = field(default_factory=dict)


class Checkpointer:
    """Saves one run's model and optimizer, keeps the newest `keep` checkpoints, and restores the newest whole one.

    run: the run's folder. tokenizer_folder, end_of_document_id: see `moeut.model.folder.save_model`. notice: gets a
    line for whatever a user should know, such as a damaged checkpoint.
    """

    def __init__(
        self, run: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, *, keep: int,
        notice: Callable[[str], None], tokenizer_folder: Path | None = None, end_of_document_id: int = 0,
    ) -> None:  # fmt: skip
        self.run, self.model, self.optimizer = run, model, optimizer
        self.keep, self.notice = keep, notice
        self.tokenizer_folder, self.end_of_document_id = tokenizer_folder, end_of_document_id

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint, point `final` at it, and remove those that are older than the newest `keep`.

        Raises OSError where it cannot be written; older checkpoints are then untouched.
        """
        folder = self.run / "checkpoints" / f"step-{state.step:08d}"
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True)
        try:
            self._write(partial, state)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        flush(folder.parent)
        _point(self.run / "final", folder)
        for old in checkpoints(self.run)[: -self.keep]:
            shutil.rmtree(old)
        return folder

    def restore(self) -> TrainingState:
        """Bring model, optimizer and random state to where the newest whole checkpoint was; step 0 if there is none.

        What an interrupted save left is removed; damaged checkpoints are noticed and set aside. Raises ValueError if
        all are damaged, or if the checkpoint is that of another model.
        """
        remove_partial_checkpoints(self.run)
        folder = newest_complete(self.run, self.notice)
        if folder is None:
            return TrainingState()
        load_weights(self.model, folder)
        self._load_optimizer(folder)
        content = read_json(folder / STATE)
        set_random_state(content.pop("random"))
        return TrainingState(**content)

    def _write(self, folder: Path, state: TrainingState) -> None:
        save_model(
            self.model, folder, tokenizer_folder=self.tokenizer_folder, end_of_document_id=self.end_of_document_id
        )
        (folder / "training").mkdir()
        tensors = {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        write_tensors(folder / OPTIMIZER, tensors)
        write_json(folder / STATE, {**asdict(state), "random": random_state()})
        write_json(folder / CHECKSUMS, {name: sha256(folder / name) for name in sorted(_files(folder))})

    def _load_optimizer(self, folder: Path) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for path, value in read_tensors(folder / OPTIMIZER).items():
            name, key = path.rsplit("/", 1)
            # A copy, because what was read is a view of the file.
            self.optimizer.state[parameters[name]][key] = value.clone().to(parameters[name].device)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run that bear a step's name, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit())


def newest_complete(run: Path, notice: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every file is as it was written; None if the run has no checkpoints.

    Damaged ones are named to `notice` and renamed to `NAME.damaged`, so that nothing takes them for the newest again.
    Raises ValueError if there are only damaged ones.
    """
    candidates = checkpoints(run)
    for folder in reversed(candidates):
        problem = damage(folder)
        if problem is None:
            return folder
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        notice(f"{folder}: damaged ({problem}); set aside as {aside.name}, going on from the one before")
    if candidates:
        raise ValueError(f"{run}: every checkpoint is damaged; start again in another run folder")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        checksums: dict[str, Any] = read_json(checkpoint / CHECKSUMS)
    except ValueError:
        return f"{CHECKSUMS} is missing or unreadable"
    for name in {WEIGHTS, OPTIMIZER, STATE, *checksums}:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if checksums.get(name) != sha256(checkpoint / name):
            return f"{name} has changed since it was written"
    return None


def remove_partial_checkpoints(run: Path) -> None:
    """Remove what saves that were cut short have left."""
    for partial in (run / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(partial)


def _point(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`, in one step."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    os.replace(temporary, link)


def _files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
