"""The mixture is what its rule says, document by document, however the lanes are cut into batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeut.data.local import LocalFile
from moeut.data.mixture import Lane, lanes, merge
from moeut.data.recipe import HeldOutFiles, HeldOutSources, RecipeConfig
from moeut.data.sources import FilesSource


@dataclass(frozen=True)
class Numbered:
    """Documents that know their numbers."""

    amounts: NDArray[np.int64]
    numbers: list[int]

    def part(self, start: int, stop: int) -> "Numbered":
        return Numbered(self.amounts[start:stop], self.numbers[start:stop])


def batches(amounts: list[int], size: int, first: int = 0) -> Iterator[Numbered]:
    for start in range(first, len(amounts), size):
        some = amounts[start : start + size]
        yield Numbered(np.array(some, np.int64), list(range(start, start + len(some))))


def one_at_a_time(amounts: list[list[int]], weights: list[float]) -> Iterator[tuple[int, int]]:
    """The rule, in the plainest way: the lane furthest behind its weight gives its next document."""
    done, next_one = [0] * len(amounts), [0] * len(amounts)
    while True:
        left = [lane for lane in range(len(amounts)) if next_one[lane] < len(amounts[lane])]
        if not left:
            return
        lane = min(left, key=lambda lane: (done[lane] / weights[lane], lane))
        yield lane, next_one[lane]
        done[lane] += amounts[lane][next_one[lane]]
        next_one[lane] += 1


LANES = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=20), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.integers(1, 7)),
    min_size=1,
    max_size=4,
)


@given(LANES)
def test_the_lane_furthest_behind_comes_next(described: list[tuple[list[int], float, int]]) -> None:
    amounts, weights = [lane[0] for lane in described], [lane[1] for lane in described]
    streams = [batches(some, size) for some, _, size in described]
    ended: list[int] = []
    merged = [
        (lane, number)
        for lane, batch in merge(streams, weights, [0] * len(described), ended.append)
        for number in batch.numbers
    ]
    assert merged == list(one_at_a_time(amounts, weights))
    assert len(set(ended)) == len(ended) == len(described) - 1


@given(LANES, st.integers(0, 60))
def test_a_mixture_goes_on_after_a_stop(described: list[tuple[list[int], float, int]], stop: int) -> None:
    amounts, weights = [lane[0] for lane in described], [lane[1] for lane in described]
    whole = list(one_at_a_time(amounts, weights))
    before = whole[:stop]
    counts = [sum(lane == number for lane, _ in before) for number in range(len(described))]
    done = [sum(some[:count]) for some, count in zip(amounts, counts, strict=True)]
    streams = [batches(some, size, count) for (some, _, size), count in zip(described, counts, strict=True)]
    merged = merge(streams, weights, done, lambda lane: None)
    assert [(lane, number) for lane, batch in merged for number in batch.numbers] == whole[stop:]


def test_shares_hold_at_every_moment() -> None:
    choice = np.random.default_rng(0)
    amounts = [choice.integers(1, 100, 3000).tolist() for _ in range(3)]
    weights = [5.0, 3.0, 2.0]
    done = np.zeros(3)
    for lane, batch in merge([batches(some, 64) for some in amounts], weights, [0] * 3, lambda lane: None):
        for amount in batch.amounts.tolist():
            done[lane] += amount
            behind = done / weights
            assert behind.max() - behind.min() <= 100 / min(weights)
        if done.sum() > 100_000:
            break
    assert np.abs(done / done.sum() - np.array(weights) / 10).max() < 0.002


def files(*names: str) -> list[LocalFile]:
    return [LocalFile(Path(name), name, "given") for name in names]


def names(some: list[Lane]) -> list[list[str]]:
    return [[file.file.name for file in lane.files] for lane in some]


A, B, C = FilesSource(paths=("a",)), FilesSource(paths=("b",), text_column="content"), FilesSource(paths=("c",))
FOUND = [files("a1", "a2", "a3"), files("b1"), files("c1", "c2")]


def test_files_in_order_are_one_lane() -> None:
    training, held_out = lanes(RecipeConfig(sources=(A, B, C)), FOUND)
    assert names(training) == [["a1", "a2", "a3", "b1", "c1", "c2"]]
    assert [(file.source, file.text_column) for file in training[0].files[2:5]] == [
        (0, "text"),
        (1, "content"),
        (2, "text"),
    ]
    assert held_out == []


def test_files_take_turns() -> None:
    training, _ = lanes(RecipeConfig(sources=(A, B, C), mixing="files"), FOUND)
    assert names(training) == [["a1", "b1", "c1", "a2", "c2", "a3"]]


def test_sources_have_lanes_of_their_own() -> None:
    heavy = FilesSource(paths=("b",), weight=2.5)
    training, _ = lanes(RecipeConfig(sources=(A, heavy, C), mixing="tokens"), FOUND)
    assert names(training) == [["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]
    assert [lane.weight for lane in training] == [1, 2.5, 1]


def test_the_first_files_are_held_out() -> None:
    found = [files(*(f"a{i}" for i in range(25))), files("c1", "c2")]
    recipe = RecipeConfig(sources=(A, C), held_out=HeldOutFiles(share=0.1), mixing="files")
    training, held_out = lanes(recipe, found)
    assert names(held_out) == [["a0", "a1"], ["c1"]]
    assert names(training) == [["a2", "c2", *(f"a{i}" for i in range(3, 25))]]
    with pytest.raises(ValueError, match="a source has a single file, and it takes two to hold one out"):
        lanes(recipe, [files("a1", "a2"), files("c1")])


def test_other_sources_are_held_out() -> None:
    recipe = RecipeConfig(sources=(A, B), held_out=HeldOutSources(sources=(C,)))
    training, held_out = lanes(recipe, FOUND)
    assert names(training) == [["a1", "a2", "a3", "b1"]]
    assert names(held_out) == [["c1", "c2"]]
    assert [file.source for file in held_out[0].files] == [2, 2]


def test_files_are_permuted_from_their_natural_order() -> None:
    ordered = [f"chunk{chunk}/part_{part}.jsonl" for chunk in (1, 2, 10) for part in (0, 9, 10, 100)]
    found = [files(*sorted(ordered)), files("c1", "c2", "c3")]
    training, _ = lanes(RecipeConfig(sources=(A, C), permute_files=123, mixing="tokens"), found)
    generator = np.random.default_rng(123)
    assert names(training)[0] == [ordered[i] for i in generator.permutation(12)]
    assert names(training)[1] == [f"c{i + 1}" for i in generator.permutation(3)]
