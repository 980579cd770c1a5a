"""What is in a prepared folder?  Its layout, how shards of tokens are read, and how damage is noticed.

    manifest.json                            what it is made from, counts, and the checksum of every other file
    tokenizer.json  tokenizer_config.json    the tokenizer, as transformers reads it
    train-00000.npy …  held_out-00000.npy …  token ids, 1-D, uint16 (or uint32 for more than 65,536 tokens)
    train-documents.npy  held_out-…          int64 [documents, 2]: the first token of each document, its UTF-8 bytes

The stream of a split is `end doc₁ end doc₂ end …`: it begins with an end-of-document token and each document is
followed by one, so that every byte of every document is predicted from something. Only a recipe that says so leaves
the ends out: `doc₁ doc₂ …`.
"""

import bisect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.tokenizer import load_tokenizer
from moeut.files import replacing, sha256

FORMAT_VERSION = 2
SHARD_TOKENS = 2**26
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")
Progress = Callable[[str, int, int | None], None]
"""Told (stage, how much of it is done, how much there is, or None where that is not known)."""


def shard_file(folder: Path, split: str, number: int) -> Path:
    """Where a shard of a split lies."""
    return folder / f"{split}-{number:05d}.npy"


def documents_file(folder: Path, split: str) -> Path:
    """Where the places and sizes of a split's documents lie."""
    return folder / f"{split}-documents.npy"


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
class SourceRecord:
    """A source as it was given, how many files it has, and what each split holds of it (without the first end)."""

    name: str
    files: int
    splits: dict[str, SplitCounts]


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder says of itself.

    `fingerprint` stands for the contents of the sources, the settings and the versions: equal ones, equal folders.
    `listing` stands for the sources' names, sizes and times only: equal ones need no second look at the contents.
    `settings` is the recipe without its sources, and the versions. `has_ends`: whether ends of documents are marked.
    """

    format_version: int
    fingerprint: str
    listing: str
    sources: tuple[SourceRecord, ...]
    settings: dict[str, Any]
    vocab_size: int
    end_of_document_id: int
    has_ends: bool
    dtype: str
    splits: dict[str, SplitCounts]
    files: dict[str, FileRecord]


class TokenStream:
    """The tokens of one split: `shards` [tokens] read as if they were one array, and `documents` [documents, 2].

    has_ends: whether a token stands between documents that belongs to none.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], documents: NDArray[np.int64], has_ends: bool = True):
        self.shards, self.documents, self.has_ends = shards, documents, has_ends
        self.starts = [0, *itertools.accumulate(len(shard) for shard in shards)]

    @classmethod
    def open(cls, folder: Path, split: str, has_ends: bool = True) -> Self:
        """The stream of a split in a folder, memory-mapped."""
        files = itertools.takewhile(Path.exists, (shard_file(folder, split, number) for number in itertools.count()))
        shards = [np.load(file, mmap_mode="r") for file in files]
        return cls(shards, np.load(documents_file(folder, split), mmap_mode="r"), has_ends)

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
        return self.read(int(self.documents[number, 0]), stop - self.has_ends)


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


def open_prepared(folder: str | Path, *, verify: bool = True, progress: Progress | None = None) -> PreparedData:
    """Opens what `prepare` wrote, after reading all of it once to compare checksums: nothing damaged is trained on.

    verify: False compares only the sizes of the files. progress: is told how far the checking is, in bytes.

    Raises:
        ValueError: there is no such folder, it holds nothing prepared or in another format, or it is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_sizes(folder, manifest.files)
    if verify:
        _check_contents(folder, manifest.files, progress)
    return PreparedData(folder, manifest, *(TokenStream.open(folder, split, manifest.has_ends) for split in SPLITS))


def _check_sizes(folder: Path, files: Mapping[str, FileRecord]) -> None:
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing; prepare the folder again with overwrite")
        if path.stat().st_size != record.bytes:
            raise ValueError(f"{folder}: {name} is damaged; prepare the folder again with overwrite")


def _check_contents(folder: Path, files: Mapping[str, FileRecord], progress: Progress | None) -> None:
    done, total = 0, sum(record.bytes for record in files.values())
    with ThreadPoolExecutor() as pool:
        checksums = pool.map(sha256, (folder / name for name in files))
        for (name, record), checksum in zip(files.items(), checksums, strict=True):
            if checksum != record.sha256:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"{folder}: {name} is damaged; prepare the folder again with overwrite")
            done += record.bytes
            if progress is not None:
                progress("checking", done, total)


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
    with replacing(folder / MANIFEST) as partial:
        partial.write_bytes(pydantic.TypeAdapter(Manifest).dump_json(manifest, indent=1) + b"\n")


def file_record(path: Path) -> FileRecord:
    """Size and checksum of a file as it is now."""
    return FileRecord(path.stat().st_size, sha256(path))
