"""Where does text come from?  Files and folders of this machine, data sets of the Hub, Python's own library, as files.

A source is resolved to an ordered list of files, and the files are read as one stream of documents. What a file holds
is told by its suffix, wherever it lies.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import IO, Annotated, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from moeut.data.documents import (
    BEGINNING,
    Document,
    Errors,
    Faults,
    Notice,
    Position,
    json_lines,
    record_documents,
    text_documents,
)
from moeut.data.formats import COLUMN_SUFFIXES, JSON_LINES_SUFFIXES, form, is_packed, unpack
from moeut.data.local import LocalFile, find_files, standard_library
from moeut.settings import STRICT, PositiveFloat, refuse


def _ignore(message: str) -> None:
    """Nobody asked to be told."""


class SourceFile(Protocol):
    """A file to read, wherever it lies."""

    @property
    def name(self) -> str:
        """As results show it; the suffix says what the file holds."""
        ...

    @property
    def given(self) -> str:
        """The source that it is part of, as the user named it."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the file as it lies there."""
        ...

    def stamp(self) -> str:
        """Changes when the content does, perhaps when it does not, and costs nothing to ask for."""
        ...

    def identity(self) -> str:
        """Stands for the content: equal ones, equal contents."""
        ...

    def open(self, notice: Notice) -> IO[bytes]:
        """The content as it lies there."""
        ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilesSource:
    """Files, folders and globs of this machine, as `find_files` finds them."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    text_column: str = "text"
    weight: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubSource:
    """A data set of the Hub by name: the files of its configuration `name` and of `split`, as `datasets` finds them.

    Or those that match `files`, globs within the repository, in that order. `revision`: a branch, a tag or a commit.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    files: tuple[str, ...] | None = None
    text_column: str = "text"
    weight: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        both = self.files is not None and self.name is not None
        refuse([(both, "name: has no effect where files are named; leave one of them out")])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StandardLibrarySource:
    """The source code of Python's standard library, as `standard_library` finds it."""

    kind: Literal["standard_library"] = "standard_library"
    weight: PositiveFloat = 1.0


SourceConfig = FilesSource | HubSource | StandardLibrarySource


def resolve(source: SourceConfig, notice: Notice = _ignore) -> list[SourceFile]:
    """The files behind a source, in the order in which they are read. Only the Hub is asked over the network.

    Raises:
        ValueError: there are none, or the Hub does not say.
    """
    match source:
        case FilesSource():
            return [*find_files(source.paths)]
        case StandardLibrarySource():
            return [*standard_library()]
        case HubSource():
            from moeut.data.hub import find_hub_files  # loads huggingface_hub

            return [*find_hub_files(source, notice)]


def read_documents(
    files: Sequence[SourceFile],
    text_column: str = "text",
    *,
    start: Position = BEGINNING,
    errors: Errors = "strict",
    notice: Notice = _ignore,
) -> Iterator[Document]:
    """The documents of `files`, in order; those longer than `DOCUMENT_BYTES` in parts. Empty ones are passed over.

    Args:
        files: what to read; `.gz`, `.bz2`, `.xz` and `.zst` are unpacked on the way.
        text_column: the field of a JSON line, or the column of Parquet and Arrow, that holds the text.
        start: where to begin: `Document.next` of the last document that was read goes on after it, exactly.
        errors: "replace" goes on where text is not UTF-8 (U+FFFD stands for what is not) and over lines of JSON that
            hold no text, and says so.
        notice: is told what is passed over, and of each new try to reach the Hub.

    Raises:
        ValueError: a file is not UTF-8 (names the byte), not JSON lines (names the line), has no `text_column` (names
            the columns there are), is a damaged archive, or cannot be read.
    """
    faults = Faults(errors, notice)
    try:
        for number, file in enumerate(files[start.file :], start.file):
            documents = _documents_in(file, number, text_column, start, faults)
            yield from itertools.dropwhile(lambda document: document.position < start, documents)
    finally:
        faults.tell_counts()


def _documents_in(
    file: SourceFile, number: int, text_column: str, start: Position, faults: Faults
) -> Iterator[Document]:
    first = start.document if number == start.file else 0
    kind = form(file.name)
    try:
        with file.open(faults.notice) as stored, unpack(stored, file.name) as content:
            if kind in JSON_LINES_SUFFIXES:
                records = json_lines(content, file.name, text_column, first, faults)
            elif kind in COLUMN_SUFFIXES:
                from moeut.data.columns import column_texts  # loads pyarrow

                place = file.path if isinstance(file, LocalFile) else content
                records = column_texts(place, file.name, text_column, first, faults)
            else:
                yield from text_documents(content, file.name, number, faults)
                return
            yield from record_documents(records, file.name, number, faults)
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read ({error.strerror or error})") from error


def is_compressed(name: str | PurePath) -> bool:
    """Whether the size of the file says nothing of the size of its text."""
    return is_packed(name) or form(name) in COLUMN_SUFFIXES
