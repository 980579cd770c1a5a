"""Texts and lines as documents: parts that join to them, faults that are named or passed over, positions."""

import io
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.documents import (
    DOCUMENT_BYTES,
    Document,
    Faults,
    Position,
    json_lines,
    record_documents,
    split_text,
    text_documents,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def refuse(message: str) -> None:
    raise AssertionError(message)


STRICT = Faults("strict", refuse)


def from_text(data: bytes, faults: Faults = STRICT) -> list[Document]:
    return list(text_documents(io.BytesIO(data), "name", 0, faults))


def from_lines(data: bytes, column: str = "text", first: int = 0, faults: Faults = STRICT) -> list[Document]:
    return list(record_documents(json_lines(io.BytesIO(data), "name", column, first, faults), "name", 0, faults))


def lines(*texts: str | None) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, st.integers(1, 40_000)), max_size=4), st.sampled_from(["", "\n", "\r\n"]))
def test_parts_join_to_the_text(pieces: list[tuple[str, int]], end: str) -> None:
    text = "".join(piece * min(count, 200_000 // (4 * len(piece) + 1)) + end for piece, count in pieces)
    ways = {
        "name": from_text(text.encode()),
        "name:1": from_lines(lines(text)),
        "given:1": list(split_text(text, "given")),
    }
    for name, parts in ways.items():
        assert "".join(part.text for part in parts) == text
        assert all(0 < part.num_bytes <= DOCUMENT_BYTES for part in parts)
        assert [part.num_bytes for part in parts] == [len(part.text.encode()) for part in parts]
        assert [part.source for part in parts] == [name, *(f"{name}#{i}" for i in range(2, 99))][: len(parts)]
        assert [part.position for part in parts] == [Position(0, 0, i) for i in range(len(parts))]


def test_parts_end_with_lines_where_they_can() -> None:
    parts = from_text(b"".join(b"line number %d\n" % i for i in range(10_000)))
    assert len(parts) == 3
    assert all(part.text.endswith("\n") for part in parts)


@pytest.mark.parametrize("lead", range(4))
def test_parts_never_cut_a_character(lead: int) -> None:
    text = "a" * lead + "😀" * DOCUMENT_BYTES
    parts = from_text(text.encode())
    assert "".join(part.text for part in parts) == text
    assert min(part.num_bytes for part in parts[:-1]) > DOCUMENT_BYTES - 4


def test_line_ends_and_marks_of_a_text_are_kept() -> None:
    text = "\ufeffa\r\nb\tc\rd\n"
    assert [document.text for document in from_text(text.encode())] == [text]


def test_nothing_is_no_document() -> None:
    assert from_text(b"") == []
    assert from_lines(b"\n \n" + lines("", None)) == []


def test_lines_are_numbered_as_an_editor_does() -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": ""}\n{"text": null}\n {"id": 1, "text": "b"}'
    documents = from_lines(data)
    assert [(document.text, document.source) for document in documents] == [("a", "name:1"), ("b", "name:5")]
    assert [document.position for document in documents] == [Position(0, 0), Position(0, 4)]
    assert from_lines(data, first=1) == documents[1:]


def test_another_column() -> None:
    documents = from_lines(b'{"body": "a"}\n{"body": "c"}\n', "body")
    assert [document.text for document in documents] == ["a", "c"]


def test_positions_go_on_after_a_document_and_its_parts() -> None:
    for documents in (from_lines(lines("a", "b" * 3 * DOCUMENT_BYTES, "", "c")), from_text(b"a\n" * DOCUMENT_BYTES)):
        assert len(documents) > 1
        for this, following in itertools.pairwise(documents):
            assert this.position < this.next <= following.position


def test_what_is_not_utf8_names_the_byte() -> None:
    with pytest.raises(ValueError, match=rf"^name: not UTF-8 text at byte {DOCUMENT_BYTES + 10} \(0xe9\); to go on"):
        from_text(b"a" * (DOCUMENT_BYTES + 10) + "é".encode("latin-1") + b"bc")
    with pytest.raises(ValueError, match=r"^name:2: not UTF-8 text at byte 24 \(0xff\)"):
        from_lines(b'{"text": "a"}\n{"text": "\xff"}\n')


BAD_LINES = [
    ("{broken", "not a line of JSON", "1 lines that are not JSON were passed over"),
    ("[" * 100_000, "not a line of JSON", "1 lines that are not JSON were passed over"),
    ('["text"]', "not a JSON object with the column 'text' but a list", "1 lines that are not JSON objects were"),
    ('{"body": "a", "id": 1}', "no column 'text'; the columns there are: 'body', 'id'", "1 lines without the column"),
    ('{"text": 3}', "the column 'text' holds no text but a int", "1 lines whose column 'text' holds no text were"),
]


@pytest.mark.parametrize(("line", "message", "_count"), BAD_LINES)
def test_bad_lines_name_file_and_line(line: str, message: str, _count: str) -> None:
    with pytest.raises(ValueError, match=r"^name:2: ") as caught:
        from_lines(lines("fine") + line.encode() + b"\n")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "message", "count"), BAD_LINES)
def test_bad_lines_are_passed_over_when_asked(line: str, message: str, count: str) -> None:
    notices: list[str] = []
    faults = Faults("replace", notices.append)
    data = lines("a") + (line.encode() + b"\n") * 2 + lines("b") + line.encode()
    documents = from_lines(data, faults=faults)
    assert [(document.text, document.source) for document in documents] == [("a", "name:1"), ("b", "name:4")]
    assert len(notices) == 1
    assert notices[0].startswith("name:2: ")
    assert message in notices[0]
    faults.tell_counts()
    assert notices[1].startswith(count.replace("1 ", "3 ", 1))
    assert len(notices) == 2


def test_what_is_not_utf8_is_replaced_when_asked() -> None:
    notices: list[str] = []
    faults = Faults("replace", notices.append)
    (document,) = from_text(b"a\xff\xfeb \xef\xbf\xbd c\xe2\x82", faults)
    assert document.text == "a\ufffd\ufffdb \ufffd c\ufffd"
    assert document.num_bytes == len(document.text.encode())
    (document,) = from_lines(b'{"text": "\xff"}\n', faults=faults)
    assert (document.text, document.num_bytes) == ("\ufffd", 3)
    faults.tell_counts()
    assert notices == [
        "name: not UTF-8 text at byte 1 (0xff); going on",
        "4 places that are not UTF-8 were replaced",
    ]


def test_garbage_is_replaced_in_parts() -> None:
    data = bytes(range(256)) * 1000
    parts = from_text(data, Faults("replace", lambda message: None))
    assert "".join(part.text for part in parts) == data.decode(errors="replace")
    assert [part.num_bytes for part in parts] == [len(part.text.encode()) for part in parts]


def test_half_of_a_surrogate_pair() -> None:
    data = lines("fine") + rb'{"text": "a\ud800b"}' + b"\n" + rb'{"text": "\ud83d\ude00"}'
    with pytest.raises(ValueError, match=r"^name:2: half of a surrogate pair at character 1 of the text"):
        from_lines(data)
    notices: list[str] = []
    documents = from_lines(data, faults=Faults("replace", notices.append))
    assert [document.text for document in documents] == ["fine", "a\ufffdb", "😀"]
    assert notices == ["name:2: half of a surrogate pair at character 1 of the text; going on"]
