"""Packed files are unpacked whoever packed them, and damage to them is one line."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import pyarrow
import pytest

from moeut.data.formats import form, is_packed, unpack

TEXT = b"".join(b"line %d\n" % number for number in range(30_000))


def zstandard(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}
by_packer = pytest.mark.parametrize(("suffix", "pack"), PACKERS.items(), ids=PACKERS)


def content(data: bytes, name: str) -> bytes:
    with unpack(io.BytesIO(data), name) as stream:
        return b"".join(stream)


@by_packer
def test_what_was_packed_comes_back(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    assert content(pack(TEXT), f"a{suffix}") == TEXT
    assert content(pack(TEXT), f"A{suffix.upper()}") == TEXT
    assert content(pack(TEXT) + pack(b"more"), f"a{suffix}") == TEXT + b"more"  # as `cat a.gz b.gz` makes them
    assert content(pack(b""), f"a{suffix}") == b""


def test_what_is_not_packed_is_left_alone() -> None:
    stream = io.BytesIO(TEXT)
    assert unpack(stream, "a.txt") is stream


@by_packer
@pytest.mark.parametrize("share", [0.3, 0.9999])
def test_an_archive_cut_short(suffix: str, pack: Callable[[bytes], bytes], share: float) -> None:
    data = pack(TEXT)
    with pytest.raises(ValueError, match=rf"^a{suffix}: the archive is damaged or cut short \(.+\)$"):
        content(data[: int(share * len(data))], f"a{suffix}")


@by_packer
def test_an_archive_that_is_none(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=rf"^a{suffix}: the archive is damaged"):
        content(b"plain text, and nothing else", f"a{suffix}")


@by_packer
def test_an_archive_with_other_bytes_in_it(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    data = bytearray(pack(TEXT))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    with pytest.raises(ValueError, match=rf"^a{suffix}: the archive is damaged"):
        content(bytes(data), f"a{suffix}")


@by_packer
def test_the_disk_is_not_the_archive(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        unpack(io.BufferedReader(Broken()), f"a{suffix}").read()


@pytest.mark.parametrize(
    ("name", "expected", "packed"),
    [
        ("a.txt", ".txt", False),
        ("A.JSONL", ".jsonl", False),
        ("en/c4-train.00000-of-01024.json.gz", ".json", True),
        ("a.tar.xz", ".tar", True),
        ("Makefile", "", False),
        ("Makefile.gz", "", True),
    ],
)
def test_suffixes(name: str, expected: str, packed: bool) -> None:
    assert (form(name), is_packed(name)) == (expected, packed)
