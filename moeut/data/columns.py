"""How is one column of a Parquet or Arrow file read?  Row by row, from any row on, and never as a whole.

Rows before the first one asked for are passed over by the counts that the file gives: of Parquet's row groups without
reading them, of Arrow's batches without decoding them. A local file is mapped into memory.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow
from pyarrow import ipc, parquet, types

from moeut.data.documents import Faults, decode

ROWS_AT_ONCE = 256
ARROW_FILE_MARK = b"ARROW1"

Pieces = Iterator[tuple[int, pyarrow.Array]]
"""Consecutive rows of the column, each with the number of its first row."""


def column_texts(
    place: Path | IO[bytes], name: str, text_column: str, first: int, faults: Faults
) -> Iterator[tuple[int, str]]:
    """The texts of a column from row `first` on, each with the number of its row, counted from 0; null is an empty one.

    Raises:
        ValueError: there is no such column (names those there are), it holds no text, or the file is damaged.
    """
    try:
        with pyarrow.memory_map(str(place)) if isinstance(place, Path) else pyarrow.PythonFile(place, "r") as file:
            read = _arrow if name.lower().endswith(".arrow") else _parquet
            for start, rows in read(file, name, text_column, first):
                texts = rows.cast(pyarrow.large_string()).cast(pyarrow.large_binary())
                for number, text in enumerate(texts.to_pylist(), start):
                    if number >= first:
                        yield number, decode(text or b"", f"{name}:{number + 1}", 0, faults)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the format's
        raise ValueError(f"{name}: damaged, or not what its suffix says ({str(error).splitlines()[0]})") from error


def _parquet(file: pyarrow.NativeFile, name: str, text_column: str, first: int) -> Pieces:
    content = parquet.ParquetFile(file, buffer_size=io.DEFAULT_BUFFER_SIZE)
    _check(content.schema_arrow, name, text_column)
    start = 0
    for group in range(content.num_row_groups):
        stop = start + content.metadata.row_group(group).num_rows
        if stop > first:
            for batch in content.iter_batches(ROWS_AT_ONCE, [group], [text_column], use_threads=False):
                yield start, batch.column(0)
                start += batch.num_rows
        start = stop


def _arrow(file: pyarrow.NativeFile, name: str, text_column: str, first: int) -> Pieces:
    start = 0
    for batch in _arrow_batches(file, name, text_column):
        for offset in range(max(0, first - start), batch.num_rows, ROWS_AT_ONCE):
            yield start + offset, batch.column(text_column).slice(offset, ROWS_AT_ONCE)
        start += batch.num_rows


def _arrow_batches(file: pyarrow.NativeFile, name: str, text_column: str) -> Iterator[pyarrow.RecordBatch]:
    is_file = file.read(len(ARROW_FILE_MARK)) == ARROW_FILE_MARK
    file.seek(0)
    if not is_file:
        stream = ipc.open_stream(file)
        _check(stream.schema, name, text_column)
        yield from stream
        return
    schema = ipc.open_file(file).schema
    _check(schema, name, text_column)
    wanted = ipc.IpcReadOptions(included_fields=[schema.get_field_index(text_column)], use_threads=False)
    batches = ipc.open_file(file, options=wanted)
    yield from (batches.get_batch(number) for number in range(batches.num_record_batches))


def _check(schema: pyarrow.Schema, name: str, text_column: str) -> None:
    if text_column not in schema.names:
        raise ValueError(
            f"{name}: no column {text_column!r}; the columns there are: {', '.join(map(repr, schema.names))}"
        )
    kind = schema.field(text_column).type
    texts = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(texts) or types.is_large_string(texts) or types.is_string_view(texts)):
        raise ValueError(f"{name}: the column {text_column!r} holds no text but {kind}")
