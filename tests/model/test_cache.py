"""Do transformers' caches meet the protocol, one slot for every executed layer?"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, PreTrainedConfig, StaticCache

from moeut.model.attention import DenseAttentionConfig
from moeut.model.cache import Cache, CacheSlot
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=4,
    group_size=2,
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=4),
    feed_forward=SigmaMoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=4),
)
LENGTH, ROOM = 6, 9


class Recorder:
    """The least that the protocol asks for."""

    def __init__(self) -> None:
        self.keys: dict[int, list[Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.keys.setdefault(layer_idx, []).append(key_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def test_every_executed_layer_has_a_slot_of_its_own():
    """A repeated layer's keys differ from repeat to repeat, so its weights share no slot."""
    cache: Cache = Recorder()
    LanguageModel(CONFIG)(torch.zeros(1, LENGTH, dtype=torch.long), cache=cache)
    assert isinstance(cache, Recorder)
    assert sorted(cache.keys) == [0, 1, 2, 3]
    assert all(len(keys) == 1 and keys[0].shape == (1, 2, LENGTH, 4) for keys in cache.keys.values())
    assert not torch.equal(cache.keys[0][0], cache.keys[2][0])


def test_a_slot_extends_its_own_layer_only():
    cache = DynamicCache()
    first, second = torch.randn(2, 1, 2, 3, 4)
    for number in (0, 1):
        CacheSlot(cache, number).extend(first, first)
    key, value = CacheSlot(cache, 1).extend(second, -second)
    assert torch.equal(key, torch.cat([first, second], dim=2))
    assert torch.equal(value, torch.cat([first, -second], dim=2))
    assert cache.get_seq_length(0) == 3
    assert cache.get_seq_length(1) == 6


@pytest.mark.parametrize("chunks", [[LENGTH], [2, 4], [1] * LENGTH])
def test_a_static_cache_with_a_ready_mask_equals_the_full_forward(chunks: list[int]):
    """A preallocated cache always returns its whole length, so its user says which keys are there."""
    model = LanguageModel(CONFIG).double().eval()
    inputs = torch.randint(11, (2, LENGTH))
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 8, "head_dim": 4}
    cache = StaticCache(PreTrainedConfig.from_dict(sizes), max_cache_len=ROOM)
    logits = []
    for start, stop in [(sum(chunks[:i]), sum(chunks[: i + 1])) for i in range(len(chunks))]:
        visible = torch.arange(ROOM) <= torch.arange(start, stop)[:, None]
        logits.append(model(inputs[:, start:stop], attention_mask=visible[None, None], cache=cache).logits)
    assert_close(torch.cat(logits, dim=1), model(inputs).logits, rtol=1e-9, atol=1e-12)
