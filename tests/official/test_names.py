"""Are official names mapped strictly? What the numbers come to is tests/test_parity.py."""

import re

import pytest
import torch

from moeut.model.attention import DenseAttentionConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.official.names import from_official, to_official


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


def test_a_rivals_names():
    """The Sparse Universal Transformer's, deeper by `mod.` where it halts, and σ-MoE's biases."""
    names = {
        "unique_layers.0.mod.self_attn.q_proj.experts.w": "layers.0.attention.q_experts",
        "unique_layers.1.self_attn.q_proj.w_gate.3.weight": "layers.1.attention.router.weight",
        "unique_layers.0.mod.moe.output_experts.b": "layers.0.feed_forward.down.bias",
        "unique_layers.0.mod.final_layer_norm.bias": "layers.0.feed_forward_norm.bias",
        "unique_layers.2._gate.3.weight": "halting_gates.2.gate_proj.weight",
        "unique_layers.2.pkm.o_bias": "layers.2.feed_forward.bias",
        "unique_layers.2.pkm.sel_bias": "layers.2.feed_forward.router.bias",
    }
    weights = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    ours = from_official(weights)
    assert ours == {f"stack.{name}": weights[official] for official, name in names.items()}


def test_counters_are_dropped_and_unknown_names_listed():
    assert from_official({"unique_layers.0.pkm.iter": torch.tensor(3)}) == {}
    with pytest.raises(ValueError, match=r"unique_layers\.0\.pkm\.oddity, something\.else"):
        from_official({"unique_layers.0.pkm.oddity": torch.zeros(1), "something.else": torch.zeros(1)})


def test_of_many_unknown_names_the_first_are_listed_and_the_others_counted():
    others = {f"h.{layer}.attn.weight": torch.zeros(1) for layer in range(148)}
    with pytest.raises(ValueError, match=r"rivals: h\.0\.attn\.weight, .*, h\.9\.attn\.weight, and 138 more$"):
        from_official(others)


def test_a_name_said_in_both_ways_is_refused():
    with pytest.raises(ValueError, match=r"rivals: output\.bias$"):
        from_official({"lm_head.bias": torch.zeros(3), "output.bias": torch.zeros(3)})


@pytest.mark.parametrize("single", [True, False])
def test_there_and_back(single: bool):
    """To the release's names and back: every weight of a model, and every weight of the release."""
    attention = (
        DenseAttentionConfig(num_attention_heads=2, head_dim=4, output_gate=True)
        if single
        else SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=3)
    )
    feed_forward = SigmaMoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=3)
    config = ModelConfig(
        vocab_size=7, hidden_size=6, num_hidden_layers=4, group_size=2, attention=attention, feed_forward=feed_forward
    )
    ours = LanguageModel(config).state_dict()
    official = to_official(ours)
    assert official.keys() >= {"embedding.weight", "out_norm.bias", "lm_head.bias"}
    names = {"q.weight", "k.weight", "v", "o", "sel_o"} | (set() if single else {"sel_v"})
    inside = {f"attention.{name}" for name in names} | {"ffn.keys", "ffn.values", "ffn.expert_sel"}
    inside |= {f"{norm}.{leaf}" for norm in ("ln1", "ln2") for leaf in ("weight", "bias")}
    for layer in (0, 1):
        prefix = f"transformer.layers.{layer}."
        assert {name.removeprefix(prefix) for name in official if name.startswith(prefix)} == inside
    back = from_official(official)
    assert back.keys() == ours.keys()
    assert all(back[name] is tensor for name, tensor in ours.items())


def test_what_the_release_has_no_name_for():
    names = ["stack.layers.0.feed_forward.up.bias", "stack.halting_gates.0.gate_proj.weight", "norm.scale"]
    with pytest.raises(ValueError, match=f"no such weights: {', '.join(map(re.escape, names))}$"):
        to_official({"embedding.weight": torch.zeros(1), **dict.fromkeys(names, torch.zeros(1))})


def test_fused_keys_and_values_of_no_shape_are_unknown():
    with pytest.raises(ValueError, match=r"rivals: unique_layers\.0\.self_attn\.data_to_kv\.weight$"):
        from_official({"unique_layers.0.self_attn.data_to_kv.weight": torch.tensor(1.0)})
