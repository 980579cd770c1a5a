"""How is the stream of a split written?  Document after document into shards, so that it can go on after any kill.

What is on the disk beyond the tokens and documents that somebody remembers is cut off when writing goes on: see
`moeut.data.journal`. Nothing but the current batch is kept in memory.

n: documents of a batch.  N: their tokens.
"""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moeut.data.tokens import SplitCounts, documents_file, shard_file
from moeut.files import flush

NOTHING = SplitCounts(documents=0, tokens=0, bytes=0)


class ArrayFile:
    """A `.npy` file that grows by rows; `columns` as in the shape behind the first dimension."""

    def __init__(self, path: Path, dtype: DTypeLike, columns: tuple[int, ...] = (), rows: int = 0):
        """Makes the file, or goes on with one after its first `rows` rows."""
        self.path, self.dtype, self.columns, self.rows = path, np.dtype(dtype), columns, rows
        self.file = path.open("r+b" if rows else "wb")
        self._write_header()
        self.start = self.file.tell()
        self.file.truncate(self.start + rows * self.dtype.itemsize * math.prod(columns))
        self.file.seek(0, os.SEEK_END)

    def append(self, array: NDArray[Any]) -> None:
        """Adds rows."""
        self.file.write(np.ascontiguousarray(array, self.dtype).data)
        self.rows += len(array)

    def read(self) -> NDArray[Any]:
        """All rows so far, in memory."""
        self.file.flush()
        values = np.fromfile(self.path, self.dtype, offset=self.start)
        return values.reshape(self.rows, *self.columns)

    def flush(self) -> None:
        """Waits until all rows are on the disk."""
        self.file.flush()
        flush(self.path)

    def finish(self) -> None:
        """Completes the file: its header says how many rows there are."""
        self.file.seek(0)
        self._write_header()
        self.flush()
        self.file.close()

    def _write_header(self) -> None:
        # numpy keeps room for a longer first dimension in it, so the header can be written again when that is known.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.columns)}
        np.lib.format.write_array_header_1_0(self.file, header)


class TokenWriter:
    """Writes the stream of one split. `counts` says how much is written, `shards` how many files are complete.

    end: the token between documents, which also begins the stream; None leaves documents unmarked. counts: what is
    there already and is kept; anything beyond it is cut off.
    """

    def __init__(
        self, folder: Path, split: str, dtype: str, end: int | None, shard_tokens: int, counts: SplitCounts = NOTHING
    ):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, np.dtype(dtype), shard_tokens
        self.end, self.counts = end, counts
        self.documents = ArrayFile(documents_file(folder, split), np.int64, (2,), counts.documents)
        self.shards, rows = divmod(counts.tokens, shard_tokens)
        for stale in itertools.takewhile(Path.exists, self._shard_files(self.shards + bool(rows))):
            stale.unlink()
        self.shard = self._open_shard(rows) if rows else None
        if end is not None and not counts.tokens:
            self._write(np.array([end], self.dtype))
            self.counts = SplitCounts(documents=0, tokens=1, bytes=0)

    def append(self, ids: NDArray[Any], lengths: NDArray[np.int64], num_bytes: NDArray[np.int64]) -> None:
        """Adds documents: ids [N] one after the other, lengths [n] in tokens, num_bytes [n] of UTF-8."""
        stream, starts = ids.astype(self.dtype, copy=False), np.cumsum(lengths) - lengths
        if self.end is not None:
            starts += np.arange(len(lengths))
            stream = np.full(len(ids) + len(lengths), self.end, self.dtype)
            is_text = np.ones(len(stream), bool)
            is_text[starts + lengths] = False
            stream[is_text] = ids
        self.documents.append(np.stack([self.counts.tokens + starts, num_bytes], axis=1))
        self._write(stream)
        self.counts = SplitCounts(
            documents=self.counts.documents + len(lengths),
            tokens=self.counts.tokens + len(stream),
            bytes=self.counts.bytes + int(num_bytes.sum()),
        )

    def flush(self) -> None:
        """Waits until all that `counts` counts is on the disk."""
        self.documents.flush()
        if self.shard is not None:
            self.shard.flush()

    def finish(self) -> SplitCounts:
        """Completes the files."""
        self._finish_shard()
        self.documents.finish()
        return self.counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.documents.file.close()
        if self.shard is not None:
            self.shard.file.close()

    def _write(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if self.shard is None:
                self.shard = self._open_shard(rows=0)
            room = self.shard_tokens - self.shard.rows
            self.shard.append(tokens[:room])
            tokens = tokens[room:]
            if self.shard.rows == self.shard_tokens:
                self._finish_shard()

    def _open_shard(self, rows: int) -> ArrayFile:
        return ArrayFile(shard_file(self.folder, self.split, self.shards), self.dtype, (), rows)

    def _shard_files(self, first: int) -> Iterator[Path]:
        return (shard_file(self.folder, self.split, number) for number in itertools.count(first))

    def _finish_shard(self) -> None:
        if self.shard is not None:
            self.shard.finish()
            self.shard, self.shards = None, self.shards + 1
