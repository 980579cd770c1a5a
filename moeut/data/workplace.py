"""How does a folder appear all at once?  It is written under a hidden name beside its own, then renamed.

What bears the final name is always whole: a process killed at any moment leaves at most `.NAME.partial`, which the
next one clears, or, between the two renames of a replacement, the former folder as `.NAME.former`, which the next one
puts back.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """An empty folder in which to prepare `folder`, held by one process at a time; removed unless published.

    Raises:
        ValueError: another process holds it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    # The lock lies on the folder itself and ends with its process, so that none is left behind by a kill.
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is writing it; wait until it is done") from error
        for entry in partial.iterdir():
            entry.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def publish(partial: Path, folder: Path) -> None:
    """Gives a finished folder its name, in place of the one that may bear it."""
    _flush(partial)
    former = _former(folder)
    if folder.exists():
        os.rename(folder, former)
    os.rename(partial, folder)
    _flush(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def recover(folder: Path) -> None:
    """Ends a replacement that was cut short between its two renames."""
    former = _former(folder)
    if former.exists() and not folder.exists():
        os.rename(former, folder)
    shutil.rmtree(former, ignore_errors=True)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
