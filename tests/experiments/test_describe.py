"""Is what is said of a model what it costs, and does it fit a terminal?"""

import pytest
import torch

from moeut.experiments.describe import WIDTH, description, dtype_named, lines, table
from moeut.model.cost import cost
from moeut.model.footprint import activation_bytes, cache_bytes_per_token, weight_bytes
from moeut.model.language_model import ModelConfig
from moeut.presets import PRESETS, preset
from moeut.validation import validate


@pytest.mark.parametrize("name", ["moeut-44m", "dense-44m", "sut-44m"])
def test_a_description_is_what_it_costs(name: str):
    config = preset(name)
    facts = description(config, 64, torch.bfloat16)
    assert validate(ModelConfig, facts["model"]) == config
    assert {key: facts[key] for key in vars(cost(config, 64))} == vars(cost(config, 64))
    assert facts["weight_bytes"] == weight_bytes(config, torch.bfloat16) == 2 * facts["parameters"]
    assert facts["cache_bytes_per_token"] == cache_bytes_per_token(config, torch.bfloat16)
    assert facts["activation_bytes"] == activation_bytes(config, 64, dtype=torch.bfloat16)
    checkpointed = activation_bytes(config, 64, dtype=torch.bfloat16, gradient_checkpointing=True)
    assert facts["checkpointed_activation_bytes"] == checkpointed
    assert (facts["dtype"], facts["schedule"]) == ("bfloat16", config.schedule)


@pytest.mark.parametrize("name", PRESETS)
def test_lines_fit_a_terminal(name: str):
    shown = lines(description(preset(name)))
    assert max(map(len, shown)) <= WIDTH
    assert f"{cost(preset(name)).parameters:,}" in shown[0]


@pytest.mark.parametrize("size", ["tiny", "44m", "244m"])
def test_all_models_of_a_size_in_a_list_fit_a_terminal(size: str):
    described = {name: description(preset(name)) for name in PRESETS if name.endswith(size)}
    heading, *shown = table(described)
    assert max(map(len, shown)) == len(heading) <= WIDTH
    assert heading.split() == ["parameters", "active", "multiply-adds", "cache", "layers"]
    for line, (name, facts) in zip(shown, described.items(), strict=True):
        figures = (facts[key] for key in ("parameters", "active_parameters", "macs_per_token"))
        assert line.split()[:4] == [name, *(f"{figure:,}" for figure in figures)]


def test_three_presets_stand_side_by_side():
    names = ["moeut-1b", "dense-1b", "sigma-moe-727m"]
    heading, *shown = table({name: description(preset(name)) for name in names})
    assert heading.split() == names
    assert shown[0].split()[1:] == [f"{cost(preset(name)).parameters:,}" for name in names]
    assert max(map(len, shown)) == len(heading) <= WIDTH


def test_parts_are_named():
    shown = table({name: description(preset(name)) for name in ("moeut-44m", "sut-44m")})
    assert [line.split()[-2:] for line in shown if line.startswith(("attention", "feed", "halting", "layer norm"))] == [
        ["switchhead", "attention_experts"], ["sigma_moe", "softmax_moe"], ["peri", "post"], ["none", "act"],
    ]  # fmt: skip
    assert "2 × 8" in shown[10]
    assert "1 × 16" in shown[10]


def test_dtypes_have_names():
    assert dtype_named("float16") == torch.float16
    with pytest.raises(ValueError, match="--dtype: 'int8' is not one of float64, float32, float16, bfloat16"):
        dtype_named("int8")
