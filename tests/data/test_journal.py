"""A journal is read as it was written, and only by the preparation that wrote it."""

from dataclasses import replace
from pathlib import Path

import pytest

from moeut.data.documents import Position
from moeut.data.journal import JOURNAL, LaneStanding, Standing, read_journal, write_journal
from moeut.data.tokens import SplitCounts

COUNTS = SplitCounts(documents=3, tokens=50, bytes=200)
STANDING = Standing(
    fingerprint="abc",
    max_tokens=100,
    stage=1,
    lanes=(LaneStanding(Position(2, 7, 1), 40), LaneStanding(Position(0, 0, 0), 0)),
    splits={"train": COUNTS, "held_out": replace(COUNTS, tokens=7)},
    sources=({"train": COUNTS}, {}),
    hashes=(5, 2**64 - 1),
)


def test_it_comes_back(tmp_path: Path) -> None:
    write_journal(STANDING, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [JOURNAL]
    assert read_journal(tmp_path, "abc", 100) == STANDING


def test_that_of_another_preparation_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path, "abc", 100) is None
    write_journal(STANDING, tmp_path)
    assert read_journal(tmp_path, "abd", 100) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"stage": 1}'])
def test_a_damaged_one_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    assert read_journal(tmp_path, "abc", 100) is None


@pytest.mark.parametrize(("max_tokens", "fits"), [(100, True), (50, True), (49, False), (1000, True), (None, True)])
def test_another_limit_fits_where_it_is_not_passed(tmp_path: Path, max_tokens: int | None, fits: bool) -> None:
    write_journal(STANDING, tmp_path)
    found = read_journal(tmp_path, "abc", max_tokens)
    assert found == (replace(STANDING, max_tokens=max_tokens) if fits else None)


def test_the_last_document_may_have_passed_the_limit(tmp_path: Path) -> None:
    write_journal(replace(STANDING, max_tokens=45), tmp_path)
    assert read_journal(tmp_path, "abc", 45) is not None
    assert read_journal(tmp_path, "abc", 46) is None


def test_what_has_come_to_its_end_does_not_go_on_to_another(tmp_path: Path) -> None:
    write_journal(replace(STANDING, lanes=()), tmp_path)
    assert read_journal(tmp_path, "abc", 100) is not None
    assert read_journal(tmp_path, "abc", 1000) is None
