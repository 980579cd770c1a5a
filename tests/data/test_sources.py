"""Text from files: what is found, what it becomes, and what is said when it cannot be read."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.data.sources import DOCUMENT_BYTES, find_files, read_documents, split_text, standard_library

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read(path: Path, **options: str) -> list[str]:
    return [document.text for document in read_documents(find_files([path]), **options)]


def test_a_folder_is_searched_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("z.txt", "b/code.py", "a.md", ".hidden.txt", ".git/config.txt", "picture.png", "empty.txt"):
        (tmp_path / name).write_text("" if name == "empty.txt" else name)
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert read(tmp_path) == ["a.md", "one", "two", "z.txt", "b/code.py"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_compressed_files_are_read_and_damage_is_named(tmp_path: Path, suffix: str, compress) -> None:
    path = tmp_path / f"lines.jsonl{suffix}"
    data = compress(b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(3000)))
    path.write_bytes(data)
    assert read(path) == [f"document {i}" for i in range(3000)]
    assert read(tmp_path)[0] == "document 0"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"lines\.jsonl{suffix}: the archive is damaged or cut short"):
        read(path)


def test_a_compressed_file_that_is_none(tmp_path: Path) -> None:
    for suffix in (".gz", ".xz"):
        path = tmp_path / f"text.txt{suffix}"
        path.write_bytes(b"plain text")
        with pytest.raises(ValueError, match="the archive is damaged"):
            read(path)


def test_line_ends_and_marks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "text.dat"
    path.write_bytes("\ufeffa\r\nb\tc\rd\n".encode())
    assert read(path) == ["\ufeffa\r\nb\tc\rd\n"]


def test_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a" * (DOCUMENT_BYTES + 10) + "é".encode("latin-1") + b"bc")
    with pytest.raises(ValueError, match=rf"latin\.txt: not UTF-8 text at byte {DOCUMENT_BYTES + 10} \(0xe9\)"):
        read(path)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:2: not UTF-8 text at byte 24 \(0xff\)"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ('["text"]', "not a JSON object with the column 'text' but a list"),
        ('{"body": "a", "id": 1}', "no column 'text'; the columns there are: 'body', 'id'"),
        ('{"text": 3}', "the column 'text' holds no text but a int"),
        (r'{"text": "a\ud800"}', "half of a surrogate pair at character 1"),
    ],
)
def test_bad_json_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"lines\.jsonl:2: ") as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_column(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('\ufeff{"body": "a"}\n{"body": ""}\n{"body": "c"}', encoding="utf-8")
    documents = list(read_documents(find_files([path]), "body"))
    assert [document.text for document in documents] == ["a", "c"]
    assert [document.source.removeprefix(str(path)) for document in documents] == [":1", ":3"]


def test_missing_empty_and_textless_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.txt: no such file or folder"):
        find_files([tmp_path / "nothing.txt"])
    with pytest.raises(ValueError, match="no text files in this folder"):
        find_files([tmp_path])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty\.txt: the file is empty"):
        find_files([tmp_path / "empty.txt"])
    with pytest.raises(ValueError, match="no text files in this folder"):
        find_files([tmp_path])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, st.integers(1, 40_000)), max_size=4), st.sampled_from(["", "\n", "\r\n"]))
def test_parts_join_to_the_text(pieces: list[tuple[str, int]], end: str) -> None:
    text = "".join(piece * min(count, 200_000 // (4 * len(piece) + 1)) + end for piece, count in pieces)
    parts = list(split_text(text, "name"))
    assert "".join(part.text for part in parts) == text
    assert all(0 < len(part.text.encode()) <= DOCUMENT_BYTES for part in parts)
    assert [part.source for part in parts] == ["name", *(f"name#{i}" for i in range(2, 99))][: len(parts)]


def test_parts_end_with_lines_where_they_can() -> None:
    text = "".join(f"line number {i}\n" for i in range(10_000))
    parts = [part.text for part in split_text(text, "name")]
    assert len(parts) == 3
    assert all(part.endswith("\n") for part in parts)


@pytest.mark.parametrize("lead", range(4))
def test_parts_never_cut_a_character(lead: int) -> None:
    text = "a" * lead + "😀" * DOCUMENT_BYTES
    parts = [part.text for part in split_text(text, "name")]
    assert "".join(parts) == text
    assert min(len(part.encode()) for part in parts[:-1]) > DOCUMENT_BYTES - 4


def test_a_long_line_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"word " * 1_000_000)
    parts = read(path)
    assert len(parts) == -(-5_000_000 // DOCUMENT_BYTES)
    assert "".join(parts) == "word " * 1_000_000


def test_the_standard_library_is_there_and_names_no_place() -> None:
    files = standard_library()
    names = [file.name for file in files]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not any(name.startswith(("/", "test/", "idlelib/", "encodings/", "site-packages/")) for name in names)
    assert names == [file.name for file in standard_library()]
    assert 4_000_000 < sum(file.path.stat().st_size for file in files) < 30_000_000
    first = next(iter(read_documents(files)))
    assert first.source == names[0]
