"""Which files of this machine hold text?  Those named, those of a folder by their suffixes, Python's own library."""

import glob
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from moeut.data.documents import Notice
from moeut.data.formats import READABLE_SUFFIXES, form
from moeut.files import sha256

STANDARD_LIBRARY_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "idlelib", "pydoc_data", "site-packages", "__pycache__"}
)


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine: `path` to open, `name` as results show it, and the source it was `given` as."""

    path: Path
    name: str
    given: str

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def stamp(self) -> str:
        """Size and time."""
        status = self.path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def identity(self) -> str:
        """The checksum."""
        return sha256(self.path)

    def open(self, notice: Notice) -> IO[bytes]:
        """The file, opened."""
        return self.path.open("rb")


def find_files(paths: Iterable[str | Path]) -> list[LocalFile]:
    """The files behind `paths`: a file stands for itself, whatever its suffix; a folder for its text and data.

    Folders are searched recursively in sorted order; hidden entries and symbolic links to folders are passed over. A
    folder that `datasets` saved stands for its Arrow files. A glob stands for the files that match it, sorted.

    Raises:
        ValueError: a path is missing, a named file is empty, or a folder holds no text.
    """
    return [file for path in paths for file in _files_behind(Path(path))]


def _files_behind(path: Path) -> list[LocalFile]:
    if path.is_dir():
        return [LocalFile(entry, entry.as_posix(), str(path)) for entry in _files_in(path)]
    if path.exists():
        if path.is_file() and path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty")
        return [LocalFile(path, path.as_posix(), str(path))]
    matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
    found = [LocalFile(match, match.as_posix(), str(path)) for match in matches if _holds_something(match)]
    if not found:
        raise ValueError(f"{path}: no {'such file or folder' if not glob.has_magic(str(path)) else 'file matches'}")
    return found


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder that hold text, by their suffixes, or as `datasets` lists them."""
    saved = _saved_by_datasets(folder)
    if saved is not None:
        return saved
    found = [entry for entry in _walk(folder) if _may_hold_text(entry) and _holds_something(entry)]
    if not found:
        raise ValueError(f"{folder}: no text files in this folder; name them, or give them a suffix such as .txt")
    return found


def _may_hold_text(path: Path) -> bool:
    # Alone, .json is rather a setting among source code; packed, it is how the Hub's large corpora are shipped.
    kind = form(path)
    return kind in READABLE_SUFFIXES and path.suffix != ".json"


def _saved_by_datasets(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in their order; None if it did not."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        raise ValueError(f"{folder}: holds the splits {', '.join(splits)}; name the folder of one, or of each")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = json.loads((folder / "state.json").read_bytes())
    return [folder / entry["filename"] for entry in state["_data_files"]]


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def standard_library() -> list[LocalFile]:
    """The Python source of the standard library that runs this program: about 9 MB of text that is always at hand.

    Left out: tests, encodings, idlelib, pydoc_data and whatever is not UTF-8. It differs by Python version and build.

    Raises:
        ValueError: this Python came without its library's source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    given = f"the standard library of Python {platform.python_version()}"
    files = [
        LocalFile(path, path.relative_to(root).as_posix(), given)
        for path in _walk(root, STANDARD_LIBRARY_LEFT_OUT)
        if path.suffix == ".py" and _is_text(path)
    ]
    if not files:
        raise ValueError("this Python came without the source of its standard library; name text files instead")
    return files


def _walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below `folder`, sorted, without hidden ones and those in folders of the names in `left_out`."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left_out)
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_bytes().decode())
    except UnicodeDecodeError:
        return False
