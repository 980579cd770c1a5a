"""Are the bytes that a configuration states those that a built model takes?"""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from moeut.model.footprint import activation_bytes, cache_bytes_per_token, weight_bytes
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.presets import PRESETS, preset

TINY = [name for name in PRESETS if name.endswith("tiny")]
BATCH, LENGTH = 2, 96


def kept_bytes(config: ModelConfig, dtype: torch.dtype, length: int = LENGTH, *, checkpointing: bool = False) -> int:
    """What autograd keeps of one forward pass, each piece of memory once, parameters left out."""
    model = LanguageModel(replace(config, expert_backend="cpu")).to(dtype)
    model.stack.gradient_checkpointing = checkpointing
    storages = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)
        return tensor

    tokens = torch.randint(config.vocab_size, (BATCH, length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, tokens)
    return sum(storages.values())


@pytest.mark.parametrize("name", TINY)
def test_activations_are_what_autograd_keeps(name: str):
    config = preset(name)
    stated = activation_bytes(config, LENGTH, BATCH)
    assert stated == pytest.approx(kept_bytes(config, torch.float32), rel=0.01)
    assert activation_bytes(config, LENGTH, 2 * BATCH) == pytest.approx(2 * stated, rel=0.03)


@pytest.mark.parametrize("name", ["tiny", "moeut-pre-tiny", "sigma-moe-plain-tiny", "dense-tiny", "ut-act-tiny"])
def test_activations_of_16_bit_models(name: str):
    """Routers' weights are kept in float32 for every application, a part that shrinks with the number of tokens."""
    config = preset(name)
    kept = kept_bytes(config, torch.bfloat16, length=512)
    assert activation_bytes(config, 512, BATCH, torch.bfloat16) == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("name", TINY)
def test_recomputing_keeps_what_goes_into_each_layer_and_one_layer_whole(name: str):
    config = preset(name)
    # One repeat more keeps the layers of one group more.
    repeats = [activation_bytes(config.with_repeats(number), LENGTH, BATCH) for number in (1, 2)]
    layer = (repeats[1] - repeats[0]) // config.group_size
    kept = kept_bytes(config, torch.float32, checkpointing=True)
    stated = activation_bytes(config, LENGTH, BATCH, gradient_checkpointing=True)
    assert stated == pytest.approx(kept + layer, rel=0.1)
    assert stated < 0.8 * activation_bytes(config, LENGTH, BATCH)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_cache_are_what_a_built_model_has(name: str, dtype: torch.dtype):
    config = preset(name)
    model = LanguageModel(config).to(dtype).eval()
    assert weight_bytes(config, dtype) == sum(parameter.nbytes for parameter in model.parameters())
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.randint(config.vocab_size, (1, 7)), cache=cache)
    nothing = torch.empty(0, dtype=dtype)
    slots = [cache.update(nothing, nothing, number) for number in range(config.num_hidden_layers)]
    assert 7 * cache_bytes_per_token(config, dtype) == sum(tensor.nbytes for slot in slots for tensor in slot)


def test_by_hand():
    """A dense layer: 4·8 around norms, 5·6 of attention, 20 hidden; 4 + 2 in float32. Ends: 2·8, and 11 in float32."""
    config = replace(
        preset("dense-tiny"), vocab_size=11, hidden_size=8, num_hidden_layers=3, group_size=3,
        attention=replace(preset("dense-tiny").attention, num_attention_heads=2, head_dim=3),
        feed_forward=replace(preset("dense-tiny").feed_forward, intermediate_size=20),
    )  # fmt: skip
    layer, ends = 4 * (32 + 30 + 20 + 4 + 2), 4 * (16 + 11)
    assert activation_bytes(config, 5) == 5 * (3 * layer + ends)
    assert activation_bytes(config, 5, gradient_checkpointing=True) == 5 * (3 * 4 * 8 + layer + ends)
    assert activation_bytes(config, 5, dtype=torch.float16) == 5 * (3 * (2 * 82 + 4 * 6) + 2 * 16 + 4 * 11)
    assert cache_bytes_per_token(config, torch.float16) == 2 * 3 * 6 * 2
