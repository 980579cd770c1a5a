"""Preparing: lossless, split by text alone, idempotent, and whole or not there."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.prepare import prepare
from moeut.data.sources import DOCUMENT_BYTES, find_files, split_text
from moeut.data.tokenizer import byte_tokenizer, decode
from moeut.data.tokens import PreparedData, TokenStream, open_prepared

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def some_texts(count: int, seed: int = 0) -> list[str]:
    words = ["".join(random.Random(number).choices("abcdefgh", k=5)) for number in range(300)]
    choice = random.Random(seed)
    return [" ".join(choice.choices(words, k=40)) + f"\n{i}" for i in range(count)]


def documents(data: PreparedData, stream: TokenStream) -> list[str]:
    tokenizer = data.tokenizer()
    return [decode(tokenizer, stream.document_tokens(i).tolist()) for i in range(len(stream.documents))]


@settings(deadline=None, max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_documents_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], held_out: float) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    files = find_files([write_lines(folder / "lines.jsonl", texts)])
    try:
        manifest = prepare(folder / "data", files, tokenizer=byte_tokenizer(), held_out=held_out).manifest
    except ValueError as error:
        assert "part is empty" in str(error) or "single document" in str(error)  # noqa: PT017
        return
    data = open_prepared(folder / "data")
    train, held = documents(data, data.train), documents(data, data.held_out)
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
    files = find_files([write_lines(tmp_path / "lines.jsonl", texts)])
    manifest = prepare(tmp_path / "data", files, tokenizer=500, held_out=0.2).manifest
    assert manifest.vocab_size == 500
    assert manifest.dtype == "uint16"
    data = open_prepared(tmp_path / "data", verify=True)
    parts = [part.text for text in texts for part in split_text(text, "")]
    assert len(parts) >= len(texts) + len(long) // DOCUMENT_BYTES
    assert sorted(documents(data, data.train) + documents(data, data.held_out)) == sorted(parts)


def test_the_tokenizer_sees_the_training_part_only(tmp_path: Path) -> None:
    texts = some_texts(60)
    prepare(tmp_path / "plain", find_files([write_lines(tmp_path / "a.jsonl", texts)]), tokenizer=400, held_out=0.3)
    plain = open_prepared(tmp_path / "plain")
    held = documents(plain, plain.held_out)
    changed = [text for text in texts if text not in set(held)] + [held[0]]
    prepare(tmp_path / "fewer", find_files([write_lines(tmp_path / "b.jsonl", changed)]), tokenizer=400, held_out=0.3)
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (tmp_path / "fewer/tokenizer.json").read_bytes()


def test_held_out_documents_stay_held_out_when_the_corpus_grows(tmp_path: Path) -> None:
    texts = some_texts(400)
    sides = []
    for count in (100, 200, 400):
        files = find_files(
            [write_lines(tmp_path / f"{count}.jsonl", random.Random(count).sample(texts[:count], count))]
        )
        prepare(tmp_path / f"data{count}", files, tokenizer=byte_tokenizer(), held_out=0.1)
        data = open_prepared(tmp_path / f"data{count}")
        sides.append(set(documents(data, data.held_out)))
    assert sides[0] < sides[1] < sides[2]
    assert sides[2] & set(texts[:100]) == sides[0]
    assert 0.05 < len(sides[2]) / 400 < 0.16


def test_again_does_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    told: list[tuple[str, int, int | None]] = []

    def tell(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done, total))

    first = prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3, progress=tell)
    assert first.written
    assert [stage for stage, _, _ in told] == ["tokenizer", "tokens"]
    assert all(done == total == sum(len(text.encode()) for text in some_texts(30)) for _, done, total in told)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()}
    again = prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3, progress=tell)
    assert not again.written
    assert again.manifest == first.manifest
    os.utime(path, (1, 1))
    assert not prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3).written
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()} == before
    assert len(told) == 2


def test_where_the_sources_lie_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    prepare(tmp_path / "data", find_files([path]), tokenizer=byte_tokenizer(), held_out=0.3)
    monkeypatch.chdir(tmp_path)
    again = prepare("data", find_files(["lines.jsonl"]), tokenizer=byte_tokenizer(), held_out=0.3)
    assert not again.written


def test_equal_sources_make_equal_folders(tmp_path: Path) -> None:
    files = find_files([write_lines(tmp_path / "lines.jsonl", some_texts(30))])
    for name in ("one", "two"):
        prepare(tmp_path / name, files, tokenizer=300, held_out=0.3)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert str(tmp_path / "one").encode() not in b"".join(one.values())


def test_other_data_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    first = prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3).manifest
    with pytest.raises(ValueError, match=r"made differently \(held_out 0\.3 there, 0\.4 asked for\); choose another"):
        prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.4)
    write_lines(path, some_texts(31))
    with pytest.raises(ValueError, match="made from other contents of the sources"):
        prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3)
    assert open_prepared(tmp_path / "data").manifest == first
    second = prepare(tmp_path / "data", find_files([path]), tokenizer=300, held_out=0.3, overwrite=True)
    assert second.written
    assert open_prepared(tmp_path / "data").manifest == second.manifest != first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "lines.jsonl"]


def test_a_damaged_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    files = find_files([write_lines(tmp_path / "lines.jsonl", some_texts(30))])
    prepare(tmp_path / "data", files, tokenizer=300, held_out=0.3)
    (tmp_path / "data/train-00000.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"train-00000\.npy is damaged"):
        prepare(tmp_path / "data", files, tokenizer=300, held_out=0.3)
    assert prepare(tmp_path / "data", files, tokenizer=300, held_out=0.3, overwrite=True).written
    open_prepared(tmp_path / "data")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for target in (tmp_path / "mine", path):
        with pytest.raises(ValueError, match="holds something other than prepared data"):
            prepare(target, find_files([path]), tokenizer=300, overwrite=True)
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


def test_empty_parts_say_what_to_change(tmp_path: Path) -> None:
    files = find_files([write_lines(tmp_path / "lines.jsonl", some_texts(5))])
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="the held-out part is empty: 5 documents") as caught:
        prepare(tmp_path / "data", files, held_out=0.0001, tokenizer=tokenizer)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    with pytest.raises(ValueError, match="the training part is empty: 5 documents") as caught:
        prepare(tmp_path / "data", files, held_out=0.9999, tokenizer=tokenizer)
    most = float(str(caught.value).split("at most ")[1].split(",")[0])
    assert not (tmp_path / "data").exists()
    for number, share in enumerate((least, most)):
        assert prepare(tmp_path / f"data{number}", files, held_out=share, tokenizer=tokenizer).written
    for name, texts in (("single", ["a"]), ("copies", ["a", "a"])):
        files = find_files([write_lines(tmp_path / f"{name}.jsonl", texts)])
        with pytest.raises(ValueError, match="the text is a single document"):
            prepare(tmp_path / "data", files, held_out=0.5, tokenizer=tokenizer)
    files = find_files([write_lines(tmp_path / "none.jsonl", ["", ""])])
    with pytest.raises(ValueError, match="there is no text in these files"):
        prepare(tmp_path / "data", files, tokenizer=tokenizer)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="held_out is"):
            prepare(tmp_path / "data", files, held_out=share, tokenizer=tokenizer)
    assert sorted(entry.suffix for entry in tmp_path.iterdir()) == ["", "", *[".jsonl"] * 4]


def test_errors_in_the_text_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number, text in enumerate(some_texts(20)):
        (tmp_path / f"text/{number}.txt").write_text(text)
    (tmp_path / "text/zz.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"zz\.txt: not UTF-8 text at byte 0"):
        prepare(tmp_path / "data", find_files([tmp_path / "text"]), tokenizer=byte_tokenizer())
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]


KILLED = """
import os, signal, sys
from moeut.data.prepare import prepare
from moeut.data.sources import find_files

