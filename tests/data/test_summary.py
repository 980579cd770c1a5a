"""What the summary of a prepared folder says is so: counted by hand, and again from the documents themselves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutDocuments, RecipeConfig
from moeut.data.sources import FilesSource
from moeut.data.summary import EXAMPLE_TOKENS, Bin, Summary, lines, summary
from moeut.data.tokenizer import BytesTokenizer, byte_tokenizer
from moeut.data.tokens import Manifest, PreparedData, SourceRecord, SplitCounts, TokenStream, open_prepared


class Data(PreparedData):
    """A folder that was never written."""

    def tokenizer(self):
        return byte_tokenizer()


def stream_of(documents: list[list[int]], has_ends: bool = True, shard_tokens: int = 7) -> TokenStream:
    end = [0] if has_ends else []
    tokens, places = list(end), []
    for document in documents:
        places.append((len(tokens), 2 * len(document)))
        tokens += [*document, *end]
    shards = [np.array(tokens[at : at + shard_tokens], np.uint16) for at in range(0, len(tokens), shard_tokens)]
    return TokenStream(shards, np.array(places, np.int64).reshape(-1, 2), has_ends)


def data_of(train: list[list[int]], held_out: list[list[int]], has_ends: bool = True) -> PreparedData:
    counts = SplitCounts(documents=len(train), tokens=300, bytes=1)
    other = SplitCounts(documents=1, tokens=100, bytes=1)
    manifest = Manifest(
        format_version=2,
        fingerprint="",
        listing="",
        sources=(SourceRecord("a", 1, {"train": counts, "held_out": other}), SourceRecord("b", 1, {"train": other})),
        settings={},
        vocab_size=257,
        end_of_document_id=0,
        has_ends=has_ends,
        dtype="uint16",
        splits={},
        files={},
    )
    return Data(Path("nowhere"), manifest, stream_of(train, has_ends), stream_of(held_out, has_ends))


@pytest.mark.parametrize("has_ends", [True, False])
def test_by_hand(has_ends: bool) -> None:
    found = summary(data_of([[98], [99, 100, 101], [98], [], [98, 98, 98, 98], [98]], [[105, 106]], has_ends))
    train, held_out = found.splits["train"], found.splits["held_out"]
    assert (train.documents, train.tokens, train.bytes, train.bytes_per_token) == (6, 10, 20, 2.0)
    assert (train.examined_documents, train.duplicates, train.used_vocabulary) == (6, 2, 4)
    assert train.tokens_per_document == {
        "0%": 0, "10%": 0, "25%": 1, "50%": 1, "75%": 3, "90%": 4, "99%": 4, "100%": 4,
    }  # fmt: skip
    assert train.histogram == [Bin(0, 0, 1), Bin(1, 1, 3), Bin(2, 3, 1), Bin(4, 7, 1)]
    assert (held_out.documents, held_out.duplicates, held_out.histogram) == (1, 0, [Bin(2, 3, 1)])
    assert [(source.name, source.documents, source.share) for source in found.sources] == [("a", 7, 0.8), ("b", 1, 0.2)]
    assert [(example.document, example.tokens) for example in found.examples] == [(1, 3), (3, 0), (5, 1), (0, 2)]
    assert [example.text for example in found.examples] == ["bcd", "", "a", "hi"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=40))
def test_against_the_documents(documents: list[list[int]]) -> None:
    train = summary(data_of(documents, [[1]])).splits["train"]
    assert train.duplicates == len(documents) - len({tuple(document) for document in documents})
    assert train.used_vocabulary == len({token for document in documents for token in document})
    assert train.tokens == sum(map(len, documents))
    for bin in train.histogram:
        assert bin.documents == sum(bin.low <= len(document) <= bin.high for document in documents)
    assert sum(bin.documents for bin in train.histogram) == len(documents)


def test_a_part_stands_for_a_large_folder() -> None:
    """Every document twice: half are duplicates, however few are read, for equal ones are read together."""
    documents = [[token % 200 + 1] * length for token in range(50) for length in range(1, 40)]
    data = data_of([*documents, *documents], [[1]])
    whole, part = summary(data).splits["train"], summary(data, max_tokens=200_000).splits["train"]
    assert whole.examined_documents == whole.documents == 2 * len(documents)
    assert 0 < part.examined_documents < part.documents
    assert part.duplicates * 2 == part.examined_documents
    assert (part.tokens, part.histogram, part.tokens_per_document) == (
        whole.tokens, whole.histogram, whole.tokens_per_document,
    )  # fmt: skip
    text = "\n".join(lines(summary(data, max_tokens=200_000)))
    assert f"train: judged by {part.examined_documents:,} of its documents" in text
    assert "judged by" not in "\n".join(lines(summary(data)))


def prepared(folder: Path) -> Summary:
    texts = folder / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number:02}.txt").write_text(f"text\tnumber {number % 30}\n" + "x" * 10 * number + "\n\x1b[31mred")
    recipe = RecipeConfig(
        sources=(FilesSource(paths=(str(texts),)),), tokenizer=BytesTokenizer(), held_out=HeldOutDocuments(share=0.3)
    )
    prepare(folder / "data", recipe)
    return summary(open_prepared(folder / "data"))


def test_a_prepared_folder(tmp_path: Path) -> None:
    found = prepared(tmp_path)
    counts = open_prepared(tmp_path / "data").manifest.splits
    for name, split in found.splits.items():
        assert (split.documents, split.bytes) == (counts[name].documents, counts[name].bytes)
        assert split.tokens == split.bytes == counts[name].tokens - counts[name].documents - 1
        assert split.bytes_per_token == 1.0
    assert sum(source.documents for source in found.sources) == 40
    assert sum(source.share for source in found.sources) == pytest.approx(1)
    assert all(len(example.text) == min(example.tokens, EXAMPLE_TOKENS) for example in found.examples)
    assert found == summary(open_prepared(tmp_path / "data"))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["splits"]["train"]["documents"] > 0


def test_as_text(tmp_path: Path) -> None:
    text = lines(prepared(tmp_path))
    assert text[0] == str(tmp_path / "data")
    assert [line.split()[0] for line in text[2:4]] == ["train", "held_out"]
    assert text[4].strip().endswith("of 257 tokens of the vocabulary occur in train")
    assert any("█" * 40 in line for line in text)
    assert "100.00%           40 documents" in "\n".join(text)
    assert any("│ text number" in line for line in text)
    assert not any("\x1b" in line or line != line.rstrip() for line in text)
