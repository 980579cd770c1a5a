"""Does a cache that grows hold what transformers' own would, whatever is done to it, without copying at each step?"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from moeut.generation import growing_cache as cache_module
from moeut.generation.growing_cache import GrowingCache, GrowingTensor

BATCH, HEADS, SIZE = 3, 2, 4


def states(length: int, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, HEADS, length, SIZE), torch.randn(batch, HEADS, length, SIZE + 1)


@given(steps=st.lists(st.tuples(st.sampled_from(["append", "reorder", "crop", "select"]), st.integers(1, 9))))
@settings(deadline=None, max_examples=80)
def test_the_same_as_a_dynamic_cache(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "SMALLEST", 4)
        ours, theirs = GrowingCache(2), DynamicCache()
        batch = BATCH
        for kind, number in [("append", 2), *steps]:
            if kind == "append":
                for slot in range(2):
                    new = states(number, batch)
                    mine = ours.update(*new, slot)
                    expected = theirs.update(*new, slot)
                    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
            for cache in (ours, theirs):
                change(cache, kind, number, batch)
            if kind == "select":
                batch = 2
            assert ours.get_seq_length() == theirs.get_seq_length()
            assert ours.get_mask_sizes(3, 0) == theirs.get_mask_sizes(3, 0)


def change(cache: Any, kind: str, number: int, batch: int) -> None:
    """What beams, assisted generation and finished sequences do to a cache."""
    if kind == "reorder":
        cache.reorder_cache(torch.arange(batch).flip(0))
    elif kind == "crop":
        cache.crop(-min(number, cache.get_seq_length() - 1))
    elif kind == "select":
        cache.batch_select_indices(torch.tensor([0, 1]))


def test_memory_moves_only_when_it_is_full() -> None:
    growing, held, places = GrowingTensor(), torch.empty(0), []
    for number in range(600):
        new = torch.randn(1, 2, 1, 3)
        before, held = held, growing.lengthen(held, number, new)
        assert held.shape == (1, 2, number + 1, 3)
        held[:, :, number:] = new
        assert number == 0 or torch.equal(held[:, :, :number], before)
        places.append(held.data_ptr())
    assert held.shape == (1, 2, 600, 3)
    moves = [number for number in range(1, 600) if places[number] != places[number - 1]]
    assert moves == [256, 385, 579]
