"""Protocol buffers are read back as they were written, by a writer of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeut.data.protocol_buffer import last, read_message

FIELDS = st.lists(st.tuples(st.integers(1, 2**20), st.integers(0, 2**64 - 1) | st.binary(max_size=300)), max_size=20)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value >= 0x80 else bytes([value])


def message(fields: list[tuple[int, int | bytes]]) -> bytes:
    return b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )


@given(FIELDS)
def test_read_as_written(fields: list[tuple[int, int | bytes]]) -> None:
    read = read_message(message(fields))
    numbers = {number for number, _ in fields}
    assert read == {number: [value for other, value in fields if other == number] for number in numbers}
    assert all(last(read, number, None) == read[number][-1] for number in numbers)
    assert last(read, 2**21, "silent") == "silent"


def test_by_hand() -> None:
    data = bytes.fromhex("08 96 01 12 07 74 65 73 74 69 6e 67 1d 00 00 80 3f 21 01 02 03 04 05 06 07 08")
    assert read_message(data) == {1: [150], 2: [b"testing"], 3: [b"\0\0\x80\x3f"], 4: [bytes(range(1, 9))]}


@given(FIELDS.filter(bool), st.data())
def test_cut_short(fields: list[tuple[int, int | bytes]], data: st.DataObject) -> None:
    whole = message(fields)
    start = len(message(fields[:-1]))
    cut = data.draw(st.integers(start + 1, len(whole) - 1))
    with pytest.raises(ValueError, match="cut short"):
        read_message(whole[:cut])


def test_something_else() -> None:
    with pytest.raises(ValueError, match="no protocol buffer: a value of kind 3"):
        read_message(b"{")
