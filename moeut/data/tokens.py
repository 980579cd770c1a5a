"""What is in a prepared folder?  Its layout, how shards of tokens are written and read, and how damage is noticed.

    manifest.json                            what it is made from, counts, and the checksum of every other file
    tokenizer.json  tokenizer_config.json    the tokenizer, as transformers reads it
    train-00000.npy …  held_out-00000.npy …  token ids, 1-D, uint16 (or uint32 for more than 65,536 tokens)
    train-documents.npy  held_out-…          int64 [documents, 2]: the first token of each document, its UTF-8 bytes

The stream of a split is `end doc₁ end doc₂ end …`: it begins with an end-of-document token and each document is
followed by one, so that every byte of every document is predicted from something.
"""

import bisect
import itertools
import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.tokenizer import load_tokenizer
from moeut.files import sha256

FORMAT_VERSION = 1
SHARD_TOKENS = 2**26
ALWAYS_VERIFIED_BYTES = 2**28
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class SplitCounts:
    """How much a split holds; `tokens` counts the ends of documents, `bytes` are those of its text in UTF-8."""

    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder says of itself.

    `fingerprint` stands for the contents of the sources, the settings and the versions: equal ones, equal folders.
    `listing` stands for the sources' names, sizes and times only: equal ones need no second look at the contents.
    """

    format_version: int
    fingerprint: str
    listing: str
    sources: tuple[str, ...]
    settings: dict[str, str | int | float]
    vocab_size: int
    end_of_document_id: int
    dtype: str
    splits: dict[str, SplitCounts]
    files: dict[str, FileRecord]


class TokenWriter:
    """Writes the stream of one split, a document at a time; nothing but the documents' places is kept in memory."""

    def __init__(self, folder: Path, split: str, dtype: str, end_of_document: int, shard_tokens: int = SHARD_TOKENS):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, np.dtype(dtype), shard_tokens
        self.end = np.array([end_of_document], self.dtype)
        self.documents = array("q")
        self.tokens = self.bytes = self.shards = self.room = 0
        self.shard: IO[bytes] | None = None
        self._write(self.end)

    def append(self, ids: list[int], num_bytes: int) -> None:
        """Adds a document of these tokens, which are this many bytes of UTF-8, and its end."""
        self.documents.extend((self.tokens, num_bytes))
        self.bytes += num_bytes
        self._write(np.array(ids, self.dtype))
        self._write(self.end)

    def finish(self) -> SplitCounts:
        """Completes the files."""
        self._finish_shard()
        places = np.array(self.documents, np.int64).reshape(-1, 2)
        with (self.folder / f"{self.split}-documents.npy").open("wb") as file:
            np.save(file, places)
            _flush(file)
        return SplitCounts(len(places), self.tokens, self.bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.shard is not None:
            self.shard.close()

    def _write(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if self.shard is None or not self.room:
                self._finish_shard()
                self.shard = (self.folder / f"{self.split}-{self.shards:05d}.npy").open("wb")
                self.shards, self.room = self.shards + 1, self.shard_tokens
                self._write_header(self.shard)
            now, tokens = tokens[: self.room], tokens[self.room :]
            self.shard.write(now.tobytes())
            self.room -= len(now)
            self.tokens += len(now)

    def _write_header(self, shard: IO[bytes]) -> None:
        # numpy keeps room for a longer first dimension in it, so the header can be written again when that is known.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.shard_tokens - self.room,)}
        np.lib.format.write_array_header_1_0(shard, header)

    def _finish_shard(self) -> None:
        if self.shard is not None:
            self.shard.seek(0)
            self._write_header(self.shard)
            _flush(self.shard)
            self.shard.close()


class TokenStream:
    """The tokens of one split: `shards` [tokens] read as if they were one array, and `documents` [documents, 2]."""

    def __init__(self, shards: Sequence[NDArray[Any]], documents: NDArray[np.int64]):
        self.shards, self.documents = shards, documents
        self.starts = [0, *itertools.accumulate(len(shard) for shard in shards)]

    @classmethod
    def open(cls, folder: Path, split: str) -> Self:
        """The stream of a split in a folder, memory-mapped."""
        files = itertools.takewhile(Path.exists, (folder / f"{split}-{number:05d}.npy" for number in itertools.count()))
        shards = [np.load(file, mmap_mode="r") for file in files]
        return cls(shards, np.load(folder / f"{split}-documents.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 of all documents."""
        return int(self.documents[:, 1].sum())

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The tokens from `start` up to `stop`, within 0 … len: a view where one shard holds them all."""
        assert 0 <= start <= stop <= len(self)
        shard = min(bisect.bisect_right(self.starts, start), len(self.shards)) - 1
        if stop <= self.starts[shard + 1]:
            offset = self.starts[shard]
            return self.shards[shard][start - offset : stop - offset]
        pieces = []
        while start < stop:
            end = min(stop, self.starts[shard + 1])
            pieces.append(self.shards[shard][start - self.starts[shard] : end - self.starts[shard]])
            start, shard = end, shard + 1
        return np.concatenate(pieces)

    def document_tokens(self, number: int) -> NDArray[Any]:
        """The tokens of a document, without its end."""
        last = number + 1 == len(self.documents)
        stop = len(self) if last else int(self.documents[number + 1, 0])
        return self.read(int(self.documents[number, 0]), stop - 1)


@dataclass(frozen=True)
class PreparedData:
    """A prepared folder, opened."""

    folder: Path
    manifest: Manifest
    train: TokenStream
    held_out: TokenStream

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return load_tokenizer(self.folder)


def open_prepared(folder: str | Path, verify: bool | None = None) -> PreparedData:
    """Opens what `prepare` wrote. Files are checked by size, and by checksum if `verify`, or by default if small.

    Raises:
        ValueError: there is no such folder, it holds nothing prepared or in another format, or it is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if verify is None:
        verify = sum(record.bytes for record in manifest.files.values()) < ALWAYS_VERIFIED_BYTES
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing; prepare the folder again with overwrite")
        intact = path.stat().st_size == record.bytes and (not verify or file_record(path) == record)
        if not intact:
            raise ValueError(f"{folder}: {name} is damaged; prepare the folder again with overwrite")
    return PreparedData(folder, manifest, *(TokenStream.open(folder, split) for split in SPLITS))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        ValueError: there is none, or this program does not understand it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no prepared data here; make it with `moeut prepare`")
    try:
        content = json.loads(path.read_bytes())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{folder}: prepared in format {version}, not {FORMAT_VERSION}; prepare it again with overwrite"
            )
        return pydantic.TypeAdapter(Manifest).validate_python(content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, pydantic.ValidationError) as error:
        raise ValueError(f"{folder}: {MANIFEST} is damaged; prepare the folder again with overwrite") from error


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes the manifest, as the last of the folder's files."""
    with (folder / MANIFEST).open("wb") as file:
        file.write(pydantic.TypeAdapter(Manifest).dump_json(manifest, indent=1) + b"\n")
        _flush(file)


def file_record(path: Path) -> FileRecord:
    """Size and checksum of a file as it is now."""
    return FileRecord(path.stat().st_size, sha256(path))


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
