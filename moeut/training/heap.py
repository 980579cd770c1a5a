"""How much does an allocator take for tensors that come and go? Gaps between those that stay count too.

Modelled on glibc's malloc, which PyTorch uses on Linux: the smallest gap that is large enough is used, neighbouring
gaps become one, and what fits nowhere goes to the top. Large blocks get pages of their own until one of their size was
given back (mallopt(3), M_MMAP_THRESHOLD).
"""

from bisect import bisect

FIRST_THRESHOLD = 128 * 2**10
LAST_THRESHOLD = 32 * 2**20
ALIGNMENT = 64


class Heap:
    """Blocks in one row from 0 to `top`, and `mapped` bytes of pages outside it; `peak`: the most of both together."""

    def __init__(self) -> None:
        self.top = self.mapped = self.peak = 0
        self.gaps: list[tuple[int, int]] = []  # begin and end, in order, never side by side
        self.threshold = FIRST_THRESHOLD

    def allocate(self, num_bytes: int) -> tuple[int, int] | None:
        """Make room for a block: its begin and end, or None where it gets pages of its own."""
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        block = None
        if 0 < size < self.threshold:
            block = self._in_a_gap(size) or self._at_the_top(size)
        else:
            self.mapped += num_bytes
        self.peak = max(self.peak, self.top + self.mapped)
        return block

    def free(self, block: tuple[int, int] | None, num_bytes: int) -> None:
        """Take back what `allocate` gave for so many bytes."""
        if block is None:
            self.mapped -= num_bytes
            if num_bytes <= LAST_THRESHOLD:
                self.threshold = max(self.threshold, num_bytes)
            return
        begin, end = block
        index = bisect(self.gaps, block)
        if index < len(self.gaps) and self.gaps[index][0] == end:
            end = self.gaps.pop(index)[1]
        if index > 0 and self.gaps[index - 1][1] == begin:
            index -= 1
            begin = self.gaps.pop(index)[0]
        if end == self.top and end - begin > 2 * self.threshold:
            self.top = begin  # so much at the top goes back to the system
        else:
            self.gaps.insert(index, (begin, end))

    def _in_a_gap(self, size: int) -> tuple[int, int] | None:
        fitting = [(end - begin, index) for index, (begin, end) in enumerate(self.gaps) if end - begin >= size]
        if not fitting:
            return None
        width, index = min(fitting)
        begin, end = self.gaps.pop(index)
        if width > size:
            self.gaps.insert(index, (begin + size, end))
        return begin, begin + size

    def _at_the_top(self, size: int) -> tuple[int, int]:
        begin = self.gaps.pop()[0] if self.gaps and self.gaps[-1][1] == self.top else self.top
        self.top = begin + size
        return begin, self.top
