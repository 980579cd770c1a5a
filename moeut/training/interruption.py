"""How does a run end early without losing anything? A first Ctrl-C or SIGTERM is noted, and the loop ends by itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Which signal has asked the run to end; nothing is received while nobody has."""

    received: signal.Signals | None = None


@contextmanager
def interruption() -> Iterator[Interruption]:
    """While inside, SIGINT and SIGTERM are noted once; a second one acts as it would have before.

    Outside the main thread, where Python lets nobody listen to signals, nothing is noted.
    """
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.received = signal.Signals(number)
        restore()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While inside, SIGTERM raises KeyboardInterrupt as Ctrl-C does; `signal_of` tells them apart."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that raised it: Python's own for Ctrl-C bears no number."""
    return interrupt.args[0] if interrupt.args else signal.SIGINT
