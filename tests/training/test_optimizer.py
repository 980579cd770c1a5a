"""Does every parameter get the weight decay of its role, and is the update AdamW's?"""

import re

import pytest
import torch
from tiny_run import tiny_model

from moeut.model.attention import DenseAttentionConfig
from moeut.model.attention_experts import AttentionExpertsConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.halting import ActConfig
from moeut.model.language_model import LanguageModel
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.presets import PRESETS
from moeut.training.optimizer import OptimizerConfig, build_optimizer, parameter_role

DENSE = tiny_model(
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=8, output_gate=True),
    feed_forward=MLPConfig(intermediate_size=24),
    tie_word_embeddings=True,
)


def decay_of(model: LanguageModel, config: OptimizerConfig) -> dict[str, float]:
    groups = build_optimizer(model, config).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: decays[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("config", [tiny_model(), DENSE], ids=["moe", "dense"])
def test_matrices_decay(config):
    decays = decay_of(LanguageModel(config), OptimizerConfig(weight_decay=0.3))
    assert set(decays.values()) == {0.0, 0.3}
    names = {name: re.sub(r"^stack\.layers\.\d\.", "", name) for name in decays}
    decaying = {names[name] for name, decay in decays.items() if decay}
    resting = {names[name] for name, decay in decays.items() if not decay}
    norms = {f"{part}_norm.{kind}" for part in ("attention", "feed_forward") for kind in ("weight", "bias")}
    outer = {"embedding.weight", "norm.weight", "norm.bias", "lm_head.bias"}
    if config is DENSE:
        assert decaying == {f"attention.{x}_proj.weight" for x in "qkvo"} | {
            "feed_forward.up_proj.weight", "feed_forward.down_proj.weight",
        }  # fmt: skip
        assert resting == norms | outer | {
            "attention.gate_proj.weight", "feed_forward.up_proj.bias", "feed_forward.down_proj.bias",
        }  # fmt: skip
    else:
        assert decaying == {"lm_head.weight"} | {
            "attention.q_proj.weight", "attention.k_proj.weight", "attention.v_experts", "attention.o_experts",
            "feed_forward.up_experts", "feed_forward.down_experts",
        }  # fmt: skip
        assert resting == norms | outer | {
            "attention.v_router.weight", "attention.o_router.weight", "feed_forward.router.weight",
        }  # fmt: skip


def test_a_rivals_parameters_have_roles():
    """SUT with halting: positions rest with the embedding, gates with the routers; routers' hidden layers decay."""
    config = tiny_model(
        norm="post",
        attention=AttentionExpertsConfig(num_attention_heads=2, head_dim=4, num_experts=3),
        feed_forward=SoftmaxMoEConfig(num_experts=4, moe_intermediate_size=8),
        halting=ActConfig(),
    )
    roles = {name: parameter_role(name) for name, _ in LanguageModel(config).named_parameters()}
    layer, gate = "stack.layers.1.", "stack.halting_gates.1."
    assert {name: roles[name] for name in roles if name.startswith(gate)} == {
        gate + "hidden_proj.weight": "matrix", gate + "hidden_proj.bias": "bias", gate + "gate_proj.weight": "router",
    }  # fmt: skip
    inside = {name.removeprefix(layer): role for name, role in roles.items() if name.startswith(layer)}
    attention, moe = "attention.", "feed_forward."
    assert {name for name, role in inside.items() if role == "expert"} == {
        attention + "q_experts", attention + "o_experts", moe + "up_experts", moe + "down_experts",
    }  # fmt: skip
    assert {name for name, role in inside.items() if role == "router"} == {
        part + "router.weight" for part in (attention, moe)
    }
    assert {name for name, role in inside.items() if role == "matrix"} == {
        attention + "k_proj.weight", attention + "v_proj.weight",
        attention + "router.hidden_proj.weight", moe + "router.hidden_proj.weight",
    }  # fmt: skip
    assert inside[attention + "relative_embedding.weight"] == "embedding"
    assert inside[moe + "up.bias"] == inside[moe + "down.bias"] == inside[moe + "router.hidden_proj.bias"] == "bias"


def test_everything_decays_as_in_the_paper():
    decays = decay_of(LanguageModel(tiny_model()), OptimizerConfig(weight_decay=0.01, decay="all"))
    assert set(decays.values()) == {0.01}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_of_every_preset_has_a_role(preset):
    with torch.device("meta"):
        model = LanguageModel(PRESETS[preset].model)
    assert {parameter_role(name) for name, _ in model.named_parameters()} >= {"embedding", "norm", "bias", "matrix"}
    # The same inside MoEUTForCausalLM.
    assert all(parameter_role(f"model.{name}") == parameter_role(name) for name, _ in model.named_parameters())


def test_a_name_without_a_role_is_refused():
    with pytest.raises(ValueError, match=r"layers\.0\.novelty: no role is known"):
        parameter_role("layers.0.novelty")


def test_two_updates_by_hand():
    """w ← w(1 − ηλ) − η·m̂/(√v̂ + ε), m̂ and v̂ the bias-corrected means of g and g²."""
    model = LanguageModel(tiny_model()).double()
    config = OptimizerConfig(learning_rate=0.1, adam_beta1=0.5, adam_beta2=0.75, adam_epsilon=1e-3, weight_decay=0.2)
    optimizer = build_optimizer(model, config)
    w = model.lm_head.weight
    first, second = torch.randn_like(w), torch.randn_like(w)
    expected = w.detach().clone()
    expected = expected * (1 - 0.02) - 0.1 * first / (first.abs() + 1e-3)
    mean = (0.25 * first + 0.5 * second) / 0.75
    square = (0.75 * 0.25 * first**2 + 0.25 * second**2) / (1 - 0.75**2)
    expected = expected * (1 - 0.02) - 0.1 * mean / (square.sqrt() + 1e-3)
    for gradient in (first, second):
        w.grad = gradient
        optimizer.step()
    torch.testing.assert_close(w.detach(), expected)
