"""Are official names mapped strictly? What the numbers come to is tests/test_parity.py."""

import pytest
import torch

from moeut.hf.official import from_official


def test_a_single_experts_names_are_told_apart_by_dimensions():
    single = {
        "transformer.layers.0.attention.v": torch.zeros(6, 4),
        "transformer.layers.0.attention.o": torch.zeros(4, 6),
        "transformer.layers.0.attention.sel_o": torch.zeros(2, 4),
    }
    several = {
        "transformer.layers.0.attention.v": torch.zeros(6, 4, 3),
        "transformer.layers.0.attention.o": torch.zeros(6, 3, 4),
        "transformer.layers.0.attention.sel_o": torch.zeros(6, 4),
    }
    prefix = "stack.layers.0.attention."
    assert set(from_official(single)) == {
        prefix + "v_proj.weight",
        prefix + "o_proj.weight",
        prefix + "gate_proj.weight",
    }
    assert set(from_official(several)) == {prefix + "v_experts", prefix + "o_experts", prefix + "o_router.weight"}


def test_fused_keys_and_values_are_split_keys_first():
    fused = torch.arange(12.0).view(6, 2)
    ours = from_official({"unique_layers.3.self_attn.data_to_kv.weight": fused})
    assert torch.equal(ours["stack.layers.3.attention.k_proj.weight"], fused[:3])
    assert torch.equal(ours["stack.layers.3.attention.v_proj.weight"], fused[3:])


def test_counters_are_dropped_and_unknown_names_listed():
    assert from_official({"unique_layers.0.pkm.iter": torch.tensor(3)}) == {}
    with pytest.raises(ValueError, match=r"unique_layers\.0\.pkm\.bias, something\.else"):
        from_official({"unique_layers.0.pkm.bias": torch.zeros(1), "something.else": torch.zeros(1)})
