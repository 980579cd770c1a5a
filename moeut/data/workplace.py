"""How does a folder appear all at once?  It is written under a hidden name beside its own, then renamed.

What bears the final name is always whole: a process killed at any moment leaves at most `.NAME.partial`, which the
next one clears, or, between the two renames of a replacement, the former folder as `.NAME.former`, which the next one
puts back.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeut.files import flush, held_by_one_process


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """An empty folder in which to prepare `folder`, held by one process at a time; removed unless published.

    Raises:
        ValueError: another process holds it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with held_by_one_process(partial, folder):
        for entry in partial.iterdir():
            entry.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, folder: Path) -> None:
    """Gives a finished folder its name, in place of the one that may bear it."""
    flush(partial)
    former = _former(folder)
    if folder.exists():
        os.rename(folder, former)
    os.rename(partial, folder)
    flush(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def recover(folder: Path) -> None:
    """Ends a replacement that was cut short between its two renames."""
    former = _former(folder)
    if former.exists() and not folder.exists():
        os.rename(former, folder)
    shutil.rmtree(former, ignore_errors=True)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")
