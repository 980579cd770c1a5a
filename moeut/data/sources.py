"""Where does text come from?  Files and folders on this machine, read as a stream of documents.

A text file is one document, a line of a `.jsonl` file is one document, and a document longer than `DOCUMENT_BYTES` is
handed on in parts, so that no single document decides how large the held-out part becomes.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import platform
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DOCUMENT_BYTES = 2**16
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
# fmt: off
TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".css", ".py",
    ".pyi", ".js", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hh", ".hpp", ".cu", ".cuh", ".java", ".kt",
    ".scala", ".rs", ".go", ".rb", ".pl", ".php", ".swift", ".m", ".hs", ".ml", ".lisp", ".el", ".clj", ".erl", ".ex",
    ".lua", ".r", ".jl", ".f90", ".pas", ".asm", ".s", ".sql", ".sh", ".ps1", ".bat", ".toml", ".yaml", ".yml",
    ".ini", ".cfg", ".cmake", ".mk", ".proto", ".vim", ".dart", ".zig", ".nim",
})
# fmt: on
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
STANDARD_LIBRARY_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "idlelib", "pydoc_data", "site-packages", "__pycache__"}
)


@dataclass(frozen=True)
class SourceFile:
    """A file to read: `path` to open, `name` as results show it, and the source it was `given` as by the user."""

    path: Path
    name: str
    given: str


@dataclass(frozen=True)
class Document:
    """A text that stands for itself, and its `source`: `file` or `file:line`, with `#2`, `#3` … for later parts."""

    text: str
    source: str


def find_files(paths: Iterable[str | Path]) -> list[SourceFile]:
    """The files behind `paths`: a file stands for itself, whatever its suffix; a folder for its text and JSON lines.

    Folders are searched recursively in sorted order; hidden entries and symbolic links to folders are passed over.

    Raises:
        ValueError: a path is missing, a named file is empty, or a folder holds no text.
    """
    return [file for path in paths for file in _files_behind(Path(path))]


def _files_behind(path: Path) -> list[SourceFile]:
    if path.is_dir():
        found = [
            SourceFile(entry, entry.as_posix(), str(path))
            for entry in _walk(path)
            if _kind(entry) in TEXT_SUFFIXES | JSON_LINES_SUFFIXES and entry.stat().st_size > 0
        ]
        if not found:
            raise ValueError(f"{path}: no text files in this folder; name them, or give them a suffix such as .txt")
        return found
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return [SourceFile(path, path.as_posix(), str(path))]


def standard_library() -> list[SourceFile]:
    """The Python source of the standard library that runs this program: about 9 MB of text that is always at hand.

    Left out: tests, encodings, idlelib, pydoc_data and whatever is not UTF-8. It differs by Python version and build.

    Raises:
        ValueError: this Python came without its library's source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    given = f"the standard library of Python {platform.python_version()}"
    files = [
        SourceFile(path, path.relative_to(root).as_posix(), given)
        for path in _walk(root, STANDARD_LIBRARY_LEFT_OUT)
        if path.suffix == ".py" and _is_text(path)
    ]
    if not files:
        raise ValueError("this Python came without the source of its standard library; name text files instead")
    return files


def read_documents(files: Iterable[SourceFile], text_column: str = "text") -> Iterator[Document]:
    """The documents of `files`, in order; those longer than `DOCUMENT_BYTES` in parts. Empty ones are passed over.

    Args:
        files: what to read; `.gz`, `.xz` and `.bz2` are unpacked on the way.
        text_column: the field of a JSON line that holds the text.

    Raises:
        ValueError: a file is not UTF-8 (names the byte), not JSON lines (names the line), has no `text_column` (names
            the columns there are) or is a damaged archive.
    """
    for file in files:
        try:
            with _open(file.path) as stream:
                if _kind(file.path) in JSON_LINES_SUFFIXES:
                    yield from _read_json_lines(stream, file.name, text_column)
                else:
                    yield from _parts(stream, file.name)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{file.name}: the archive is damaged or cut short ({error})") from error


def split_text(text: str, name: str) -> Iterator[Document]:
    """`text` in parts of at most `DOCUMENT_BYTES`, that join to it; cut at the end of a line where there is one.

    Raises:
        ValueError: the text holds half of a surrogate pair, which UTF-8 cannot say.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: half of a surrogate pair at character {error.start} of the text") from error
    return _parts(io.BytesIO(encoded), name)


def is_compressed(path: Path) -> bool:
    """Whether the size of the file says nothing of the size of its text."""
    return path.suffix.lower() in COMPRESSED


def _parts(stream: IO[bytes], name: str) -> Iterator[Document]:
    """Cuts a stream into documents, holding no more of it than one of them."""
    offset, number, buffer = 0, 1, b""
    while True:
        piece = stream.read(DOCUMENT_BYTES + 1 - len(buffer))
        buffer += piece
        if piece and len(buffer) <= DOCUMENT_BYTES:
            continue
        if not buffer:
            return
        cut = _cut(buffer) if piece else len(buffer)
        part, buffer = buffer[:cut], buffer[cut:]
        yield Document(_decode(part, name, offset), name if number == 1 else f"{name}#{number}")
        offset, number = offset + len(part), number + 1


def _cut(buffer: bytes) -> int:
    """Where to end a part: after the last line's end, or else before the character that would not fit."""
    newline = buffer.rfind(b"\n", 0, DOCUMENT_BYTES)
    if newline >= 0:
        return newline + 1
    cut = DOCUMENT_BYTES
    while cut > DOCUMENT_BYTES - 3 and buffer[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _decode(data: bytes, name: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise ValueError(f"{name}: not UTF-8 text at byte {at} ({data[error.start]:#04x}); convert the file") from error


def _read_json_lines(stream: IO[bytes], name: str, text_column: str) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        where = f"{name}:{number}"
        text = _decode(line, where, offset).removeprefix("\ufeff").strip()
        offset += len(line)
        if text:
            yield from split_text(_text_of(text, where, text_column), where)


def _text_of(line: str, where: str, text_column: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object with the column {text_column!r} but a {type(record).__name__}")
    if text_column not in record:
        raise ValueError(f"{where}: no column {text_column!r}; the columns there are: {', '.join(map(repr, record))}")
    if not isinstance(record[text_column], str):
        found = type(record[text_column]).__name__
        raise ValueError(f"{where}: the column {text_column!r} holds no text but a {found}")
    return record[text_column]


def _walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below `folder`, sorted, without hidden ones and those in folders of the names in `left_out`."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left_out)
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _kind(path: Path) -> str:
    """The suffix that tells what the text is, seen through the one that tells how it is packed."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()


def _open(path: Path) -> IO[bytes]:
    return COMPRESSED.get(path.suffix.lower(), open)(path, "rb")


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_bytes().decode())
    except UnicodeDecodeError:
        return False
