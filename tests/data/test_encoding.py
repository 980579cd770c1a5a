"""Documents become the same tokens in whatever batches, and reading goes on exactly where it stopped."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from corpora import some_texts, write_lines

from moeut.data import encoding
from moeut.data.documents import BEGINNING, Position
from moeut.data.encoding import Documents, Hashes, Rules, encode_all, read
from moeut.data.local import find_files
from moeut.data.mixture import Lane, LaneFile
from moeut.data.tokenizer import byte_tokenizer, encode


def everything(hashes: Hashes) -> np.ndarray:
    return np.full(len(hashes), True)


def even(hashes: Hashes) -> np.ndarray:
    return hashes % 2 == 0


RULES = Rules(keeps=everything, holds_out=even, counts_held_out=False, end_text="", has_ends=True)
TEXTS = some_texts(40)


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    """Three sources: two files of lines in columns of different names, and a text between them."""
    write_lines(tmp_path / "a.jsonl", TEXTS[:20])
    (tmp_path / "b.txt").write_text(TEXTS[20])
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS[21:]))
    files = find_files([tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path / "c.jsonl"])
    columns = ["text", "text", "body"]
    return Lane(
        tuple(LaneFile(file, column, i) for i, (file, column) in enumerate(zip(files, columns, strict=True))), 1
    )


def batches_of(lane: Lane, start: Position = BEGINNING, rules: Rules = RULES) -> list[Documents]:
    return list(read(lane, start, rules, "strict", print))


def texts_of(batches: list[Documents]) -> list[str]:
    return [document.text for batch in batches for document in batch.documents]


def places_of(batches: list[Documents]) -> list[Position]:
    return [document.next for batch in batches for document in batch.documents]


def test_what_is_known_of_documents(lane: Lane) -> None:
    [batch] = batches_of(lane)
    assert texts_of([batch]) == TEXTS
    assert batch.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert batch.hashes.tolist() == [hash_of(text) for text in TEXTS]
    assert batch.held_out.tolist() == [hash_of(text) % 2 == 0 for text in TEXTS]
    assert batch.sources.tolist() == [0] * 20 + [1] + [2] * 19
    assert batch.amounts.tolist() == [0 if hash_of(text) % 2 == 0 else len(text.encode()) for text in TEXTS]


@pytest.mark.parametrize(("num_bytes", "documents"), [(1, 100), (500, 100), (2**20, 7)])
def test_batches_show_nowhere(lane: Lane, monkeypatch: pytest.MonkeyPatch, num_bytes: int, documents: int) -> None:
    whole = batches_of(lane)
    monkeypatch.setattr(encoding, "BATCH_BYTES", num_bytes)
    monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", documents)
    batches = batches_of(lane)
    assert len(batches) > 5
    assert texts_of(batches) == texts_of(whole)
    assert places_of(batches) == places_of(whole)
    assert [batch.next for batch in batches] == [places_of([batch])[-1] for batch in batches]


def test_reading_goes_on_after_every_document(lane: Lane) -> None:
    [whole] = batches_of(lane)
    for number, place in enumerate(places_of([whole]), start=1):
        rest = batches_of(lane, place)
        assert texts_of(rest) == TEXTS[number:]
        assert places_of(rest) == places_of([whole])[number:]
        assert [source for batch in rest for source in batch.sources.tolist()] == whole.sources.tolist()[number:]


def test_some_are_left_out(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Rules(keeps=even, holds_out=everything, counts_held_out=True, end_text="", has_ends=True)
    kept = [text for text in TEXTS if hash_of(text) % 2 == 0]
    monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", 3)
    batches = batches_of(lane, rules=rules)
    assert texts_of(batches) == kept
    assert all(batch.documents for batch in batches)
    places = dict(zip(TEXTS, places_of(batches_of(lane)), strict=True))
    assert places_of(batches) == [places[text] for text in kept]


@pytest.mark.parametrize(("end_text", "has_ends", "counts_held_out"), [("", True, False), ("<END>", False, True)])
def test_tokens_are_those_of_each_text(lane: Lane, end_text: str, has_ends: bool, counts_held_out: bool) -> None:
    rules = Rules(everything, even, counts_held_out, end_text, has_ends)
    tokenizer = byte_tokenizer()
    expected = encode(tokenizer, [text + end_text for text in TEXTS])
    [encoded] = encode_all(iter(batches_of(lane, rules=rules)), tokenizer, rules)
    assert encoded.ids.tolist() == [token for ids in expected for token in ids]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected]
    assert encoded.about.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    counted = [(hash_of(text) % 2 == 0) == counts_held_out for text in TEXTS]
    amounts = [(len(ids) + has_ends) * here for ids, here in zip(expected, counted, strict=True)]
    assert encoded.amounts.tolist() == amounts
    part = encoded.part(7, 11)
    assert part.ids.tolist() == [token for ids in expected[7:11] for token in ids]
    assert part.amounts.tolist() == amounts[7:11]
    assert part.about.documents == encoded.about.documents[7:11]
