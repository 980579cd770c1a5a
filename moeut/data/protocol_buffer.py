"""How is a protocol buffer read, without the library and the description that one usually needs for it?

A message is a sequence of numbered fields, any of which may come several times: a tag (the number, and how the value is
written), then the value. What the numbers mean is for the reader to know.
"""

from collections.abc import Iterator
from typing import Any

Fields = dict[int, list[Any]]
"""The values of each field: whole numbers as `int`; numbers of fixed size, texts and messages within as `bytes`."""


def read_message(data: bytes) -> Fields:
    """The fields of a message.

    Raises:
        ValueError: it is none, or is cut short.
    """
    fields: Fields = {}
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def last(fields: Fields, number: int, default: Any) -> Any:
    """The value of a field that is meant to come once; `default` if it does not come."""
    return fields.get(number, [default])[-1]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"no protocol buffer: a value of kind {kind}")
        if at + size > len(data):
            raise ValueError("the protocol buffer is cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte and the lowest first, and where it ends."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("the protocol buffer is cut short")
