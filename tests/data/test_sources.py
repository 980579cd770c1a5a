"""Sources of every kind as one stream of documents, which can be taken up again after any of them."""

import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet
from pydantic import TypeAdapter, ValidationError

from moeut.data.documents import DOCUMENT_BYTES, Document, Position
from moeut.data.sources import (
    FilesSource,
    HubSource,
    SourceConfig,
    SourceFile,
    StandardLibrarySource,
    find_files,
    is_compressed,
    read_documents,
    resolve,
)


def write_lines(path: Path, texts: Sequence[str | None]) -> Path:
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return path


def every_kind(folder: Path) -> list[SourceFile]:
    """A file of each kind, with empty texts and documents of several parts in them."""
    generator = random.Random(0)
    texts = [f"text {i} é " * generator.choice([0, 1, 3, 20_000]) for i in range(12)]
    table = pyarrow.table({"text": [text or None for text in texts], "n": range(12)})
    write_lines(folder / "a.jsonl", [*texts, None])
    write_lines(folder / "b.jsonl.gz", texts)
    write_lines(folder / "c.json.xz", texts)
    (folder / "d.txt").write_text("one line\n" * 30_000)
    parquet.write_table(table, folder / "e.parquet", row_group_size=5)
    with ipc.new_stream(folder / "f.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    (folder / "g.txt.zst").write_bytes(pyarrow.compress(b"the end", codec="zstd", asbytes=True))
    return list(find_files([folder / name for name in sorted(path.name for path in folder.iterdir())]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[SourceFile]:
    return every_kind(tmp_path_factory.mktemp("every_kind"))


@pytest.fixture(scope="module")
def documents(files: list[SourceFile]) -> list[Document]:
    return list(read_documents(files))


def test_a_stream_of_every_kind(files: list[SourceFile], documents: list[Document]) -> None:
    assert {document.position.file for document in documents} == set(range(7))
    assert documents[-1] == Document("the end", files[-1].name, Position(6, 0, 0), 7)
    positions = [document.position for document in documents]
    assert positions == sorted(set(positions))
    by_file = [
        [(d.text, d.position.part) for d in documents if d.position.file == number] for number in (0, 1, 2, 4, 5)
    ]
    assert all(others == by_file[0] for others in by_file)
    assert max(part for _, part in by_file[0]) > 1


def test_reading_goes_on_at_any_document(files: list[SourceFile], documents: list[Document]) -> None:
    for number, document in enumerate(documents):
        assert list(read_documents(files, start=document.position)) == documents[number:]
        assert list(read_documents(files, start=document.next)) == documents[number + 1 :]


@settings(deadline=None, max_examples=50)
@given(start=st.builds(Position, st.integers(0, 8), st.integers(0, 15), st.integers(0, 5)))
def test_reading_begins_at_any_position(files: list[SourceFile], documents: list[Document], start: Position) -> None:
    expected = [document for document in documents if document.position >= start]
    assert list(read_documents(files, start=start)) == expected


def test_a_position_survives_json(documents: list[Document]) -> None:
    position = documents[7].next
    assert Position(*json.loads(json.dumps(position))) == position
    assert TypeAdapter(Position).validate_json(TypeAdapter(Position).dump_json(position)) == position


def test_faults_are_counted_over_all_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(b'{"text": "' + name.encode() + b'\xff"}\n{broken\n{"body": "x"}\n')
    notices: list[str] = []
    found = find_files([tmp_path])
    assert [d.text for d in read_documents(found, errors="replace", notice=notices.append)] == ["a�", "b�", "c�"]
    assert len(notices) == 6
    assert sum(f"{tmp_path}/a.jsonl:" in notice for notice in notices) == 3
    assert notices[3:] == [
        "3 places that are not UTF-8 were replaced",
        "3 lines that are not JSON were passed over",
        "3 lines without the column 'text' were passed over",
    ]


def test_what_was_passed_over_is_told_when_reading_stops_early(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{broken\n{broken\n{"text": "a"}\n{"text": "b"}\n')
    notices: list[str] = []
    reading = read_documents(find_files([tmp_path]), errors="replace", notice=notices.append)
    assert next(reading).text == "a"
    reading.close()  # type: ignore
    assert notices[1] == "2 lines that are not JSON were passed over"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_files([write_lines(tmp_path / "a.jsonl", ["a"])])

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.jsonl: cannot be read \(Permission denied\)$"):
        list(read_documents(found))


def test_a_file_that_went_away(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        path = write_lines(tmp_path / name, ["a"])
        found = find_files([path])
        path.unlink()
        with pytest.raises(ValueError, match=rf"{name}: cannot be read \(No such file or directory\)$"):
            list(read_documents(found))


def test_damage_and_missing_columns_name_the_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.xz", [f"text {i}" for i in range(1000)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.jsonl\.xz: the archive is damaged or cut short"):
        list(read_documents(find_files([path])))
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: no column 'text'; the columns there are: 'body'$"):
        list(read_documents(find_files([tmp_path / "b.parquet"])))
    (tmp_path / "c.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"c\.arrow: damaged, or not what its suffix says"):
        list(read_documents(find_files([tmp_path / "c.arrow"])))


def test_sources_are_resolved(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", ["b"])
    write_lines(tmp_path / "a.jsonl", ["a"])
    paths = (str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"))
    found = resolve(FilesSource(paths=paths))
    assert [Path(file.name).name for file in found] == ["b.jsonl", "a.jsonl", "b.jsonl"]
    assert [file.given for file in found] == [paths[0], paths[1], paths[1]]
    assert [file.name for file in resolve(StandardLibrarySource())][:1] == ["__future__.py"]


def test_sources_as_configurations() -> None:
    adapter = TypeAdapter(SourceConfig)
    given = '{"kind": "hub", "dataset": "allenai/c4", "files": ["en/*.gz"], "weight": 2}'
    source = adapter.validate_json(given)
    assert source == HubSource(dataset="allenai/c4", files=("en/*.gz",), weight=2.0)
    assert adapter.validate_json(adapter.dump_json(source)) == source
    assert adapter.validate_json('{"kind": "files", "paths": ["a"]}') == FilesSource(paths=("a",))
    for wrong in ('{"kind": "files", "paths": []}', '{"kind": "hub"}', '{"kind": "standard_library", "weight": 0}'):
        with pytest.raises(ValidationError):
            adapter.validate_json(wrong)
    with pytest.raises(ValueError, match="name: has no effect where files are named"):
        HubSource(dataset="allenai/c4", name="en", files=("en/*.gz",))


@pytest.mark.parametrize(
    ("name", "expected"), [("a.txt", False), ("a.jsonl", False), ("a.jsonl.zst", True), ("a.parquet", True)]
)
def test_what_size_says_nothing_of_the_text(name: str, expected: bool) -> None:
    assert is_compressed(name) is expected


LONG_LINE = """
import resource, sys
from moeut.data.sources import find_files, read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parts = [document.num_bytes for document in read_documents(find_files([sys.argv[1]]))]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(parts), sum(parts), max(parts), (after - before) * 1024)
"""


@pytest.mark.parametrize(
    "megabytes", [10, pytest.param(100, marks=pytest.mark.slow)], ids=lambda megabytes: f"{megabytes}MB"
)
@pytest.mark.parametrize(("name", "times"), [("a.jsonl", 5.0), ("a.txt", 0.2)])
def test_a_long_document_on_one_line(tmp_path: Path, megabytes: int, name: str, times: float) -> None:
    size, path = megabytes * 10**6, tmp_path / name
    text = b"no end " * (size // 7)
    path.write_bytes(b'{"text": "' + text + b'"}\n' if name == "a.jsonl" else text)
    command = [sys.executable, "-c", LONG_LINE, str(path)]
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    parts, total, longest, memory = map(int, output.split())
    assert (total, longest) == (len(text), DOCUMENT_BYTES)
    assert parts == -(-len(text) // DOCUMENT_BYTES)
    assert memory < times * size + 10**7


@pytest.mark.slow
def test_a_million_short_documents(tmp_path: Path) -> None:
    lines, rows = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    texts = [f"word{i}" for i in range(1_000_000)]
    write_lines(lines, texts)
    parquet.write_table(pyarrow.table({"text": texts}), rows)
    for path in (lines, rows):
        last = None
        for number, last in enumerate(read_documents(find_files([path]))):
            assert last.text == texts[number]
        assert last is not None
        assert last.position == Position(0, 999_999)
