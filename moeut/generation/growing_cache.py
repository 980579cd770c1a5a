"""Where do keys and values lie while a text grows? In memory with room for what comes, so that no step copies them all.

transformers' own caches either copy everything for each new token (`DynamicCache`), or let every token look at all the
memory there is, and mask what is not used yet (`StaticCache`). Letters: B batch, H heads, N tokens held, P head size.
"""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SMALLEST = 256


class GrowingTensor:
    """A tensor [B, H, N, P] to which tokens are appended. When its memory is full, it moves to half as much again."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._held: Tensor | None = None

    def append(self, held: Tensor, num_held: int, new: Tensor) -> Tensor:
        """Append to what the last call returned, or to anything else: held [B, H, N, P], new [B, H, T, P].

        num_held: N; where it is 0, the shape of `held` does not matter. Returns [B, H, N + T, P], a view of the memory.
        """
        end = num_held + new.shape[2]
        memory = self._memory
        if memory is None or held is not self._held or end > memory.shape[2]:
            memory = new.new_empty(*new.shape[:2], max(SMALLEST, end + end // 2), new.shape[3])
            if num_held:
                memory[:, :, :num_held] = held
        memory[:, :, num_held:end] = new
        self._memory, self._held = memory, memory[:, :, :end]
        return self._held


class GrowingLayer(DynamicLayer):
    """One slot of a cache: `DynamicLayer`, but appending copies the new tokens only. Not for training."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._growing = GrowingTensor(), GrowingTensor()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, P]; returns all [B, H, N + T, P]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        num_held = self.get_seq_length()
        keys, values = self._growing
        self.keys = keys.append(self.keys, num_held, key_states)
        self.values = values.append(self.values, num_held, value_states)
        return self.keys, self.values


def growing_cache(num_slots: int) -> Cache:
    """An empty cache with so many slots, one for every executed layer."""
    return Cache(layers=[GrowingLayer() for _ in range(num_slots)])
