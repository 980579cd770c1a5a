"""How is something written so that it is never half there? Temporary names, renaming, checksums, one writer."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write; at the end it is flushed to the disk and takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """The checksum of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def held_by_one_process(folder: Path, name: Path | None = None) -> Iterator[int]:
    """While inside, no other process holds this folder. Raises ValueError, naming `name` or the folder, if one does.

    The lock lies on the folder itself and ends with its process, so that none is left behind by a kill. It is the open
    descriptor that is given: a child process that inherits it holds the folder too.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name or folder}: another process is writing it; wait until it is done") from None
        yield descriptor
    finally:
        os.close(descriptor)
