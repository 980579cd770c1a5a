"""How does reading go on while what was read is worked on?  In a thread of its own, a few items ahead."""

import threading
from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")


class _End:
    """There are no more items."""


def ahead(items: Generator[Item], count: int = 2) -> Generator[Item]:
    """The same items, at most `count` of which are made before they are asked for; what making them raises, it raises.

    The thread ends with this iterator; where it waits for something slow at that moment, nobody waits for it.
    """
    made: SimpleQueue[Item | BaseException | _End] = SimpleQueue()
    wanted = threading.Semaphore(count)
    abandoned = threading.Event()

    def make() -> None:
        with closing(items):
            try:
                for item in items:
                    made.put(item)
                    wanted.acquire()
                    if abandoned.is_set():
                        return
                made.put(_End())
            except BaseException as error:
                made.put(error)

    threading.Thread(target=make, daemon=True, name="moeut-ahead").start()
    try:
        while True:
            match made.get():
                case _End():
                    return
                case BaseException() as error:
                    raise error
                case item:
                    wanted.release()
                    yield item
    finally:
        abandoned.set()
        wanted.release()
