"""How does the content of a file become documents?  A text is one document, and so is a line of JSON or a row.

A document longer than `DOCUMENT_BYTES` is handed on in parts, so that no single document decides how large the
held-out part becomes. Every document knows its position, from which reading can go on.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Literal, NamedTuple

DOCUMENT_BYTES = 2**16
HALF_PAIR = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"

Errors = Literal["strict", "replace"]
Notice = Callable[[str], None]
"""Is told, in one line, what a user should know though reading goes on."""


class Position(NamedTuple):
    """Where reading begins or goes on: how many files come before, documents of the file, parts of the document.

    Lines and rows that hold no text count as documents. There need not be anything at a position: what comes next is
    the first document at or after it.
    """

    file: int = 0
    document: int = 0
    part: int = 0


BEGINNING = Position()


class Document(NamedTuple):
    """A text that stands for itself, of `num_bytes` in UTF-8.

    `source`: `file`, or `file:7` for line or row 7, and `#2`, `#3` … for later parts. `position`: its own.
    """

    text: str
    source: str
    position: Position
    num_bytes: int

    @property
    def next(self) -> Position:
        """Where reading goes on after this document."""
        return self.position._replace(part=self.position.part + 1)


class Faults:
    """What to do about what cannot be read: stop there with an error, or pass over it, count it and say so.

    Told are the first fault of each kind, with its place, and at the end how many of each there were.
    """

    def __init__(self, errors: Errors, notice: Notice):
        self.errors, self.notice = errors, notice
        self.counts: Counter[str] = Counter()

    def meet(self, kind: str, message: str, count: int = 1) -> None:
        """Raises ValueError, or goes on; `kind` then says of many such faults what became of them."""
        if self.errors == "strict":
            raise ValueError(f"{message}; to go on all the same, say --errors replace")
        if kind not in self.counts:
            self.notice(f"{message}; going on")
        self.counts[kind] += count

    def tell_counts(self) -> None:
        """Says how many of each kind there were, where it was more than the one that was told."""
        for kind, count in self.counts.items():
            if count > 1:
                self.notice(f"{count:,} {kind}")


def text_documents(stream: IO[bytes], name: str, file: int, faults: Faults) -> Iterator[Document]:
    """The one document that a stream of UTF-8 is, in parts, none of which is longer than `DOCUMENT_BYTES`."""
    return _parts(stream, name, Position(file), faults)


def record_documents(records: Iterable[tuple[int, str]], name: str, file: int, faults: Faults) -> Iterator[Document]:
    """The documents of numbered texts; those longer than `DOCUMENT_BYTES` in parts, empty ones passed over."""
    for number, text in records:
        source = f"{name}:{number + 1}"
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            fault = f"{source}: half of a surrogate pair at character {error.start} of the text"
            faults.meet("texts had halves of surrogate pairs replaced", fault)
            text = HALF_PAIR.sub(REPLACEMENT, text)
            encoded = text.encode()
        position = Position(file, number)
        if len(encoded) > DOCUMENT_BYTES:
            yield from _parts(io.BytesIO(encoded), source, position, faults)
        elif encoded:
            yield Document(text, source, position, len(encoded))


def json_lines(stream: IO[bytes], name: str, text_column: str, first: int, faults: Faults) -> Iterator[tuple[int, str]]:
    """The texts of a stream of JSON lines from line `first` on, each with the number of its line, counted from 0."""
    number = offset = 0
    for line in stream:
        size = len(line)
        if number >= first and not line.isspace():
            content = decode(line, f"{name}:{number + 1}", offset, faults)
            del line  # it may be long, and nothing more is needed of it
            try:
                text = _text_of(content, text_column)
            except _NoTextError as error:
                faults.meet(error.kind, f"{name}:{number + 1}: {error}")
                text = ""
            del content
            yield number, text
        number, offset = number + 1, offset + size


def split_text(text: str, name: str) -> Iterator[Document]:
    """`text` in parts that join to it. Raises ValueError if it holds half of a surrogate pair."""
    return record_documents([(0, text)], name, 0, Faults("strict", print))


class _NoTextError(Exception):
    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def _text_of(line: str, text_column: str) -> str:
    """The text in a line of JSON; null is an empty one."""
    try:
        record = json.loads(line.removeprefix("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        message = f"not a line of JSON ({error})"
        raise _NoTextError("lines that are not JSON were passed over", message) from error
    if not isinstance(record, dict):
        message = f"not a JSON object with the column {text_column!r} but a {type(record).__name__}"
        raise _NoTextError("lines that are not JSON objects were passed over", message)
    if text_column not in record:
        message = f"no column {text_column!r}; the columns there are: {', '.join(map(repr, record))}"
        raise _NoTextError(f"lines without the column {text_column!r} were passed over", message)
    text = record[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        message = f"the column {text_column!r} holds no text but a {type(text).__name__}"
        raise _NoTextError(f"lines whose column {text_column!r} holds no text were passed over", message)
    return text


def _parts(stream: IO[bytes], source: str, position: Position, faults: Faults) -> Iterator[Document]:
    """Cuts a stream into documents, holding no more of it than one of them."""
    offset, part, buffer = 0, 0, b""
    while True:
        piece = stream.read(DOCUMENT_BYTES + 1 - len(buffer))
        buffer += piece
        if piece and len(buffer) <= DOCUMENT_BYTES:
            continue
        if not buffer:
            return
        cut = _cut(buffer) if piece else len(buffer)
        content, buffer = buffer[:cut], buffer[cut:]
        text = decode(content, source, offset, faults)
        num_bytes = len(text.encode()) if REPLACEMENT in text else cut
        yield Document(text, f"{source}#{part + 1}" if part else source, position._replace(part=part), num_bytes)
        offset, part = offset + cut, part + 1


def _cut(buffer: bytes) -> int:
    """Where to end a part: after the last line's end, or else before the character that would not fit."""
    newline = buffer.rfind(b"\n", 0, DOCUMENT_BYTES)
    if newline >= 0:
        return newline + 1
    cut = DOCUMENT_BYTES
    while cut > DOCUMENT_BYTES - 3 and buffer[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def decode(data: bytes, where: str, offset: int, faults: Faults) -> str:
    """The text that some UTF-8 is, which lies `offset` bytes into its stream; faults in it are met."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        fault = f"{where}: not UTF-8 text at byte {offset + error.start} ({data[error.start]:#04x})"
        text = data.decode(errors="replace")
        count = text.count(REPLACEMENT) - data.count(REPLACEMENT.encode())
        faults.meet("places that are not UTF-8 were replaced", fault, count)
        return text
