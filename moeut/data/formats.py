"""What does a file's suffix say?  Whether it holds text, JSON lines or columns, and how it is packed.

Damage to a packed file is said in one line, whatever packed it.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import IO, Any

BUFFER_BYTES = 2**17
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
COLUMN_SUFFIXES = frozenset({".parquet", ".arrow"})
# fmt: off
TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".css", ".py",
    ".pyi", ".js", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hh", ".hpp", ".cu", ".cuh", ".java", ".kt",
    ".scala", ".rs", ".go", ".rb", ".pl", ".php", ".swift", ".m", ".hs", ".ml", ".lisp", ".el", ".clj", ".erl", ".ex",
    ".lua", ".r", ".jl", ".f90", ".pas", ".asm", ".s", ".sql", ".sh", ".ps1", ".bat", ".toml", ".yaml", ".yml",
    ".ini", ".cfg", ".cmake", ".mk", ".proto", ".vim", ".dart", ".zig", ".nim",
})
# fmt: on
READABLE_SUFFIXES = TEXT_SUFFIXES | JSON_LINES_SUFFIXES | COLUMN_SUFFIXES


def form(name: str | PurePath) -> str:
    """The suffix that says what the content is, seen through the one that says how it is packed."""
    path = PurePath(name)
    return (PurePath(path.stem) if is_packed(path) else path).suffix.lower()


def is_packed(name: str | PurePath) -> bool:
    """Whether the suffix says that the content is packed."""
    return PurePath(name).suffix.lower() in _UNPACKERS


def unpack(stream: IO[bytes], name: str) -> IO[bytes]:
    """The content of a stream that the suffix of `name` says is packed, or else the stream itself.

    Reading raises ValueError, naming `name`, where the archive is damaged or cut short.
    """
    unpacker = _UNPACKERS.get(PurePath(name).suffix.lower())
    return stream if unpacker is None else io.BufferedReader(_Unpacked(unpacker(stream), name), BUFFER_BYTES)


class _Unpacked(io.RawIOBase):
    """What an unpacker reads, with its errors in our words."""

    def __init__(self, content: Any, name: str):
        self.content, self.name = content, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self.content.readinto(buffer)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's or the network's, not the archive's
            raise ValueError(f"{self.name}: the archive is damaged or cut short ({error})") from error

    def close(self) -> None:
        self.content.close()
        super().close()


def _zstandard(stream: IO[bytes]) -> Any:
    import pyarrow  # Python 3.11 has no Zstandard; pyarrow is there for Parquet, and loads when there is need

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


_UNPACKERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}
