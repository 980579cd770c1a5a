"""Items made ahead are the same items; errors arrive in their place, and nobody goes on making what nobody wants."""

import threading
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeut.data.ahead import ahead


def numbers(count: int) -> Generator[int]:
    yield from range(count)


@given(st.integers(0, 20), st.integers(1, 5))
def test_the_same_items_in_order(count: int, depth: int) -> None:
    assert list(ahead(numbers(count), depth)) == list(range(count))


def test_an_error_arrives_after_what_came_before_it() -> None:
    def failing() -> Generator[int]:
        yield 1
        raise ValueError("no more")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_no_more_are_made_than_asked_for() -> None:
    made: list[int] = []
    third = threading.Event()

    def counted() -> Generator[int]:
        for number in range(100):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    items = ahead(counted(), 2)
    assert next(items) == 0
    assert third.wait(10)
    assert len(made) <= 4  # one taken, two waiting, one about to wait
    items.close()


def test_closing_ends_the_making() -> None:
    ended = threading.Event()

    def endless() -> Generator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = ahead(endless())
    assert next(items) == 0
    items.close()
    assert ended.wait(10)
