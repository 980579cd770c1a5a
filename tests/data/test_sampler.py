"""Batches: a pure function of (seed, epoch, index), every block once an epoch, every token scored once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.sampler import Batches, Blocks, evaluation_batches, evaluation_windows, permute
from moeut.data.tokens import TokenStream
from moeut.settings import IGNORED_TARGET


def counting_stream(tokens: int, shard_tokens: int = 50) -> TokenStream:
    """The stream 0 1 2 … in several shards, in which a token is its own position."""
    positions = np.arange(tokens, dtype=np.uint32)
    shards = [positions[start : start + shard_tokens] for start in range(0, tokens, shard_tokens)]
    return TokenStream(shards, np.empty((0, 2), np.int64))


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 2**40))
def test_a_permutation(count: int, seed: int, epoch: int) -> None:
    everywhere = permute(np.arange(count), count, seed, epoch)
    assert sorted(everywhere.tolist()) == list(range(count))
    some = np.arange(count)[:: max(count // 7, 1)]
    assert permute(some, count, seed, epoch).tolist() == everywhere[some].tolist()


@settings(deadline=None)
@given(st.integers(1, 2**62))
def test_a_permutation_of_very_many(count: int) -> None:
    positions = np.unique(np.linspace(0, count - 1, 50).astype(np.int64).clip(0, count - 1))
    places = permute(positions, count, 3, 0)
    assert len(np.unique(places)) == len(positions)
    assert 0 <= places.min() <= places.max() < count


def test_permutations_look_random() -> None:
    """Position × place over 4,000 permutations of 7: χ² (36 degrees of freedom) below its 1 − 10⁻⁶ quantile."""
    table = np.zeros((7, 7))
    for epoch in range(4000):
        np.add.at(table, (np.arange(7), permute(np.arange(7), 7, 0, epoch)), 1)
    expected = 4000 / 7
    assert ((table - expected) ** 2 / expected).sum() < 95
    places = permute(np.arange(100_000), 100_000, 0, 0)
    assert abs(np.corrcoef(np.arange(100_000), places)[0, 1]) < 0.02
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02


def test_the_order_never_changes() -> None:
    """Runs of old must go on with the batches they began with."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [5, 7, 6, 3, 0, 4, 1, 9, 2, 8]
    assert permute(np.arange(3), 10**12, 7, 5).tolist() == [605104201579, 786384829381, 568022332789]


