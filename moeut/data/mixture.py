"""Which document comes next?  The sources' files in lanes, each read in order, and the lane whose turn it is.

`in_order` and `files` make one lane of all files; `tokens` gives every source a lane of its own, and takes the next
document from the lane that is furthest behind: the least tokens for its weight, the first of equals. A lane that has
run out leaves the others to go on. The order depends on nothing but the documents, so it is the same after a stop.
Held-out files and sources are always mixed by tokens, so that even a small part of them has all.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from moeut.data.recipe import HeldOutFiles, HeldOutSources, RecipeConfig
from moeut.data.sources import SourceFile


@dataclass(frozen=True)
class LaneFile:
    """A file, the column of its text, and the number of the source that it belongs to."""

    file: SourceFile
    text_column: str
    source: int


@dataclass(frozen=True)
class Lane:
    """Files that are read one after the other, and their weight against other lanes."""

    files: tuple[LaneFile, ...]
    weight: float


def lanes(recipe: RecipeConfig, found: Sequence[Sequence[SourceFile]]) -> tuple[list[Lane], list[Lane]]:
    """The lanes for training and those for the held-out part (none where it is a share of the documents).

    found: the files of each of the recipe's sources, then of those that are held out.
    """
    count = len(recipe.sources)
    training = _ordered(found[:count], recipe.permute_files)
    held_out = _ordered(found[count:], recipe.permute_files)
    match recipe.held_out:
        case HeldOutFiles(share=share):
            cuts = [max(int(share * len(files)), 1) for files in training]
            held_out = [files[:cut] for files, cut in zip(training, cuts, strict=True)]
            training = [files[cut:] for files, cut in zip(training, cuts, strict=True)]
            if not all(training):
                raise ValueError("held_out.share: a source has a single file, and it takes two to hold one out")
            return _lanes(recipe, training, recipe.mixing), _lanes(recipe, held_out, "tokens")
        case HeldOutSources():
            return _lanes(recipe, training, recipe.mixing), _lanes(recipe, held_out, "tokens", count)
        case _:
            return _lanes(recipe, training, recipe.mixing), []


def _ordered(found: Sequence[Sequence[SourceFile]], seed: int | None) -> list[list[SourceFile]]:
    """The files of each source, as they are or permuted: numpy's default generator goes on from source to source."""
    if seed is None:
        return [list(files) for files in found]
    generator = np.random.default_rng(seed)
    return [[files[i] for i in generator.permutation(len(files))] for files in map(_in_natural_order, found)]


def _in_natural_order(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Files by their names, in which numbers count as numbers: `chunk2` before `chunk10`."""
    parts = {file.name: re.split(r"(\d+)", file.name) for file in files}
    return sorted(files, key=lambda file: [int(part) if part.isdecimal() else part for part in parts[file.name]])


def _lanes(recipe: RecipeConfig, found: Sequence[Sequence[SourceFile]], mixing: str, first: int = 0) -> list[Lane]:
    """The lanes of some sources' files, the first of which is source number `first`."""
    sources = (*recipe.sources, *recipe.held_out_sources())[first : first + len(found)]
    each = [
        [LaneFile(file, getattr(source, "text_column", "text"), number) for file in files]
        for number, source, files in zip(itertools.count(first), sources, found, strict=False)
    ]
    if mixing == "tokens":
        return [Lane(tuple(files), source.weight) for files, source in zip(each, sources, strict=True)]
    if mixing == "files":
        turns = itertools.zip_longest(*each)
        return [Lane(tuple(file for turn in turns for file in turn if file is not None), 1)]
    return [Lane(tuple(itertools.chain.from_iterable(each)), 1)]


class Measured(Protocol):
    """Documents, the amount of each, and a way to take some of them."""

    @property
    def amounts(self) -> NDArray[np.int64]:
        """What a document counts towards its lane's share."""
        ...

    def part(self, start: int, stop: int) -> Self:
        """The documents from `start` up to `stop`."""
        ...


MeasuredT = TypeVar("MeasuredT", bound=Measured)


def merge(
    streams: Sequence[Iterator[MeasuredT]],
    weights: Sequence[float],
    done: Sequence[int],
    run_out: Callable[[int], None],
) -> Iterator[tuple[int, MeasuredT]]:
    """The documents of several lanes as one sequence: (lane, some of its documents).

    done: how much of each lane has come already. run_out: is told the number of a lane that ends before the others.
    """
    amounts = list(done)
    waiting: dict[int, MeasuredT] = {}
    alive = set(range(len(streams)))

    def turn(lane: int) -> tuple[float, int]:
        return amounts[lane] / weights[lane], lane

    while alive:
        lane, *others = sorted(alive, key=turn)
        batch = waiting.pop(lane, None) or next(streams[lane], None)
        if batch is None:
            alive.remove(lane)
            if alive:
                run_out(lane)
            continue
        count = len(batch.amounts)
        if others:
            rival, other = turn(others[0])
            before = (amounts[lane] + np.cumsum(batch.amounts) - batch.amounts) / weights[lane]
            side = "right" if lane < other else "left"
            count = max(int(np.searchsorted(before, rival, side)), 1)
        if count < len(batch.amounts):
            waiting[lane] = batch.part(count, len(batch.amounts))
            batch = batch.part(0, count)
        amounts[lane] += int(batch.amounts.sum())
        yield lane, batch
