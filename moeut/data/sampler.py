"""Which tokens does step i see?  Blocks of a stream, shuffled anew each epoch, as a pure function of (seed, epoch, i).

Nothing here has a state: resuming needs the number of the next batch, and any rank may read any rows of it.
B: rows of a batch.  C: context length in tokens.  N: tokens of the stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeut.data.tokens import TokenStream
from moeut.settings import IGNORED_TARGET

ROUNDS = 8


@dataclass(frozen=True)
class Blocks:
    """A stream in blocks for training: block i is the C + 1 tokens from i · C on, so each token but the first is a
    target once; the (N - 1) mod C tokens at the end are left out.

    Raises:
        ValueError: the stream has no C + 1 tokens.
    """

    stream: TokenStream
    context_length: int

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise ValueError(f"context_length is {self.context_length}; it must be at least 1")
        if len(self) < 1:
            raise ValueError(
                f"the text is shorter than one block: context_length {self.context_length} needs "
                f"{self.context_length + 1} tokens and there are {len(self.stream)}; shorten it or add text"
            )

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.context_length

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The blocks of these numbers: [B] → [B, C + 1]."""
        width = self.context_length + 1
        blocks = np.empty((len(indices), width), np.int64)
        for row, start in enumerate((indices * self.context_length).tolist()):
            blocks[row] = self.stream.read(start, start + width)
        return blocks


@dataclass(frozen=True)
class Batches:
    """Batches without end, in which every block comes once an epoch, in an order of its own each epoch.

    Row j of batch i is block number g = i · B + j of an endless sequence: block permutation(g mod n) of epoch ⌊g / n⌋
    among the n there are. A batch may therefore begin in one epoch and end in another.

    Raises:
        ValueError: `batch_size` is below 1 or `seed` below 0.
    """

    blocks: Blocks
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")

    def batch(self, index: int, rows: slice = slice(None)) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs [B, C], targets [B, C]) of the batch of this number, counted from 0; or only some `rows` of it."""
        count = len(self.blocks)
        numbers = index * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        epochs, positions = np.divmod(numbers, count)
        chosen = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            chosen[here] = permute(positions[here], count, self.seed, epoch)
        tokens = self.blocks.read(chosen)
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def permute(positions: NDArray[np.int64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each of some positions goes under a permutation of `range(count)` given by (seed, epoch): [B] → [B].

    A Feistel network shuffles the 4^h ≥ count numbers of 2h bits, (left, right) ↦ (right, left ⊕ f(right)), and what
    falls outside the range is shuffled again until it lands inside (cycle walking; under four passes on average). The
    cost is that of the positions asked for, whatever the count. Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002; here to shuffle, not to keep secrets.
    """
    half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Makes every bit of the result depend on every bit of the values (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def evaluation_windows(num_tokens: int, context_length: int, stride: int) -> range:
    """Where the windows begin in which `evaluation_batches` reads a stream of N tokens: every `stride` tokens.

    Raises:
        ValueError: `stride` is not within 1 … `context_length`.
    """
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride is {stride}; it must be at least 1 and at most the context length, {context_length}")
    targets = num_tokens - 1
    return range(0, max(targets - (context_length - stride), min(targets, 1)), stride)


def evaluation_batches(
    stream: TokenStream, context_length: int, batch_size: int, stride: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The whole stream in order, in which every token but the first is a target exactly once: (inputs, targets).

    Both are [B, C], the last batch with fewer rows where they run out; what the last row lacks is `IGNORED_TARGET`
    among the targets and the stream's first token, an end of a document, among the inputs. Rows begin `stride` tokens
    apart: by default C, so that they do not overlap. If it is less, each row but the first begins with C - stride
    tokens that are only context, `IGNORED_TARGET` among the targets.
    """
    overlap = 0 if stride is None else context_length - stride
    starts = evaluation_windows(len(stream), context_length, context_length - overlap)
    for first in range(0, len(starts), batch_size):
        rows = starts[first : first + batch_size]
        inputs = np.full((len(rows), context_length), stream.read(0, 1)[0], np.int64)
        targets = np.full((len(rows), context_length), IGNORED_TARGET, np.int64)
        for row, start in enumerate(rows):
            tokens = stream.read(start, min(start + context_length + 1, len(stream)))
            context = overlap if start else 0
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, context : len(tokens) - 1] = tokens[1 + context :]
        yield inputs, targets
