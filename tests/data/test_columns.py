"""Rows of Parquet and Arrow: every row once, from any row on, and no more of a file than is needed."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from moeut.data.columns import ROWS_AT_ONCE, column_texts
from moeut.data.documents import Faults

TEXTS = [None if i % 50 == 7 else "" if i % 50 == 8 else f"row {i} é" for i in range(1000)]


def refuse(message: str) -> None:
    raise AssertionError(message)


STRICT = Faults("strict", refuse)


def as_parquet(table: pyarrow.Table, path: Path) -> Path:
    path = path.with_suffix(".parquet")
    parquet.write_table(table, path, row_group_size=300)
    return path


def as_arrow_file(table: pyarrow.Table, path: Path) -> Path:
    path = path.with_suffix(".arrow")
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


def as_arrow_stream(table: pyarrow.Table, path: Path) -> Path:
    path = path.with_suffix(".arrow")
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return path


Writer = Callable[[pyarrow.Table, Path], Path]
by_format = pytest.mark.parametrize("write", [as_parquet, as_arrow_file, as_arrow_stream])


def table(texts: list[Any], kind: pyarrow.DataType | None = None) -> pyarrow.Table:
    return pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, kind), "url": ["x"] * len(texts)})


def read(place: Path | io.BytesIO, name: str, first: int = 0, column: str = "text") -> list[tuple[int, str]]:
    return list(column_texts(place, name, column, first, STRICT))


@by_format
def test_every_row_from_any_row_on(tmp_path: Path, write: Writer) -> None:
    path = write(table(TEXTS), tmp_path / "rows")
    expected = [(number, text or "") for number, text in enumerate(TEXTS)]
    for first in (0, 1, 255, ROWS_AT_ONCE, 299, 300, 301, 777, 999, 1000, 5000):
        assert read(path, path.name, first) == expected[first:]
        assert read(io.BytesIO(path.read_bytes()), path.name, first) == expected[first:]


@by_format
@pytest.mark.parametrize(
    "kind",
    [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
    ids=str,
)
def test_every_kind_of_text(tmp_path: Path, write: Writer, kind: pyarrow.DataType) -> None:
    texts = table(TEXTS)
    column = texts["text"].combine_chunks()
    column = column.dictionary_encode() if pyarrow.types.is_dictionary(kind) else column.cast(kind)
    path = write(texts.set_column(1, "text", column), tmp_path / "rows")
    assert read(path, path.name) == [(number, text or "") for number, text in enumerate(TEXTS)]


@by_format
def test_a_column_that_is_not_there_or_no_text(tmp_path: Path, write: Writer) -> None:
    path = write(table(TEXTS), tmp_path / "rows")
    with pytest.raises(ValueError, match=r"^rows\.\w+: no column 'body'; the columns there are: 'id', 'text', 'url'$"):
        read(path, path.name, 0, "body")
    with pytest.raises(ValueError, match=r"^rows\.\w+: the column 'id' holds no text but int64$"):
        read(path, path.name, 0, "id")


@by_format
def test_a_damaged_file_is_one_line(tmp_path: Path, write: Writer) -> None:
    path = write(table(TEXTS), tmp_path / "rows")
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"plain text, and nothing else", b"PAR1" + data[4:30]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"^rows\.\w+: damaged, or not what its suffix says \(.+\)$"):
            read(path, path.name)


@by_format
def test_what_is_not_utf8_names_the_row(tmp_path: Path, write: Writer) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0])), pyarrow.py_buffer(b"ab\xff")],
    )
    path = write(pyarrow.table({"text": broken}), tmp_path / "rows")
    with pytest.raises(ValueError, match=r"^rows\.\w+:2: not UTF-8 text at byte 1 \(0xff\)"):
        read(path, path.name)
    notices: list[str] = []
    records = list(column_texts(path, path.name, "text", 0, Faults("replace", notices.append)))
    assert records == [(0, "a"), (1, "b\ufffd")]
    assert len(notices) == 1


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("write", [as_parquet, as_arrow_file])
def test_no_more_is_read_than_needed(tmp_path: Path, write: Writer) -> None:
    generator = random.Random(0)
    texts = [generator.randbytes(200).hex() for _ in range(1000)]
    rows = pyarrow.table({"other": [generator.randbytes(600).hex() for _ in range(1000)], "text": texts})
    data = write(rows, tmp_path / "rows").read_bytes()
    whole, last = Counting(data), Counting(data)
    name = next(tmp_path.iterdir()).name
    assert len(read(whole, name)) == 1000
    assert len(read(last, name, 950)) == 50
    assert whole.count < len(data) / 2  # the other column is left alone
    assert write is as_arrow_file or last.count < whole.count / 2  # and so are the row groups before
