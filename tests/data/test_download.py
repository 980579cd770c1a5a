"""Reading over a network that fails: every byte once, in order, and one line when there is no hope."""

import gzip
import io
import random
from collections.abc import Iterator

import pytest
from hub_server import COMMIT, Answers, Hub, Resets, Stalls, serving

from moeut.data.download import Patience, RemoteStream

GAVE_UP = r"^content\.bin: gave up after 5 tries \(the Hub answers 500\); try again later$"
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub({"content.bin": CONTENT})) as hub:
        yield hub


class Reader:
    """A stream of the hub's file, what it says and how long it would have slept."""

    def __init__(self, hub: Hub, tries: int = 8, timeout_seconds: float = 5.0):
        self.notices: list[str] = []
        self.slept: list[float] = []
        patience = Patience(tries, timeout_seconds, self.slept.append)
        url = f"{hub.endpoint}/datasets/{hub.dataset}/resolve/{COMMIT}/content.bin"
        self.stream = RemoteStream(url, {}, len(CONTENT), "content.bin", patience, self.notices.append)

    def read(self) -> bytes:
        with io.BufferedReader(self.stream, 2**16) as file:
            return file.read()


def test_an_undisturbed_read_asks_once(hub: Hub) -> None:
    reader = Reader(hub)
    assert reader.read() == CONTENT
    assert len(hub.requests) == 1
    assert not reader.notices


def test_every_kind_of_failure_is_got_over(hub: Hub) -> None:
    hub.faults["content.bin"] = [
        Answers(500),
        Resets(70_000),
        Resets(1),
        Resets(0),
        Answers(429, retry_after=7),
        Stalls(50_000),
        Resets(100_000, politely=True),
        Answers(503),
    ]
    reader = Reader(hub, timeout_seconds=0.3)
    assert reader.read() == CONTENT
    assert len(hub.requests) == 9
    assert len(reader.notices) == len(reader.slept) == 8
    assert reader.notices[0] == "content.bin: the Hub answers 500; trying again in 1 s"
    assert all(line.startswith("content.bin: ") and "trying again in" in line for line in reader.notices)
    assert 7.0 in reader.slept


def test_waits_double_until_something_comes(hub: Hub) -> None:
    hub.faults["content.bin"] = [*[Answers(500)] * 4, Resets(60_000, politely=True), *[Answers(502)] * 2]
    reader = Reader(hub)
    assert reader.read() == CONTENT
    assert reader.slept == [1, 2, 4, 8, 1, 2, 4]


def test_a_server_that_knows_no_ranges(hub: Hub) -> None:
    hub.knows_ranges = False
    hub.faults["content.bin"] = [Resets(123_456), Resets(150_000), Resets(10)]
    assert Reader(hub).read() == CONTENT


def test_it_gives_up_in_one_line(hub: Hub) -> None:
    hub.faults["content.bin"] = [Resets(100_000, politely=True), *[Answers(500)] * 9]
    reader = Reader(hub, tries=5)
    pieces: list[bytes] = []
    with reader.stream as stream, pytest.raises(ValueError, match=GAVE_UP):
        pieces.extend(iter(lambda: stream.read(1000), b""))
    got = b"".join(pieces)
    assert got == CONTENT[: len(got)]
    assert len(got) > 0
    assert len(reader.slept) == 4


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "hf auth login"), (403, "hf auth login"), (404, "check the name"), (410, "does not pass")],
)
def test_a_refusal_is_final(hub: Hub, status: int, advice: str) -> None:
    hub.faults["content.bin"] = [Resets(5000), Answers(status)]
    reader = Reader(hub)
    with pytest.raises(ValueError, match=rf"^content\.bin: the Hub answers {status}; .*{advice}"):
        reader.read()
    assert len(hub.requests) == 2


def test_a_server_that_is_not_there() -> None:
    with serving(Hub({"content.bin": CONTENT})) as hub:
        reader = Reader(hub, tries=3)
    with pytest.raises(ValueError, match=r"^content\.bin: gave up after 3 tries"):
        reader.read()
    assert reader.slept == [1, 2]


def test_seeking(hub: Hub) -> None:
    with Reader(hub).stream as stream:
        assert stream.seek(-10, io.SEEK_END) == len(CONTENT) - 10
        assert stream.read(100) == CONTENT[-10:]
        assert stream.read(1) == b""
        assert stream.seek(1000) == stream.tell() == 1000
        assert stream.read(5) == CONTENT[1000:1005]
        assert stream.seek(5, io.SEEK_CUR) == 1010
        assert stream.read(5) == CONTENT[1010:1015]


def test_an_unpacker_never_notices() -> None:
    text = b"".join(b"line %d\n" % number for number in range(50_000))
    with serving(Hub({"content.bin": gzip.compress(text)})) as hub:
        hub.faults["content.bin"] = [Resets(after) for after in (1, 10, 20_000, 3, 40_000)]
        reader = Reader(hub)
        reader.stream.size = len(hub.files["content.bin"])
        assert gzip.decompress(reader.read()) == text
    assert len(reader.notices) == 5
