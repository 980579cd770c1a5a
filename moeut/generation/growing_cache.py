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

    def lengthen(self, held: Tensor, num_held: int, new: Tensor) -> Tensor:
        """Make room after what the last call returned, or after anything else: held [B, H, N, P], new [B, H, T, P].

        num_held: N; where it is 0, the shape of `held` does not matter. Returns [B, H, N + T, P], a view of the memory,
        in which the last T tokens are not written yet.
        """
        end = num_held + new.shape[2]
        memory = self._memory
        if memory is None or held is not self._held or end > memory.shape[2]:
            memory = new.new_empty(*new.shape[:2], max(SMALLEST, end + end // 2), new.shape[3])
            if num_held:
                memory[:, :, :num_held] = held
        self._memory, self._held = memory, memory.narrow(2, 0, end)
        return self._held


class GrowingLayer(DynamicLayer):
    """One slot of a cache: `DynamicLayer`, but appending copies the new tokens only. Not for training."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._growing = GrowingTensor(), GrowingTensor()

    def lengthen(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Make room for keys and values [B, H, T, P]; returns all [B, H, N + T, P], the last T not written yet."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        num_held = self.get_seq_length()
        keys, values = self._growing
        self.keys = keys.lengthen(self.keys, num_held, key_states)
        self.values = values.lengthen(self.values, num_held, value_states)
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, P]; returns all [B, H, N + T, P]."""
        keys, values = self.lengthen(key_states, value_states)
        num_held = keys.shape[2] - key_states.shape[2]
        keys[:, :, num_held:], values[:, :, num_held:] = key_states, value_states
        return keys, values


class GrowingCache(Cache):
    """A cache of transformers whose slots have room for what comes."""

    def __init__(self, num_slots: int) -> None:
        """An empty cache with so many slots, one for every executed layer."""
        super().__init__(layers=[GrowingLayer() for _ in range(num_slots)])

    def lengthen(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Make room in a slot, as `moeut.model.cache.lengthening` says."""
        layer = self.layers[layer_idx]
        assert isinstance(layer, GrowingLayer)
        return layer.lengthen(key_states, value_states)
