"""Preparing: lossless, split by text alone, idempotent, and whole or not there."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import BYTES, contents, recipe_of, some_texts, texts_in, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.documents import DOCUMENT_BYTES, split_text
from moeut.data.prepare import prepare
from moeut.data.recipe import TokenizerText
from moeut.data.tokenizer import ExistingTokenizer, TokenizerConfig, decode
from moeut.data.tokens import open_prepared

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(deadline=None, max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_documents_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], held_out: float) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    recipe = recipe_of(write_lines(folder / "lines.jsonl", texts), share=held_out)
    try:
        manifest = prepare(folder / "data", recipe).manifest
    except ValueError as error:
        assert "part is empty" in str(error) or "single document" in str(error)  # noqa: PT017
        return
    data = open_prepared(folder / "data")
    train, held = texts_in(data, data.train), texts_in(data, data.held_out)
    assert sorted(train + held) == sorted(texts)
    assert not set(train) & set(held)
    for stream, kept in ((data.train, train), (data.held_out, held)):
        assert stream.documents[:, 1].tolist() == [len(text.encode()) for text in kept]
        assert kept == [text for text in texts if text in set(kept)]
        end = manifest.end_of_document_id
        assert stream.read(0, 1)[0] == stream.read(len(stream) - 1, len(stream))[0] == end
        assert int((stream.read(0, len(stream)) == end).sum()) == len(kept) + 1
    for split, stream in (("train", data.train), ("held_out", data.held_out)):
        counts = manifest.splits[split]
        assert (counts.documents, counts.tokens, counts.bytes) == (
            len(stream.documents),
            len(stream),
            stream.num_bytes,
        )


def test_a_trained_tokenizer_and_long_documents(tmp_path: Path) -> None:
    long = "\n".join(some_texts(3000))
    texts = [*some_texts(40, seed=1), long, "holds <|endoftext|> as text"]
    recipe = recipe_of(write_lines(tmp_path / "lines.jsonl", texts), tokenizer=500, share=0.2)
    manifest = prepare(tmp_path / "data", recipe).manifest
    assert manifest.vocab_size == 500
    assert manifest.dtype == "uint16"
    data = open_prepared(tmp_path / "data")
    parts = [part.text for text in texts for part in split_text(text, "")]
    assert len(parts) >= len(texts) + len(long) // DOCUMENT_BYTES
    assert sorted(texts_in(data, data.train) + texts_in(data, data.held_out)) == sorted(parts)


def test_the_tokenizer_sees_the_training_part_only(tmp_path: Path) -> None:
    texts = some_texts(60)
    prepare(tmp_path / "plain", recipe_of(write_lines(tmp_path / "a.jsonl", texts), tokenizer=400))
    plain = open_prepared(tmp_path / "plain")
    held = texts_in(plain, plain.held_out)
    changed = [text for text in texts if text not in set(held)] + [held[0]]
    prepare(tmp_path / "fewer", recipe_of(write_lines(tmp_path / "b.jsonl", changed), tokenizer=400))
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (tmp_path / "fewer/tokenizer.json").read_bytes()


def test_held_out_documents_stay_held_out_when_the_corpus_grows(tmp_path: Path) -> None:
    texts = some_texts(400)
    sides = []
    for count in (100, 200, 400):
        path = write_lines(tmp_path / f"{count}.jsonl", random.Random(count).sample(texts[:count], count))
        prepare(tmp_path / f"data{count}", recipe_of(path, share=0.1))
        data = open_prepared(tmp_path / f"data{count}")
        sides.append(set(texts_in(data, data.held_out)))
    assert sides[0] < sides[1] < sides[2]
    assert sides[2] & set(texts[:100]) == sides[0]
    assert 0.05 < len(sides[2]) / 400 < 0.16


def test_again_does_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    told: list[tuple[str, int, int | None]] = []

    def tell(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done, total))

    first = prepare(tmp_path / "data", recipe_of(path, tokenizer=300), progress=tell)
    assert first.written
    size, stored = sum(len(text.encode()) for text in some_texts(30)), path.stat().st_size
    assert told == [("tokenizer", size, stored), ("tokenizer", size, size), ("tokens", size, size)]
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()}
    again = prepare(tmp_path / "data", recipe_of(path, tokenizer=300), progress=tell)
    assert not again.written
    assert again.manifest == first.manifest
    os.utime(path, (1, 1))
    assert not prepare(tmp_path / "data", recipe_of(path, tokenizer=300)).written
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()} == before
    assert len(told) == 3


def test_where_the_sources_lie_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    prepare(tmp_path / "data", recipe_of(path))
    monkeypatch.chdir(tmp_path)
    again = prepare("data", recipe_of("lines.jsonl"))
    assert not again.written


def test_equal_sources_make_equal_folders(tmp_path: Path) -> None:
    recipe = recipe_of(write_lines(tmp_path / "lines.jsonl", some_texts(30)), tokenizer=300)
    for name in ("one", "two"):
        prepare(tmp_path / name, recipe)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two
    assert str(tmp_path / "one").encode() not in b"".join(one.values())


def test_other_data_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    first = prepare(tmp_path / "data", recipe_of(path, tokenizer=300)).manifest
    with pytest.raises(ValueError, match=r"made differently \(held_out\.share: 0\.3, now 0\.4\); choose another"):
        prepare(tmp_path / "data", recipe_of(path, tokenizer=300, share=0.4))
    write_lines(path, some_texts(31))
    with pytest.raises(ValueError, match="made from other contents of the sources"):
        prepare(tmp_path / "data", recipe_of(path, tokenizer=300))
    assert open_prepared(tmp_path / "data").manifest == first
    second = prepare(tmp_path / "data", recipe_of(path, tokenizer=300), overwrite=True)
    assert second.written
    assert open_prepared(tmp_path / "data").manifest == second.manifest != first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "lines.jsonl"]


def test_a_damaged_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    recipe = recipe_of(write_lines(tmp_path / "lines.jsonl", some_texts(30)), tokenizer=300)
    prepare(tmp_path / "data", recipe)
    (tmp_path / "data/train-00000.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"train-00000\.npy is damaged"):
        prepare(tmp_path / "data", recipe)
    assert prepare(tmp_path / "data", recipe, overwrite=True).written
    open_prepared(tmp_path / "data")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for target in (tmp_path / "mine", path):
        with pytest.raises(ValueError, match="holds something other than prepared data"):
            prepare(target, recipe_of(path, tokenizer=300), overwrite=True)
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


def test_empty_parts_say_what_to_change(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(5))
    with pytest.raises(ValueError, match="the held-out part is empty: 5 documents") as caught:
        prepare(tmp_path / "data", recipe_of(path, share=0.0001))
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    with pytest.raises(ValueError, match="the training part is empty: 5 documents") as caught:
        prepare(tmp_path / "data", recipe_of(path, share=0.9999))
    most = float(str(caught.value).split("at most ")[1].split(",")[0])
    assert not (tmp_path / "data").exists()
    for number, share in enumerate((least, most)):
        assert prepare(tmp_path / f"data{number}", recipe_of(path, share=share)).written
    for name, texts in (("single", ["a"]), ("copies", ["a", "a"])):
        path = write_lines(tmp_path / f"{name}.jsonl", texts)
        with pytest.raises(ValueError, match="the text is a single document"):
            prepare(tmp_path / "data", recipe_of(path, share=0.5))
    path = write_lines(tmp_path / "none.jsonl", ["", ""])
    with pytest.raises(ValueError, match="there is no text in these files"):
        prepare(tmp_path / "data", recipe_of(path))
    assert sorted(entry.suffix for entry in tmp_path.iterdir()) == ["", "", *[".jsonl"] * 4]


@pytest.mark.parametrize("tokenizer", [BYTES, 300])
def test_errors_in_the_text_leave_no_folder(tmp_path: Path, tokenizer: TokenizerConfig | int) -> None:
    (tmp_path / "text").mkdir()
    for number, text in enumerate(some_texts(20)):
        (tmp_path / f"text/{number}.txt").write_text(text)
    (tmp_path / "text/zz.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"zz\.txt: not UTF-8 text at byte 0"):
        prepare(tmp_path / "data", recipe_of(tmp_path / "text", tokenizer=tokenizer))
    assert not (tmp_path / "data").exists()
    told: list[str] = []
    recipe = recipe_of(tmp_path / "text", tokenizer=tokenizer, errors="replace")
    manifest = prepare(tmp_path / "data", recipe, notice=told.append).manifest
    assert sum(counts.documents for counts in manifest.splits.values()) == 21
    assert any("zz.txt" in line for line in told)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "text"]


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(
        models.WordLevel({"</s>": 0, "unknown": 65_536} | {f"w{i}": i for i in range(1, 65_536)}, "unknown")
    )
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write_lines(tmp_path / "lines.jsonl", [f"w{i}" for i in range(65_500, 65_540)])
    recipe = recipe_of(path, tokenizer=ExistingTokenizer(path=str(tmp_path / "tokenizer.json")))
    manifest = prepare(tmp_path / "data", recipe).manifest
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 65_537)
    data = open_prepared(tmp_path / "data")
    ids = np.concatenate([stream.read(0, len(stream)) for stream in (data.train, data.held_out)])
    assert sorted(set(ids.tolist())) == [0, *range(65_500, 65_537)]


def test_another_tokenizer_does_not_fit_the_folder(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    for name, size in (("one", 300), ("two", 310)):
        prepare(tmp_path / name, recipe_of(path, tokenizer=size))
    one, two = (ExistingTokenizer(path=str(tmp_path / name)) for name in ("one", "two"))
    manifest = prepare(tmp_path / "data", recipe_of(path, tokenizer=one)).manifest
    with pytest.raises(ValueError, match=r"made differently \(tokenizer\.sha256: \w+, now \w+\)"):
        prepare(tmp_path / "data", recipe_of(path, tokenizer=two))
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    moved = ExistingTokenizer(path=str(tmp_path / "elsewhere" / "tokenizer.json"))
    assert prepare(tmp_path / "data", recipe_of(path, tokenizer=moved)) == (manifest, False)
    (tmp_path / "data/tokenizer.json").write_bytes((tmp_path / "two/tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        open_prepared(tmp_path / "data")


def test_the_beginning_makes_the_tokenizer(tmp_path: Path) -> None:
    texts = some_texts(60)
    path = write_lines(tmp_path / "all.jsonl", texts)
    whole = recipe_of(path, tokenizer=400)
    limit = sum(len(text.encode()) for text in texts[:30])
    some = recipe_of(path, tokenizer=400, tokenizer_text=TokenizerText(max_bytes=limit))
    first = recipe_of(write_lines(tmp_path / "first.jsonl", texts[:30]), tokenizer=400)
    for name, recipe in (("whole", whole), ("some", some), ("first", first)):
        prepare(tmp_path / name, recipe)
    made = {name: (tmp_path / name / "tokenizer.json").read_bytes() for name in ("whole", "some", "first")}
    assert made["some"] != made["whole"]
    data = open_prepared(tmp_path / "first")
    exact = sum(len(text.encode()) for text in texts_in(data, data.train))
    prepare(tmp_path / "exact", recipe_of(path, tokenizer=400, tokenizer_text=TokenizerText(max_bytes=exact)))
    assert (tmp_path / "exact/tokenizer.json").read_bytes() == made["first"]
    two = recipe_of(tmp_path / "first.jsonl", path, tokenizer=400, tokenizer_text=TokenizerText(max_files=1))
    prepare(tmp_path / "two", two)
    assert (tmp_path / "two/tokenizer.json").read_bytes() == made["first"]


def test_long_documents_do_not_decide_what_is_held_out(tmp_path: Path) -> None:
    words = random.Random(0)
    long = "".join(f"line {i} has {words.random()} in it\n" for i in range(400_000))
    recipe = recipe_of(write_lines(tmp_path / "long.jsonl", [long, *some_texts(20)]), share=0.2)
    splits = prepare(tmp_path / "data", recipe).manifest.splits
    assert splits["train"].bytes + splits["held_out"].bytes == len(long) + sum(len(text) for text in some_texts(20))
    assert 0.8 * 0.2 < splits["held_out"].bytes / len(long) < 1.2 * 0.2


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tokenizer", [BYTES, 1000])
def test_many_documents_of_one_word(tmp_path: Path, count: int, tokenizer: TokenizerConfig | int) -> None:
    path = write_lines(tmp_path / "words.jsonl", [f"word{i}" for i in range(count)])
    manifest = prepare(tmp_path / "data", recipe_of(path, tokenizer=tokenizer, share=0.05)).manifest
    splits = manifest.splits
    assert sum(counts.documents for counts in splits.values()) == count
    assert sum(counts.bytes for counts in splits.values()) == sum(len(f"word{i}") for i in range(count))
    assert 0.04 < splits["held_out"].documents / count < 0.06
    data = open_prepared(tmp_path / "data")
    assert decode(data.tokenizer(), data.train.document_tokens(count // 2).tolist()).startswith("word")


@pytest.mark.parametrize("phrases", [70_000, pytest.param(3_500_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tokenizer", [BYTES, 1000])
def test_a_large_document_on_one_line(tmp_path: Path, phrases: int, tokenizer: TokenizerConfig | int) -> None:
    text = "".join(f"the word number {i} is here " for i in range(phrases))
    path = write_lines(tmp_path / "long.jsonl", [text])
    splits = prepare(tmp_path / "data", recipe_of(path, tokenizer=tokenizer, share=0.1)).manifest.splits
    assert splits["train"].bytes + splits["held_out"].bytes == len(text)
    assert splits["train"].documents + splits["held_out"].documents == -(-len(text) // DOCUMENT_BYTES)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines.jsonl", some_texts(400))
    folders = []
    for environment in ({"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "3"}, {"TOKENIZERS_PARALLELISM": "false"}):
        name = "-".join(environment.values())
        arguments = ["lines.jsonl", "--vocab-size", "400", "--out", name]
        command = [sys.executable, "-m", "moeut", "prepare", *arguments]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, check=True, capture_output=True)
        folders.append(contents(tmp_path / name))
    assert folders[0] == folders[1] == folders[2]
