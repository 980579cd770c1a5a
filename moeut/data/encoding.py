"""How do the documents of a lane become tokens?  Read in one thread, encoded in another, in batches that show nowhere.

n: documents of a batch.  N: their tokens.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, compress, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.documents import BEGINNING, Document, Errors, Notice, Position
from moeut.data.mixture import Lane
from moeut.data.sources import read_documents
from moeut.data.tokenizer import encode

BATCH_BYTES = 2**21
BATCH_DOCUMENTS = 2**13

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Rules:
    """What becomes of documents, chosen by their hashes, [n] → [n].

    keeps, holds_out: whether a document is used at all, and for the held-out part. counts_held_out: the mixture counts
    the documents held out, rather than those for training. end_text: is put behind each. has_ends: a token is, too.
    """

    keeps: Callable[[Hashes], NDArray[np.bool_]]
    holds_out: Callable[[Hashes], NDArray[np.bool_]]
    counts_held_out: bool
    end_text: str
    has_ends: bool


@dataclass(frozen=True)
class Documents:
    """Documents that were read, positions being those in their lane: bytes of UTF-8, hash, source and side of each [n].

    `amounts` [n]: what they count in a mixture before there are tokens, which is their bytes.
    """

    documents: list[Document]
    num_bytes: NDArray[np.int64]
    hashes: Hashes
    sources: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    @property
    def amounts(self) -> NDArray[np.int64]:
        """Bytes for training."""
        return np.where(self.held_out, 0, self.num_bytes)

    @property
    def next(self) -> Position:
        """Where reading goes on after the last of them."""
        return self.documents[-1].next

    def part(self, start: int, stop: int) -> "Documents":
        """The documents from `start` up to `stop`."""
        some = slice(start, stop)
        return Documents(
            self.documents[some], self.num_bytes[some], self.hashes[some], self.sources[some], self.held_out[some]
        )


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens: ids [N] one after the other, lengths [n]. `amounts` [n]: tokens that the mixture counts."""

    about: Documents
    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    amounts: NDArray[np.int64]

    def part(self, start: int, stop: int) -> "Encoded":
        """The documents from `start` up to `stop`."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        some = slice(start, stop)
        return Encoded(self.about.part(start, stop), self.ids[first:last], self.lengths[some], self.amounts[some])


def read(lane: Lane, start: Position, rules: Rules, errors: Errors, notice: Notice) -> Generator[Documents]:
    """The documents of a lane from a position on, in batches."""
    sources = np.array([file.source for file in lane.files], np.int64)
    batch: list[Document] = []
    size = 0
    for document in _documents(lane, start, errors, notice):
        batch.append(document)
        size += document.num_bytes
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield from _kept(batch, sources, rules)
            batch, size = [], 0
    yield from _kept(batch, sources, rules)


def encode_all(batches: Iterator[Documents], tokenizer: Tokenizer, rules: Rules) -> Generator[Encoded]:
    """The same documents as tokens."""
    for batch in batches:
        encoded = encode(tokenizer, [document.text + rules.end_text for document in batch.documents])
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), np.uint32, int(lengths.sum()))
        counted = batch.held_out if rules.counts_held_out else ~batch.held_out
        yield Encoded(batch, ids, lengths, np.where(counted, lengths + rules.has_ends, 0))


def _documents(lane: Lane, start: Position, errors: Errors, notice: Notice) -> Iterator[Document]:
    """The documents of a lane; their positions are those in the lane."""
    first = 0
    for column, group in groupby(lane.files, key=lambda file: file.text_column):
        files = [file.file for file in group]
        begin = start._replace(file=start.file - first) if start.file >= first else BEGINNING
        for document in read_documents(files, column, start=begin, errors=errors, notice=notice):
            if first:
                position = document.position
                document = document._replace(position=position._replace(file=first + position.file))
            yield document
        first += len(files)


def _kept(batch: list[Document], sources: NDArray[np.int64], rules: Rules) -> Iterator[Documents]:
    """The documents of a batch that are kept, unless there are none. sources: of each file of the lane."""
    digests = [blake2b(document.text.encode(), digest_size=8).digest() for document in batch]
    hashes = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
    kept = rules.keeps(hashes)
    if not kept.all():
        batch, hashes = list(compress(batch, kept.tolist())), hashes[kept]
    if batch:
        yield Documents(
            documents=batch,
            num_bytes=np.array([document.num_bytes for document in batch], np.int64),
            hashes=hashes,
            sources=sources[[document.position.file for document in batch]],
            held_out=rules.holds_out(hashes),
        )
