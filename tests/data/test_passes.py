"""What passes write: mixed, limited and split as the recipe says, counted by source, nothing on both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import contents, recipe_of, some_texts, texts_in, write_lines

from moeut.data import encoding
from moeut.data.passes import passes, places, rules
from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutFiles, HeldOutSources, NoEnd, RecipeConfig, TextEnd
from moeut.data.sources import FilesSource
from moeut.data.tokens import PreparedData, open_prepared
from moeut.data.writer import NOTHING


def sources(*paths: Path, **weights: float) -> tuple[FilesSource, ...]:
    return tuple(FilesSource(paths=(str(path),), weight=weights.get(path.stem, 1.0)) for path in paths)


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    return [write_lines(tmp_path / f"{name}.jsonl", some_texts(300, seed)) for seed, name in enumerate("abc")]


def made(folder: Path, recipe: RecipeConfig, told: list[str] | None = None) -> PreparedData:
    prepare(folder, recipe, notice=told.append if told is not None else None)
    return open_prepared(folder)


def source_of(texts: list[str]) -> list[int]:
    """Which of the corpora each text is from."""
    known = {text: seed for seed in range(3) for text in some_texts(300, seed)}
    return [known[text] for text in texts]


def test_a_share_takes_one_pass_and_the_rest_two() -> None:
    share = recipe_of("a", max_tokens=5)
    assert [(todo.split, todo.max_tokens) for todo in passes(share, [], [])] == [("train", 5)]
    for held_out in (HeldOutFiles(share=0.1, max_tokens=3), HeldOutSources(sources=sources(Path("b")), max_tokens=3)):
        recipe = recipe_of("a", held_out=held_out, max_tokens=5)
        assert [(todo.split, todo.max_tokens) for todo in passes(recipe, [], [])] == [("held_out", 3), ("train", 5)]


def test_rules_follow_from_the_recipe() -> None:
    hashes = np.array([0, 2**62, 2**63, 2**64 - 1], np.uint64)
    assert places(hashes).tolist() == [0, 0.25, 0.5, 1]
    share = rules(recipe_of("a", share=0.4), "train")
    assert (share.holds_out(hashes).tolist(), share.keeps(hashes).all()) == ([True, True, False, False], True)
    recipe = recipe_of("a", held_out=HeldOutFiles(share=0.1), document_end=TextEnd(separator="<S>"))
    first, second = rules(recipe, "held_out"), rules(recipe, "train", hashes[1:3])
    assert first.holds_out(hashes).all()
    assert not second.holds_out(hashes).any()
    assert second.keeps(hashes).tolist() == [True, False, False, True]
    assert (first.counts_held_out, second.counts_held_out) == (True, False)
    assert (first.end_text, first.has_ends) == ("<S>", False)


def test_sources_are_mixed_by_weight(tmp_path: Path, corpora: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(sources=sources(*corpora, a=3.0, c=0.5), mixing="tokens", max_tokens=40_000)
    data = made(tmp_path / "data", recipe)
    written = {record.name[-7]: record.splits["train"] for record in data.manifest.sources}
    assert sum(counts.tokens for counts in written.values()) == len(data.train) - 1
    for name, share in (("a", 3 / 4.5), ("b", 1 / 4.5), ("c", 0.5 / 4.5)):
        assert written[name].tokens / len(data.train) == pytest.approx(share, abs=0.01)
    order = source_of(texts_in(data, data.train))
    for source, name in enumerate("abc"):
        assert order.count(source) == written[name].documents
    assert order[:4] == [0, 1, 2, 0]
    monkeypatch.setattr(encoding, "BATCH_BYTES", 1000)
    made(tmp_path / "small batches", recipe)
    assert contents(tmp_path / "data") == contents(tmp_path / "small batches")


def test_a_source_that_runs_out_leaves_the_others_to_go_on(tmp_path: Path, corpora: list[Path]) -> None:
    small = write_lines(tmp_path / "small.jsonl", some_texts(300, 1)[:20])
    told: list[str] = []
    data = made(tmp_path / "data", recipe_of(sources=sources(corpora[0], small), mixing="tokens"), told)
    assert sorted(texts_in(data, data.train) + texts_in(data, data.held_out)) == sorted(
        some_texts(300, 0) + some_texts(300, 1)[:20]
    )
    tokens = data.manifest.sources[1].splits["train"].tokens
    assert told == [f"{small} has run out after {tokens:,} tokens; the others go on"]
    order = source_of(texts_in(data, data.train))
    last = max(i for i, source in enumerate(order) if source == 1)
    assert abs(order[:last].count(0) - order[:last].count(1)) < 4
    assert set(order[last + 1 :]) == {0}


def test_files_in_turn(tmp_path: Path) -> None:
    texts = {name: some_texts(20, seed) for seed, name in enumerate(["a1", "a2", "b1", "b2", "b3"])}
    for name, some in texts.items():
        (tmp_path / name[0]).mkdir(exist_ok=True)
        write_lines(tmp_path / name[0] / f"{name}.jsonl", some)
    data = made(tmp_path / "data", recipe_of(tmp_path / "a", tmp_path / "b", mixing="files"))
    held_out = set(texts_in(data, data.held_out))
    expected = [text for name in ("a1", "b1", "a2", "b2", "b3") for text in texts[name] if text not in held_out]
    assert texts_in(data, data.train) == expected
    assert [record.files for record in data.manifest.sources] == [2, 3]


@pytest.mark.parametrize("limit", [1, 2, 5_000, 30_000])
def test_only_as_many_tokens_as_asked_for(tmp_path: Path, corpora: list[Path], limit: int) -> None:
    everything = made(tmp_path / "all", recipe_of(*corpora))
    if limit < 5_000:  # too few for anything to be held out
        with pytest.raises(ValueError, match=rf"part is empty: \d documents make up max_tokens {limit}; ask for more"):
            made(tmp_path / "some", recipe_of(*corpora, max_tokens=limit))
        return
    data = made(tmp_path / "some", recipe_of(*corpora, max_tokens=limit))
    longest = max(len(document) for document in map(everything.train.document_tokens, range(900 - 300)))
    assert limit <= len(data.train) <= limit + longest
    assert len(data.train) - len(data.train.document_tokens(len(data.train.documents) - 1)) - 1 < limit
    assert texts_in(data, data.train) == texts_in(everything, everything.train)[: len(data.train.documents)]
    assert data.manifest.settings["max_tokens"] == limit


def test_fewer_tokens_than_asked_for_is_said_and_kept(tmp_path: Path, corpora: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"^max_tokens: the sources have only [\d,]+ tokens for training") as caught:
        prepare(tmp_path / "data", recipe_of(corpora[0], tokenizer=300, max_tokens=10**7))
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    told: list[tuple[str, int, int | None]] = []
    recipe = recipe_of(corpora[0], tokenizer=300, max_tokens=most)
    assert (
        prepare(tmp_path / "data", recipe, progress=lambda *what: told.append(what)).manifest.splits["train"].tokens
        == most
    )
    assert not told  # nothing was left to do
    assert made(tmp_path / "again", recipe).manifest == open_prepared(tmp_path / "data").manifest
    assert contents(tmp_path / "again") == contents(tmp_path / "data")


def test_held_out_sources(tmp_path: Path, corpora: list[Path]) -> None:
    a, b, c = corpora
    held_out = HeldOutSources(sources=sources(b, c), max_tokens=20_000)
    data = made(tmp_path / "data", recipe_of(a, held_out=held_out, max_tokens=30_000))
    assert set(source_of(texts_in(data, data.train))) == {0}
    order = source_of(texts_in(data, data.held_out))
    assert abs(order.count(1) - order.count(2)) < 4
    assert 20_000 <= len(data.held_out) < 20_500
    assert [set(record.splits) for record in data.manifest.sources] == [{"train"}, {"held_out"}, {"held_out"}]
    with pytest.raises(
        ValueError, match=r"^held_out\.max_tokens: the sources have only [\d,]+ tokens for the held-out"
    ):
        made(tmp_path / "more", recipe_of(a, held_out=HeldOutSources(sources=sources(b), max_tokens=10**6)))


def test_held_out_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(11):
            write_lines(tmp_path / name / f"{number:02d}.jsonl", [f"{name} {number} {i}" for i in range(10)])
    held_out = HeldOutFiles(share=0.2)
    data = made(tmp_path / "data", recipe_of(tmp_path / "a", tmp_path / "b", held_out=held_out))
    expected = {f"{name} {number} {i}" for name in "ab" for number in (0, 1) for i in range(10)}
    assert set(texts_in(data, data.held_out)) == expected
    assert len(data.train.documents) == 2 * 9 * 10


@pytest.mark.parametrize("mixing", ["in_order", "tokens"])
def test_no_document_is_on_both_sides(tmp_path: Path, corpora: list[Path], mixing: Any) -> None:
    a, b, _ = corpora
    both = some_texts(300, 0)[100:110]
    validation = write_lines(tmp_path / "validation.jsonl", [*both, *some_texts(20, 7)])
    held_out = HeldOutSources(sources=sources(validation))
    data = made(tmp_path / "data", recipe_of(a, b, held_out=held_out, mixing=mixing))
    assert set(both) <= set(texts_in(data, data.held_out))
    assert not set(texts_in(data, data.train)) & set(texts_in(data, data.held_out))
    assert len(data.train.documents) == 600 - len(both)
    assert data.manifest.sources[0].splits["train"].documents == 290


@pytest.mark.parametrize(("end", "separator"), [(TextEnd(separator="<SEP>"), "<SEP>"), (NoEnd(), "")])
def test_documents_without_end_tokens(tmp_path: Path, corpora: list[Path], end: Any, separator: str) -> None:
    data = made(tmp_path / "data", recipe_of(corpora[0], document_end=end))
    assert not data.manifest.has_ends
    texts = texts_in(data, data.train)
    assert all(text.endswith(separator) for text in texts)
    own = [text.removesuffix(separator) for text in texts]
    assert data.train.documents[:, 1].tolist() == [len(text.encode()) for text in own]
    stream = data.train.read(0, len(data.train))
    assert stream.tolist() == [byte + 1 for text in texts for byte in text.encode()]
    assert data.manifest.sources[0].splits["train"].tokens == len(stream)


def test_a_source_may_give_nothing(tmp_path: Path, corpora: list[Path]) -> None:
    blank = write_lines(tmp_path / "blank.jsonl", ["", ""])
    data = made(tmp_path / "data", recipe_of(corpora[0], blank, mixing="tokens"))
    assert data.manifest.sources[1].splits == {}
    assert data.manifest.splits["train"] != NOTHING
