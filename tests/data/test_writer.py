"""Shards of tokens are read as they were written, wherever the writing was cut off and went on."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from corpora import contents
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.tokens import SplitCounts, TokenStream
from moeut.data.writer import ArrayFile, TokenWriter

DOCUMENTS = st.lists(st.lists(st.integers(1, 60_000), max_size=40), max_size=8)


def write(writer: TokenWriter, documents: list[list[int]], first: int = 0) -> None:
    """Adds documents in one batch; document number i has 3 · i bytes."""
    ids = np.array([token for document in documents for token in document], np.uint32)
    lengths = np.array([len(document) for document in documents], np.int64)
    writer.append(ids, lengths, 3 * np.arange(first, first + len(documents)))


@settings(deadline=None, max_examples=60)
@given(
    documents=DOCUMENTS,
    batches=st.lists(st.integers(0, 8), max_size=3),
    shard_tokens=st.sampled_from([1, 7, 64, 256]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    end=st.sampled_from([0, 77, None]),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    batches: list[int],
    shard_tokens: int,
    dtype: str,
    end: int | None,
    ends: tuple[float, float],
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    cuts = sorted({0, len(documents), *(min(cut, len(documents)) for cut in batches)})
    with TokenWriter(folder, "train", dtype, end, shard_tokens) as writer:
        for first, last in itertools.pairwise(cuts):
            write(writer, documents[first:last], first)
        counts = writer.finish()
    mark = [] if end is None else [end]
    whole = mark + [token for document in documents for token in (*document, *mark)]
    stream = TokenStream.open(folder, "train", end is not None)
    assert (counts.documents, counts.tokens) == (len(documents), len(whole))
    assert counts.bytes == stream.num_bytes == sum(3 * number for number in range(len(documents)))
    assert len(stream) == len(whole)
    start, stop = sorted(round(share * len(whole)) for share in ends)
    if whole:
        assert stream.read(start, stop).tolist() == whole[start:stop]
        assert stream.read(0, len(whole)).dtype == np.dtype(dtype)
        assert [stream.document_tokens(number).tolist() for number in range(len(documents))] == documents
    shards = sorted(folder.glob("train-0*.npy"))
    assert len(shards) == -(-len(whole) // shard_tokens)
    assert [token for shard in shards for token in np.load(shard).tolist()] == whole


@settings(deadline=None, max_examples=60)
@given(
    documents=DOCUMENTS,
    kept=st.integers(0, 8),
    lost=st.integers(0, 8),
    shard_tokens=st.sampled_from([1, 7, 64]),
    end=st.sampled_from([0, None]),
    completed=st.booleans(),
)
def test_writing_goes_on_after_what_is_remembered(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    kept: int,
    lost: int,
    shard_tokens: int,
    end: int | None,
    completed: bool,
) -> None:
    kept = min(kept, len(documents))
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    with TokenWriter(whole, "train", "uint16", end, shard_tokens) as writer:
        write(writer, documents)
        counts = writer.finish()
    with TokenWriter(cut, "train", "uint16", end, shard_tokens) as writer:
        write(writer, documents[:kept])
        writer.flush()
        remembered = writer.counts
        write(writer, [[9] * 30] * lost)
        if completed:
            writer.finish()
    with TokenWriter(cut, "train", "uint16", end, shard_tokens, remembered) as writer:
        write(writer, documents[kept:], kept)
        assert writer.finish() == counts
    assert contents(cut) == contents(whole)


def test_what_is_flushed_is_on_the_disk(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, "train", "uint16", 0, 4) as writer:
        write(writer, [[1, 2, 3], [4]])
        assert (writer.counts, writer.shards) == (SplitCounts(documents=2, tokens=7, bytes=3), 1)
        writer.flush()
        assert np.load(tmp_path / "train-00000.npy").tolist() == [0, 1, 2, 3]
        stored = np.fromfile(tmp_path / "train-00001.npy", np.uint16)
        assert stored[-3:].tolist() == [0, 4, 0]


def test_an_array_grows_by_rows(tmp_path: Path) -> None:
    file = ArrayFile(tmp_path / "pairs.npy", np.int64, (2,))
    file.append(np.array([[1, 2], [3, 4]]))
    file.append(np.empty((0, 2)))
    assert file.read().tolist() == [[1, 2], [3, 4]]
    file.finish()
    again = ArrayFile(tmp_path / "pairs.npy", np.int64, (2,), rows=1)
    again.append(np.array([[5, 6]]))
    assert again.read().tolist() == [[1, 2], [5, 6]]
    again.finish()
    assert np.load(tmp_path / "pairs.npy").tolist() == [[1, 2], [5, 6]]
