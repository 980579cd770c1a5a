"""How is a file read over a network that fails?  As a stream that goes on where it broke off, and says so.

Reconnecting happens below everything that unpacks and reads the stream, so documents are those of an undisturbed read.
"""

import io
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from moeut.data.documents import Notice

# The base of all errors of the HTTP library beneath huggingface_hub, which is another one in each of its versions.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
TRANSIENT_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
MAX_WAIT_SECONDS = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often in a row something is tried, how long without a byte counts as a failure, and how waiting is done.

    The waits between tries are 1, 2, 4 … seconds, and never shorter than the server asks for, up to five minutes each.
    """

    tries: int = 8
    timeout_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep


PATIENT = Patience()


def patiently(action: Callable[[], T], what: str, patience: Patience, notice: Notice) -> T:
    """The result of an action that needs the network, tried again while it fails in a way that may pass.

    Raises:
        ValueError: the server refuses for good, or the tries are used up; names `what`, the reason and what to do.
    """
    for failed in itertools.count(1):
        try:
            return action()
        except OfflineModeIsEnabled as error:
            raise ValueError(f"{what}: needs the Hub, and HF_HUB_OFFLINE is set; unset it") from error
        except (OSError, HTTPError) as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code not in TRANSIENT_STATUSES:
                raise ValueError(f"{what}: {_refusal(response.status_code)}") from error
            reason = _reason(error, response)
            if failed == patience.tries:
                raise ValueError(f"{what}: gave up after {failed} tries ({reason}); try again later") from error
            wait = min(max(2.0 ** (failed - 1), _asked_wait(response)), MAX_WAIT_SECONDS)
            notice(f"{what}: {reason}; trying again in {wait:g} s")
            patience.sleep(wait)
    raise AssertionError


def _refusal(status: int) -> str:
    match status:
        case 401 | 403:
            advice = "log in with `hf auth login`, and accept the terms on the data set's page if it has some"
        case 404:
            advice = "check the name and the revision; if it is private, log in with `hf auth login`"
        case _:
            advice = "this does not pass by waiting"
    return f"the Hub answers {status}; {advice}"


def _reason(error: Exception, response: Any) -> str:
    if response is not None:
        return f"the Hub answers {response.status_code}"
    return str(error).strip().split("\n")[0] or type(error).__name__


def _asked_wait(response: Any) -> float:
    """Seconds that the server asks to wait: `Retry-After: 30`, or, when it counts requests, `RateLimit: …;r=0;t=30`."""
    if response is None:
        return 0.0
    asked = re.fullmatch(r"(\d+)", response.headers.get("Retry-After", "").strip())
    if asked is None and response.status_code == 429:
        asked = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", ""))
    return float(asked[1]) if asked else 0.0


class RemoteStream(io.RawIOBase):
    """The `size` bytes behind a URL; seekable. After a failure it is opened anew at the byte that was reached."""

    def __init__(self, url: str, headers: dict[str, str], size: int, name: str, patience: Patience, notice: Notice):
        self.url, self.headers, self.size, self.name = url, headers, size, name
        self.patience, self.notice = patience, notice
        self.position = 0
        self.connection = ExitStack()
        self.chunks: Iterator[bytes] | None = None
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, by asking the server anew."""
        return True

    def tell(self) -> int:
        """Bytes before what is read next."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes elsewhere; the connection is closed, and opened there when something is read."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if position != self.position:
            self._disconnect()
            self.position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Reads what has come, at least a byte unless at the end. Raises ValueError as `patiently` does."""
        if not self.rest and self.position < self.size:
            self.rest = memoryview(patiently(self._receive, self.name, self.patience, self.notice))
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        self.position += count
        return count

    def close(self) -> None:
        """Ends the connection."""
        self._disconnect()
        super().close()

    def _receive(self) -> bytes:
        """What comes next, at least a byte."""
        try:
            if self.chunks is None:
                self.chunks = self._connect()
            for chunk in self.chunks:
                if chunk:
                    return chunk
            raise ConnectionError(f"the connection ended at byte {self.position} of {self.size}")
        except BaseException:
            self._disconnect()
            raise

    def _connect(self) -> Iterator[bytes]:
        headers = {**self.headers, "Accept-Encoding": "identity", "Range": f"bytes={self.position}-"}
        request = get_session().stream("GET", self.url, headers=headers, timeout=self.patience.timeout_seconds)
        response = self.connection.enter_context(request)
        response.raise_for_status()
        chunks = response.iter_raw()
        return chunks if response.status_code == 206 else _from(self.position, chunks)

    def _disconnect(self) -> None:
        self.connection.close()
        self.chunks, self.rest = None, memoryview(b"")


def _from(position: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks without their first `position` bytes: for a server that does not know ranges."""
    for chunk in chunks:
        yield chunk[position:]
        position = max(0, position - len(chunk))
