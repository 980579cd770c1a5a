"""How do documents get into a folder's shards, so that this can be stopped anywhere?  In passes, with a journal.

Where a share of the documents is held out, one pass over the sources writes both splits. Where files or other sources
are, a first pass writes the held-out split, and a second the training split, without the documents of the first.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.ahead import ahead
from moeut.data.documents import BEGINNING, Notice
from moeut.data.encoding import Encoded, Hashes, Rules, encode_all, read
from moeut.data.journal import LaneStanding, Standing, write_journal
from moeut.data.mixture import Lane, merge
from moeut.data.recipe import HeldOutDocuments, RecipeConfig, TextEnd, TokenEnd
from moeut.data.tokens import SHARD_TOKENS, SPLITS, Progress, SplitCounts
from moeut.data.writer import NOTHING, ArrayFile, TokenWriter

JOURNAL_TOKENS = 2**24
HELD_OUT_HASHES = "held_out-hashes.npy"


@dataclass(frozen=True)
class Pass:
    """Lanes to read, the split whose tokens their mixture counts, and how many of those there are to be."""

    split: str
    lanes: Sequence[Lane]
    max_tokens: int | None


def passes(recipe: RecipeConfig, training: Sequence[Lane], held_out: Sequence[Lane]) -> list[Pass]:
    """The passes that a recipe takes, in order."""
    last = Pass("train", training, recipe.max_tokens)
    if isinstance(recipe.held_out, HeldOutDocuments):
        return [last]
    return [Pass("held_out", held_out, recipe.held_out.max_tokens), last]


def rules(recipe: RecipeConfig, split: str, excluded: Hashes | None = None) -> Rules:
    """What becomes of the documents of a pass. `excluded`: hashes, sorted, of documents that are not used."""
    match recipe.held_out:
        case HeldOutDocuments(share=share):

            def holds_out(hashes: Hashes) -> NDArray[np.bool_]:
                return places(hashes) < share
        case _:

            def holds_out(hashes: Hashes) -> NDArray[np.bool_]:
                return np.full(len(hashes), split == "held_out")

    def keeps(hashes: Hashes) -> NDArray[np.bool_]:
        return np.full(len(hashes), True) if excluded is None else ~np.isin(hashes, excluded)

    end = recipe.document_end
    return Rules(
        keeps=keeps,
        holds_out=holds_out,
        counts_held_out=split == "held_out",
        end_text=end.separator if isinstance(end, TextEnd) else "",
        has_ends=isinstance(end, TokenEnd),
    )


def places(hashes: Hashes) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return hashes / 2.0**64


class Ledger:
    """What is written so far, and the files it is written to."""

    def __init__(self, recipe: RecipeConfig, folder: Path, dtype: str, end: int | None, start: Standing):
        self.recipe, self.folder, self.start = recipe, folder, start
        self.stage, self.lanes, self.hashes = start.stage, list(start.lanes), start.hashes
        self.sources = [dict(source) for source in start.sources]
        held_out = start.splits["held_out"].documents
        self.held_out_hashes = ArrayFile(folder / HELD_OUT_HASHES, np.uint64, rows=held_out)
        self.writers = {
            split: TokenWriter(folder, split, dtype, end, SHARD_TOKENS, start.splits[split]) for split in SPLITS
        }
        self.noted = self._extent()

    @property
    def splits(self) -> dict[str, SplitCounts]:
        """How much each split holds."""
        return {split: writer.counts for split, writer in self.writers.items()}

    def write(self, lane: int, documents: Encoded) -> None:
        """Adds documents of a lane."""
        about = documents.about
        for split, chosen in (("train", ~about.held_out), ("held_out", about.held_out)):
            if not chosen.any():
                continue
            everything = chosen.all()
            ids = documents.ids if everything else documents.ids[np.repeat(chosen, documents.lengths)]
            self.writers[split].append(ids, documents.lengths[chosen], about.num_bytes[chosen])
            for source in np.unique(about.sources[chosen]).tolist():
                its = chosen & (about.sources == source)
                self._count(source, split, documents.lengths[its], about.num_bytes[its])
        self.held_out_hashes.append(about.hashes[about.held_out])
        lowest, highest = self.hashes
        self.hashes = (min(lowest, int(about.hashes.min())), max(highest, int(about.hashes.max())))
        amount = self.lanes[lane].amount + int(documents.amounts.sum())
        self.lanes[lane] = LaneStanding(about.next, amount)

    def is_due(self) -> bool:
        """Whether a shard is complete or many tokens are written since the journal was."""
        shards, tokens = self._extent()
        return shards > self.noted[0] or tokens >= self.noted[1] + JOURNAL_TOKENS

    def note(self) -> None:
        """Writes the journal, once all that it counts is on the disk."""
        for file in (*self.writers.values(), self.held_out_hashes):
            file.flush()
        standing = replace(
            self.start,
            stage=self.stage,
            lanes=tuple(self.lanes),
            splits=self.splits,
            sources=tuple(self.sources),
            hashes=self.hashes,
        )
        write_journal(standing, self.folder)
        self.noted = self._extent()

    def finish(self) -> None:
        """Completes the files of both splits."""
        for writer in self.writers.values():
            writer.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.held_out_hashes.file.close()
        for writer in self.writers.values():
            writer.__exit__(*exception)

    def _extent(self) -> tuple[int, int]:
        writers = self.writers.values()
        return sum(writer.shards for writer in writers), sum(writer.counts.tokens for writer in writers)

    def _count(self, source: int, split: str, lengths: NDArray[np.int64], num_bytes: NDArray[np.int64]) -> None:
        former = self.sources[source].get(split, NOTHING)
        ends = len(lengths) if self.writers[split].end is not None else 0
        self.sources[source][split] = SplitCounts(
            documents=former.documents + len(lengths),
            tokens=former.tokens + int(lengths.sum()) + ends,
            bytes=former.bytes + int(num_bytes.sum()),
        )


def run(
    ledger: Ledger, todo: Pass, tokenizer: Tokenizer, progress: Progress, notice: Notice, total: int | None
) -> None:
    """Does a pass, or what is left of it. total: bytes of all documents, where that is known.

    Raises:
        ValueError: the text cannot be read, the disk is full, or there are fewer tokens than the recipe asks for. What
            has been done is kept.
    """
    ledger.lanes = ledger.lanes or [LaneStanding(BEGINNING, 0)] * len(todo.lanes)
    with closing(_documents(ledger, todo, tokenizer, notice)) as documents:
        while (room := _room(ledger, todo)) > 0:
            try:
                found = next(documents, None)
            except BaseException:
                ledger.note()  # whatever ended the reading, all that was read is written
                raise
            if found is None:
                break
            lane, batch = found
            before = np.cumsum(batch.amounts) - batch.amounts
            ledger.write(lane, batch.part(0, int(np.count_nonzero(before < room))))
            if ledger.is_due():
                ledger.note()
            if todo.max_tokens is None:
                progress("tokens", _bytes(ledger), total)
            else:
                progress("tokens", min(ledger.splits[todo.split].tokens, todo.max_tokens), todo.max_tokens)
    if todo.max_tokens is None and _bytes(ledger) != total:
        progress("tokens", _bytes(ledger), _bytes(ledger))
    if todo.max_tokens is not None and _room(ledger, todo) > 0:
        part, field = ("training", "") if todo.split == "train" else ("the held-out part", "held_out.")
        tokens = ledger.splits[todo.split].tokens
        ledger.note()
        raise ValueError(
            f"{field}max_tokens: the sources have only {tokens:,} tokens for {part}, and {todo.max_tokens:,} are asked "
            f"for; ask for at most {tokens}, or give more text"
        )
    ledger.stage, ledger.lanes = ledger.stage + 1, []
    ledger.note()


def _room(ledger: Ledger, todo: Pass) -> float:
    """How many tokens are still wanted."""
    return math.inf if todo.max_tokens is None else todo.max_tokens - ledger.splits[todo.split].tokens


def _bytes(ledger: Ledger) -> int:
    """How much text is written."""
    return sum(counts.bytes for counts in ledger.splits.values())


def _documents(ledger: Ledger, todo: Pass, tokenizer: Tokenizer, notice: Notice) -> Generator[tuple[int, Encoded]]:
    """What is left of the lanes' documents, as the mixture has them."""
    errors = ledger.recipe.errors
    rule = rules(ledger.recipe, todo.split, np.sort(ledger.held_out_hashes.read()) if ledger.stage else None)

    def run_out(lane: int) -> None:
        tokens = ledger.lanes[lane].amount
        notice(f"{todo.lanes[lane].files[0].file.given} has run out after {tokens:,} tokens; the others go on")

    with ExitStack() as stack:
        streams = []
        for lane, standing in zip(todo.lanes, ledger.lanes, strict=True):
            documents = ahead(read(lane, standing.position, rule, errors, notice))
            streams.append(stack.enter_context(closing(ahead(encode_all(documents, tokenizer, rule)))))
        weights, amounts = [lane.weight for lane in todo.lanes], [standing.amount for standing in ledger.lanes]
        yield from merge(streams, weights, amounts, run_out)
