"""How does a folder appear all at once?  It is written under a hidden name beside its own, then renamed.

What bears the final name is always whole: a process that ends early, at any moment, leaves at most `.NAME.partial`, in
which the next one may go on, or, between the two renames of a replacement, the former folder as `.NAME.former`, which
the next one puts back.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeut.files import flush, held_by_one_process


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder in which to prepare `folder`, held by one process at a time; it stays unless published or empty.

    Raises:
        ValueError: another process holds it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with held_by_one_process(partial, folder):
        if not partial.exists():
            raise ValueError(f"{folder}: another process has just written it; ask again")
        try:
            yield partial
        finally:
            if partial.exists() and not any(partial.iterdir()):
                partial.rmdir()


def clear(partial: Path) -> None:
    """Removes what lies in a workplace."""
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def publish(partial: Path, folder: Path) -> None:
    """Gives a finished folder its name, in place of the one that may bear it."""
    flush(partial)
    former = _former(folder)
    if folder.exists():
        os.rename(folder, former)
    os.rename(partial, folder)
    flush(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def is_unsettled(folder: Path) -> bool:
    """Whether a replacement was cut short, or goes on at this moment."""
    return _former(folder).exists()


def recover(folder: Path) -> None:
    """Ends a replacement that was cut short between its two renames."""
    former = _former(folder)
    if former.exists() and not folder.exists():
        os.rename(former, folder)
    shutil.rmtree(former, ignore_errors=True)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")
