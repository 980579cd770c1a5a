"""How does a run end early without losing anything? A first Ctrl-C or SIGTERM is noted, and the loop ends by itself."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SECONDS = 1.0
"""Signals that come so soon after the first are the same one: torchrun passes a Ctrl-C on that its processes have had
from the terminal already."""


class Interruption:
    """Which signal has asked the run to end; nothing is received while nobody has."""

    received: signal.Signals | None = None


@contextmanager
def interruption() -> Iterator[Interruption]:
    """While inside, SIGINT and SIGTERM are noted once; a second one, a second later, acts as it would have before.

    Outside the main thread, where Python lets nobody listen to signals, nothing is noted.
    """
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if noted.received is None:
            noted.received, first = signal.Signals(number), time.monotonic()
        elif time.monotonic() - first >= SAME_SECONDS:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    first = 0.0
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