@settings(deadline=None)
@given(
    tokens=st.integers(20, 300),
    context_length=st.integers(1, 19),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_every_block_once_an_epoch(tokens: int, context_length: int, batch_size: int, seed: int) -> None:
    blocks = Blocks(counting_stream(tokens), context_length)
    count = len(blocks)
    assert count == (tokens - 1) // context_length
    batches = Batches(blocks, batch_size, seed)
    starts = []
    for index in range(-(-3 * count // batch_size)):
        inputs, targets = batches.batch(index)
        assert inputs.shape == targets.shape == (batch_size, context_length)
        assert inputs.dtype == targets.dtype == np.int64
        assert (targets == inputs + 1).all()
        assert (inputs == inputs[:, :1] + np.arange(context_length)).all()
        starts.extend(inputs[:, 0].tolist())
    for epoch in range(3):
        assert sorted(starts[epoch * count : (epoch + 1) * count]) == [i * context_length for i in range(count)]


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 8), st.integers(0, 2))
def test_rows_are_rows_of_the_batch(index: int, ranks: int, seed: int) -> None:
    blocks = Blocks(counting_stream(201), 10)
    batches = Batches(blocks, 8, seed)
    whole = batches.batch(index)
    assert all((one == two).all() for one, two in zip(whole, Batches(blocks, 8, seed).batch(index), strict=True))
    contiguous = [batches.batch(index, slice(8 * r // ranks, 8 * (r + 1) // ranks)) for r in range(ranks)]
    strided = [batches.batch(index, slice(rank, None, ranks)) for rank in range(ranks)]
    for part, values in enumerate(whole):
        assert (np.concatenate([rows[part] for rows in contiguous]) == values).all()
        assert all((rows[part] == values[rank::ranks]).all() for rank, rows in enumerate(strided))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 60))
def test_however_a_step_is_shared_out(step: int, shard_tokens: int, context_length: int) -> None:
    """One rank with 8 rows, two with 4, eight micro-batches of a row, or a batch of each row: the same tokens."""
    blocks = Blocks(counting_stream(307, shard_tokens), context_length)
    batches = Batches(blocks, 8, seed=5)
    whole = batches.batch(step)
    for part, values in enumerate(whole):
        two_ranks = [batches.batch(step, slice(rank * 4, rank * 4 + 4))[part] for rank in range(2)]
        micro_batches = [batches.batch(step, slice(row, row + 1))[part] for row in range(8)]
        single_rows = [Batches(blocks, 1, seed=5).batch(step * 8 + row)[part] for row in range(8)]
        for shares in (two_ranks, micro_batches, single_rows):
            assert (np.concatenate(shares) == values).all()


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import TokenStream

def private_kilobytes():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmData"))
    return int(line.split()[1])

tokens, shards = 2**30, 4
for number in range(shards):
    np.lib.format.open_memmap(f"{number}.npy", "w+", np.uint16, (tokens,))
stream = TokenStream([np.load(f"{number}.npy", mmap_mode="r") for number in range(shards)], np.empty((0, 2), np.int64))
batches = Batches(Blocks(stream, 1024), 64)
batches.batch(0)
before = private_kilobytes()
limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, (before * 1024 + 2**26, limit))
for step in range(1, 30):
    batches.batch(step)
print(len(stream) * 2, private_kilobytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which says what memory is private")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """8 GB of tokens (files that are one hole) are read at random by a process that may take 64 MB more."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    size, growth = map(int, result.stdout.split())
    assert size == 2**33
    assert growth < 2**13  # kilobytes


def test_epochs_and_seeds_differ() -> None:
    blocks = Blocks(counting_stream(1001), 10)
    orders = {
        tuple(Batches(blocks, 100, seed).batch(epoch)[0][:, 0].tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 5))
def test_every_token_is_scored_once(tokens: int, context_length: int, batch_size: int) -> None:
    stream = counting_stream(tokens)
    scored = []
    for inputs, targets in evaluation_batches(stream, context_length, batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == context_length
        real = targets != IGNORED_TARGET
        assert (targets[real] == inputs[real] + 1).all()
        assert (inputs[~real] == 0).all()
        assert real.any(axis=1).all()
        scored.extend(targets[real].tolist())
    assert scored == list(range(1, tokens))


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 30), st.integers(1, 5))
def test_a_window_gives_every_token_its_context(tokens: int, context_length: int, stride: int, batch_size: int) -> None:
    """Every token but those of the first window is predicted from at least context_length - stride tokens before it."""
    stride = min(stride, context_length)
    scored = []
    windows = evaluation_windows(tokens, context_length, stride)
    rows = 0
    for inputs, targets in evaluation_batches(counting_stream(tokens), context_length, batch_size, stride):
        for row_inputs, row_targets in zip(inputs, targets, strict=True):
            real = np.flatnonzero(row_targets != IGNORED_TARGET)
            assert (row_targets[real] == row_inputs[real] + 1).all()
            assert row_inputs[0] == windows[rows]
            assert rows == 0 or real[0] == context_length - stride
            scored.extend(row_targets[real].tolist())
            rows += 1
    assert rows == len(windows)
    assert scored == list(range(1, tokens))


def test_a_stride_that_is_none() -> None:
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"stride is {stride}; it must be at least 1 and at most the context"):
            evaluation_windows(10, 4, stride)


def test_bad_sizes() -> None:
    stream = counting_stream(10)
    assert len(Blocks(stream, 9)) == 1
    with pytest.raises(ValueError, match="context_length 10 needs 11 tokens and there are 10"):
        Blocks(stream, 10)
    with pytest.raises(ValueError, match="context_length is 0"):
        Blocks(stream, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Batches(Blocks(stream, 3), 0)
    with pytest.raises(ValueError, match="seed is -1"):
        Batches(Blocks(stream, 3), 1, -1)
