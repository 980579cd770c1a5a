"""Does the modelled allocator use its gaps, join them, and never give the same place twice?"""

from hypothesis import given, settings
from hypothesis import strategies as st

from moeut.training.heap import FIRST_THRESHOLD, LAST_THRESHOLD, Heap


def test_gaps_are_used_joined_and_too_small_by_hand():
    heap = Heap()
    a, b, c, d = (heap.allocate(size) for size in (100, 200, 64, 64))
    assert (a, b, c, d) == ((0, 128), (128, 384), (384, 448), (448, 512))
    heap.free(a, 100)
    heap.free(c, 64)
    assert heap.allocate(60) == (384, 448)  # the smaller gap
    assert heap.allocate(129) == (512, 704)  # which the one of 128 is not
    heap.free(b, 200)
    assert heap.gaps == [(0, 384)]
    assert heap.allocate(300) == (0, 320)
    assert (heap.gaps, heap.top, heap.peak) == ([(320, 384)], 704, 704)


def test_a_gap_at_the_top_grows():
    heap = Heap()
    kept, freed = heap.allocate(64), heap.allocate(64)
    heap.free(freed, 64)
    assert heap.allocate(640) == (64, 704)
    assert (kept, heap.gaps, heap.peak) == ((0, 64), [], 704)


def test_large_blocks_get_pages_of_their_own_until_one_was_given_back():
    heap = Heap()
    first = heap.allocate(FIRST_THRESHOLD)
    assert (first, heap.mapped, heap.top) == (None, FIRST_THRESHOLD, 0)
    heap.free(first, FIRST_THRESHOLD)
    assert (heap.mapped, heap.peak) == (0, FIRST_THRESHOLD)
    assert heap.allocate(FIRST_THRESHOLD - 64) == (0, FIRST_THRESHOLD - 64)
    for _ in range(2):
        huge = heap.allocate(LAST_THRESHOLD + 1)
        assert huge is None
        heap.free(huge, LAST_THRESHOLD + 1)
    assert heap.threshold == FIRST_THRESHOLD


def test_much_at_the_top_goes_back():
    heap = Heap()
    blocks = [heap.allocate(FIRST_THRESHOLD // 2) for _ in range(5)]
    for block in blocks:
        heap.free(block, FIRST_THRESHOLD // 2)
    assert (heap.top, heap.gaps, heap.peak) == (0, [], 5 * FIRST_THRESHOLD // 2)


def test_nothing_takes_no_place():
    heap = Heap()
    heap.free(heap.allocate(0), 0)
    assert (heap.top, heap.mapped, heap.peak, heap.gaps) == (0, 0, 0, [])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * FIRST_THRESHOLD), st.integers(0, 5)), max_size=60))
def test_no_place_is_given_twice_and_all_of_it_is_blocks_and_gaps(history: list[tuple[int, int]]):
    """Each entry: a block is made, and after it so many of the oldest even or odd ones are given back."""
    heap, blocks = Heap(), []
    for size, oldest in history:
        blocks.append((heap.allocate(size), size))
        for _ in range(min(oldest // 2, len(blocks))):
            heap.free(*blocks.pop(oldest % 2 if len(blocks) > 1 else 0))
        inside = sorted([block for block, _ in blocks if block] + heap.gaps)
        assert [begin for begin, _ in inside] == [0, *(end for _, end in inside)][: len(inside)]
        assert (inside[-1][1] if inside else 0) == heap.top
        assert all(left[1] < right[0] for left, right in zip(heap.gaps, heap.gaps[1:], strict=False))
        assert heap.peak >= sum(size for _, size in blocks)