def kill(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

prepare(sys.argv[1], find_files([sys.argv[2]]), tokenizer=300, held_out=0.3, overwrite=True, progress=kill)
"""


@pytest.mark.parametrize("stage", ["tokenizer", "tokens"])
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replacement"])
def test_a_kill_leaves_nothing_half_written(tmp_path: Path, stage: str, replaces: bool) -> None:
    path = write_lines(tmp_path / "lines.jsonl", some_texts(30))
    folder = tmp_path / "data"
    former = None
    if replaces:
        former = prepare(folder, find_files([path]), tokenizer=byte_tokenizer(), held_out=0.3).manifest
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, path, stage], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".data.partial").exists()
    if replaces:
        assert open_prepared(folder).manifest == former
    else:
        assert not folder.exists()
    after = prepare(folder, find_files([path]), tokenizer=300, held_out=0.3, overwrite=True)
    assert after.written
    assert open_prepared(folder).manifest == after.manifest
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "lines.jsonl"]


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(
        models.WordLevel({"</s>": 0, "unknown": 65_536} | {f"w{i}": i for i in range(1, 65_536)}, "unknown")
    )
    tokenizer.add_special_tokens(["</s>"])
    files = find_files([write_lines(tmp_path / "lines.jsonl", [f"w{i}" for i in range(65_500, 65_540)])])
    manifest = prepare(tmp_path / "data", files, tokenizer=tokenizer, held_out=0.3).manifest
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 65_537)
    data = open_prepared(tmp_path / "data")
    ids = np.concatenate([stream.read(0, len(stream)) for stream in (data.train, data.held_out)])
    assert sorted(set(ids.tolist())) == [0, *range(65_500, 65_537)]


@pytest.mark.slow
def test_a_large_document_on_one_line(tmp_path: Path) -> None:
    text = "".join(f"the word number {i} is here " for i in range(3_000_000))
    files = find_files([write_lines(tmp_path / "long.jsonl", [text])])
    assert len(text) > 90_000_000
    counts = prepare(tmp_path / "data", files, tokenizer=byte_tokenizer()).manifest.splits
    assert counts["train"].bytes + counts["held_out"].bytes == len(text)
    assert 0.04 < counts["held_out"].bytes / len(text) < 0.06
