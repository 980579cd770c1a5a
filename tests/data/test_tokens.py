"""Shards of tokens: written and read as one stream, and never read when damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.prepare import prepare
from moeut.data.sources import find_files
from moeut.data.tokenizer import byte_tokenizer
from moeut.data.tokens import TokenStream, TokenWriter, open_prepared


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    lines = (json.dumps({"text": f"document {i}"}) for i in range(50))
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    prepare(tmp_path / "data", find_files([tmp_path / "lines.jsonl"]), tokenizer=byte_tokenizer(), held_out=0.3)
    return tmp_path / "data"


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(1, 60_000), max_size=40), max_size=6),
    shard_tokens=st.sampled_from([1, 7, 64, 256]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    shard_tokens: int,
    dtype: str,
    ends: tuple[float, float],
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with TokenWriter(folder, "train", dtype, 0, shard_tokens) as writer:
        for number, ids in enumerate(documents):
            writer.append(ids, 3 * number)
        counts = writer.finish()
    whole = [0] + [token for ids in documents for token in (*ids, 0)]
    stream = TokenStream.open(folder, "train")
    assert (counts.documents, counts.tokens) == (len(documents), len(whole))
    assert counts.bytes == stream.num_bytes == sum(3 * number for number in range(len(documents)))
    assert len(stream) == len(whole)
    start, stop = sorted(round(end * len(whole)) for end in ends)
    assert stream.read(start, stop).tolist() == whole[start:stop]
    assert stream.read(0, len(whole)).dtype == np.dtype(dtype)
    assert [stream.document_tokens(number).tolist() for number in range(len(documents))] == documents
    shards = sorted(folder.glob("train-0*.npy"))
    assert len(shards) == -(-len(whole) // shard_tokens)
    assert np.concatenate([np.load(shard) for shard in shards]).tolist() == whole


def test_a_shard_is_read_without_copying(prepared: Path) -> None:
    stream = open_prepared(prepared).train
    assert np.shares_memory(stream.read(3, 9), stream.shards[0])


def test_no_such_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="no prepared data here; make it with `moeut prepare`"):
            open_prepared(folder)


@pytest.mark.parametrize("name", ["train-00000.npy", "held_out-00000.npy", "train-documents.npy", "tokenizer.json"])
def test_damage_is_noticed(prepared: Path, name: str) -> None:
    path = prepared / name
    intact = path.read_bytes()
    for damaged in (intact[:-1], intact[: len(intact) // 2], intact[:-1] + bytes([intact[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            open_prepared(prepared)
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert open_prepared(prepared, verify=False).folder == prepared
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        open_prepared(prepared, verify=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"format_version": 1}'])
def test_a_damaged_manifest(prepared: Path, content: bytes) -> None:
    (prepared / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_prepared(prepared)


def test_another_format(prepared: Path) -> None:
    (prepared / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="prepared in format 99, not 1"):
        open_prepared(prepared)
