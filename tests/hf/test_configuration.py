"""Does transformers see our configuration under its names, and does it survive a folder?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_variants import VARIANTS as TABLE
from transformers import AutoConfig, DynamicCache

import moeut.hf
from moeut.hf import MoEUTConfig
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.variants import dense
from moeut.variants import moeut as moeut_config


def model_config() -> ModelConfig:
    return moeut_config(
        hidden_size=16, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=6, attention_experts=3,
        experts=5, experts_per_tok=2, expert_size=4, vocab_size=40,
    )  # fmt: skip


def test_names_of_transformers_point_into_core() -> None:
    config = MoEUTConfig(core=asdict(model_config()))
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (16, 4, 40)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 6)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 0)
    assert config.tie_word_embeddings is False
    assert config.model_config == model_config()


NAMES = {
    "hidden_size": ("hidden_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "layer_norm_eps": ("layer_norm_eps",),
    "hidden_dropout": ("hidden_dropout",),
    "vocab_size": ("vocab_size",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "num_attention_heads": ("attention", "num_attention_heads"),
    "num_key_value_heads": ("attention", "num_attention_heads"),
    "head_dim": ("attention", "head_dim"),
    "attention_dropout": ("attention", "attention_dropout"),
    "rope_theta": ("attention", "rope_theta"),
    "partial_rotary_factor": ("attention", "partial_rotary_factor"),
    "intermediate_size": ("feed_forward", "intermediate_size"),
    "num_experts": ("feed_forward", "num_experts"),
    "num_experts_per_tok": ("feed_forward", "num_experts_per_tok"),
    "moe_intermediate_size": ("feed_forward", "moe_intermediate_size"),
    "router_aux_loss_coef": ("feed_forward", "router_aux_loss_coef"),
}
"""What transformers calls a value, and where it stands in `core`."""


@pytest.mark.parametrize("variant", TABLE)
def test_every_variant_has_the_names_of_its_parts_and_no_others(variant: str) -> None:
    config = MoEUTConfig(core=asdict(TABLE[variant]))
    for name, path in NAMES.items():
        part = config.core if len(path) == 1 else config.core[path[0]]
        assert hasattr(config, name) == (path[-1] in part), name
        if path[-1] in part:
            assert getattr(config, name) == part[path[-1]]
        else:
            with pytest.raises(AttributeError, match=f"{name}: {path[0]} of kind '{part['kind']}' has none"):
                setattr(config, name, 1)


def test_nothing_is_stored_twice() -> None:
    stored = MoEUTConfig(core=asdict(model_config())).to_dict()
    assert not stored.keys() & NAMES.keys()


def test_a_dense_model_has_no_experts() -> None:
    config = MoEUTConfig(core=asdict(TABLE["dense transformer"]))
    assert getattr(config, "num_experts", None) is None
    assert config.intermediate_size == 20
    assert not hasattr(MoEUTConfig(core=asdict(model_config())), "intermediate_size")


@pytest.mark.parametrize(
    ("name", "value"), [("num_experts_per_tok", 3), ("router_aux_loss_coef", 0.5), ("head_dim", 8)]
)
def test_a_name_can_be_given_beside_core(name: str, value: Any) -> None:
    config = MoEUTConfig(core=asdict(model_config()), **{name: value})
    assert getattr(config, name) == value
    part = config.model_config.attention if name == "head_dim" else config.model_config.feed_forward
    assert getattr(part, name) == value


def test_a_changed_name_changes_the_model_and_its_cache() -> None:
    config = MoEUTConfig(core=asdict(model_config()))
    config.num_hidden_layers = 6
    assert config.model_config.num_repeats == 3
    assert len(DynamicCache(config=config).layers) == 6
    config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"group_size: 5 layers"):
        _ = config.model_config


def test_fields_left_out_of_core_get_their_defaults() -> None:
    core = asdict(dense(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, head_dim=4, intermediate_size=8))
    del core["tie_word_embeddings"], core["attention"]["rope_theta"]
    assert MoEUTConfig(core=core).core["attention"]["rope_theta"] == 10000.0
    assert MoEUTConfig(core=core).tie_word_embeddings is False


def test_mistakes_in_core_are_one_line_each() -> None:
    core = asdict(model_config())
    core["hidden_size"], core["feed_forward"]["num_expert"] = -1, 3
    with pytest.raises(ValueError, match="core") as caught:
        MoEUTConfig(core=core)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["core.hidden_size", "core.feed_forward.num_expert"]


def test_round_trip(tmp_path: Path) -> None:
    config = MoEUTConfig(core=asdict(model_config()), eos_token_id=3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MoEUTConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.model_config == config.model_config
    assert loaded.eos_token_id == 3


def test_settings_given_while_loading_reach_the_model(tmp_path: Path) -> None:
    MoEUTConfig(core=asdict(model_config())).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_hidden_layers=8).model_config.num_repeats == 4


def test_folders_written_without_transformers_name_the_same_classes(tmp_path: Path) -> None:
    save_model(LanguageModel(model_config()), tmp_path / "ours")
    MoEUTConfig(core=asdict(model_config())).save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    shared = ("model_type", "auto_map", "core", "bos_token_id", "eos_token_id", "pad_token_id")
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    stubs = [(tmp_path / who / "modeling_moeut.py").read_text() for who in ("ours", "theirs")]
    assert stubs[0] == stubs[1]


def test_registering_twice_is_harmless() -> None:
    import importlib

    importlib.reload(moeut.hf)
    assert AutoConfig.for_model("moeut", core=asdict(model_config())).vocab_size == 40
