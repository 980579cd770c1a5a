"""What must a key-value cache do? The protocol that transformers' caches meet.

One slot for every executed layer: a layer that is repeated has a slot for each repeat, because its keys and values
differ from repeat to repeat.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Cache(Protocol):
    """Keys and values of the tokens seen so far, one slot for every executed layer."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, P] to a slot and return all that it holds."""
        ...

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Number of tokens that a slot holds."""
        ...


class CacheSlot(NamedTuple):
    """A cache and the slot in it that belongs to one executed layer."""

    cache: Cache
    number: int

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, P]; returns all of this slot's."""
        return self.cache.update(key, value, self.number)


def lengthening(cache: Cache | None) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """The method `lengthen` of a cache that can be written in place, or None.

    It takes what `update` takes, of which it reads shapes and dtypes, and returns what `update` returns, but for the
    new keys and values: the caller writes them there.
    """
    return getattr(cache, "lengthen", None)
