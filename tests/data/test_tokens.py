"""Shards of tokens: written and read as one stream, and never read when damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
from corpora import recipe_of, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeut.data.prepare import prepare
from moeut.data.tokens import open_prepared


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(tmp_path / "data", recipe_of(write_lines(tmp_path / "lines.jsonl", [f"document {i}" for i in range(50)])))
    return tmp_path / "data"


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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"format_version": 2}'])
def test_a_damaged_manifest(prepared: Path, content: bytes) -> None:
    (prepared / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_prepared(prepared)


def test_another_format(prepared: Path) -> None:
    (prepared / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="prepared in format 99, not 2"):
        open_prepared(prepared)


def test_checking_is_told(prepared: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    manifest = open_prepared(prepared, progress=lambda *what: told.append(what)).manifest
    sizes = [record.bytes for record in manifest.files.values()]
    assert told == [("checking", sum(sizes[: i + 1]), sum(sizes)) for i in range(len(sizes))]
    assert set(manifest.files) == {file.name for file in prepared.iterdir()} - {"manifest.json"}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.sampled_from(["train-00000.npy", "held_out-00000.npy"]))
def test_a_flipped_bit_anywhere_is_noticed(prepared: Path, place: float, bit: int, name: str) -> None:
    path = prepared / name
    intact = path.read_bytes()
    status = path.stat()
    damaged = bytearray(intact)
    damaged[int(place * len(intact))] ^= 1 << bit
    path.write_bytes(damaged)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would, not as a program
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        open_prepared(prepared)
    path.write_bytes(intact)
