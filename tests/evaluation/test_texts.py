"""Do texts become the same streams, whoever's tokenizer cut them, and are sources kept apart?"""

from pathlib import Path

import numpy as np
import pytest
from examined import subject, tokenizer_of_items, uniform

from moeut.data.prepare import prepare
from moeut.data.recipe import recipe_config
from moeut.data.tokenizer import encode
from moeut.data.tokens import PreparedData, TokenStream, open_prepared
from moeut.evaluation.texts import file_streams, part, reencoded, source_streams, stream_of

TEXT = "".join(f"line {number}: the quick brown fox jumps over {number * 7} lazy dogs.\n" for number in range(40))


def write_sources(folder: Path) -> list[dict]:
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            (folder / name / f"{number}.txt").write_text(f"{name} {number}\n{TEXT[: 200 + 31 * number]}")
    return [{"kind": "files", "paths": [str(folder / name)]} for name in ("first", "second")]


def prepared(folder: Path, **settings: object) -> PreparedData:
    tree = {"sources": write_sources(folder / "texts"), "tokenizer": {"kind": "bytes"}, **settings}
    prepare(folder / "data", recipe_config({"held_out": {"kind": "documents", "share": 0.5}, **tree}, []))
    return open_prepared(folder / "data")


def tokens(stream: TokenStream) -> list[int]:
    return stream.read(0, len(stream)).tolist()


def test_a_stream_by_hand():
    stream = stream_of(["ab", "é"], subject(uniform()))
    a, b, *e = (byte + 1 for byte in "abé".encode())
    assert tokens(stream) == [0, a, b, 0, *e, 0]
    assert stream.documents.tolist() == [[1, 2], [4, 2]]
    assert stream.num_bytes == 4
    assert [stream.document_tokens(number).tolist() for number in range(2)] == [[a, b], e]


def test_files_each_by_their_name(tmp_path: Path):
    long = "x" * 70_000  # which is read in parts
    (tmp_path / "a.txt").write_text(long)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    streams = file_streams([tmp_path], subject(uniform()))
    assert list(streams) == [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    text, lines = streams.values()
    assert (len(text), text.documents.tolist()) == (70_002, [[1, 70_000]])
    assert (lines.num_bytes, len(lines.documents)) == (6, 2)
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"empty.jsonl: holds no text"):
        file_streams([tmp_path / "empty.jsonl"], subject(uniform()))
    with pytest.raises(ValueError, match="nowhere: no such file"):
        file_streams([tmp_path / "nowhere"], subject(uniform()))


def test_a_prepared_text_in_other_tokens(tmp_path: Path):
    data = prepared(tmp_path)
    same = reencoded(data, data.held_out, subject(uniform()))
    assert tokens(same) == tokens(data.held_out)
    assert np.array_equal(same.documents, data.held_out.documents)
    tokenizer = tokenizer_of_items()
    other = reencoded(data, data.held_out, subject(uniform(400), tokenizer))
    assert other.num_bytes == data.held_out.num_bytes
    texts = [
        bytes(token - 1 for token in data.held_out.document_tokens(n)).decode() for n in range(len(other.documents))
    ]
    assert [other.document_tokens(n).tolist() for n in range(len(texts))] == encode(tokenizer, texts)
    lossy = data.held_out.documents.copy()
    lossy[0, 1] += 1
    with pytest.raises(ValueError, match="its tokenizer loses some of the text, so it, which has another one"):
        reencoded(data, TokenStream(data.held_out.shards, lossy), subject(uniform()))


def test_sources_apart(tmp_path: Path):
    data = prepared(tmp_path)
    streams = source_streams(data)
    assert [Path(name).name for name in streams] == ["first", "second"]
    for name, stream in streams.items():
        texts = [bytes(token - 1 for token in stream.document_tokens(n)).decode() for n in range(len(stream.documents))]
        assert texts
        assert all(text.startswith(Path(name).name) for text in texts)
        assert tokens(stream)[0] == tokens(stream)[-1] == 0
    first, second = streams.values()
    assert tokens(first) + tokens(second)[1:] == tokens(data.held_out)
    assert first.num_bytes + second.num_bytes == data.held_out.num_bytes


@pytest.mark.parametrize(
    "settings",
    [{"mixing": "files"}, {"mixing": "tokens"}, {"held_out": {"kind": "files", "share": 0.3}}],
)
def test_sources_that_are_mixed(tmp_path: Path, settings: dict):
    with pytest.raises(ValueError, match="its sources are mixed; name the text files of each with --data"):
        source_streams(prepared(tmp_path, **settings))


def test_part_of_a_stream_without_ends():
    stream = TokenStream([np.arange(10)], np.array([[0, 3], [3, 3], [6, 4]]), has_ends=False)
    middle = part(stream, 1, 2)
    assert tokens(middle) == [3, 4, 5]
    assert middle.document_tokens(0).tolist() == [3, 4, 5]
    assert tokens(part(stream, 1, 3)) == [3, 4, 5, 6, 7, 8, 9]
