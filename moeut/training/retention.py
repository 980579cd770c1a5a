"""Which checkpoints does a run have, which of them are whole, and which are kept?

A checkpoint appears under its step's name when all of it is written, so that what bears such a name was once whole;
checksums find what was damaged later. Only the main rank calls these functions.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moeut.files import sha256
from moeut.model.tensor_files import WEIGHTS, read_json, write_json

CHECKSUMS = "checksums.json"
OPTIMIZER = "training/optimizer.safetensors"
STATE = "training/state.json"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of this step."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run that bear a step's name, oldest first."""
    numbered = {path: path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")}
    return sorted((path for path, step in numbered.items() if step.isdigit()), key=lambda path: int(numbered[path]))


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


def write_checksums(checkpoint: Path) -> None:
    """Write down the checksum of every file of a checkpoint that is complete."""
    names = sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    write_json(checkpoint / CHECKSUMS, {name: sha256(checkpoint / name) for name in names})


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


def prune(run: Path, keep: int, best: int | None) -> None:
    """Remove what is neither among the newest `keep` checkpoints nor that of the step `best`."""
    folders = checkpoints(run)
    for folder in folders[:-keep]:
        if best is None or folder != checkpoint_folder(run, best):
            shutil.rmtree(folder)


def point(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`, in one step."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    os.replace(temporary, link)
