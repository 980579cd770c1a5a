"""Do a run's arguments become the model that the training code built of them, and is what cannot be one refused?"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from official_cases import model_config
from official_files import arguments, as_rotated, entries

from moeut.model.attention import DenseAttentionConfig
from moeut.model.cost import cost
from moeut.model.language_model import ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.official.arguments import described_model
from moeut.presets import preset

MOEUT_44M = {
    "task": "c4_transformer", "state_size": 412, "transformer.encoder_n_layers": 16, "transformer.n_heads": 4,
    "dropout": 0.0, "moe.drop_expert": 0.0, "transformer.variant": "preln_moe_universal", "moe.n_experts": 155,
    "moe.expert_size": 128, "pkm.n_heads": 12, "transformer.p_drop_layer": 0.0, "moe.selection_mode": "sigmoid",
    "moe.perplexity_reg_mode": "layers_time", "moe.perplexity_reg": 0.01, "moe.att.perplexity_reg": "0.001",
    "moe.att.selection_dropout": 0.0, "moe.att.enable": 1, "moe.att.n_experts": 8, "moe.att.k": 2,
    "moe.att.selection_mode": "sigmoid", "moe.att.expert_dropout": "0.0", "transformer.head_projection_size": "82",
    "transformer.universal.group_size": 2, "moe.att.q_expert": 0, "moe.att.k_expert": 0, "moe.att.v_expert": 1,
    "moe.att.o_expert": 1, "lm.trafo.context_blocks": 0, "moe.nonorm": 1,
}  # fmt: skip
SIGMA_MOE_44M = MOEUT_44M | {
    "moe.n_experts": 17, "moe.att.n_experts": 1, "moe.att.k": 1, "transformer.universal.group_size": 16,
}  # fmt: skip
DENSE_44M = {
    "state_size": 412, "transformer.ff_multiplier": 4.985, "transformer.encoder_n_layers": 16,
    "transformer.n_heads": 10, "transformer.variant": "preln_rope", "transformer.head_projection_size": "41",
}  # fmt: skip
SUT_44M = {
    "state_size": 412, "transformer.encoder_n_layers": 16, "transformer.variant": "actsut_universal",
    "moe.n_experts": 152, "moe.expert_size": 256, "pkm.n_heads": 2, "moe.att.n_experts": 24, "moe.att.k": 2,
    "lm.trafo.norm_input": 1, "transformer.head_projection_size": "64", "moe.att.expert_size": 256,
    "moa.miloss": 0.001, "sut.sample_topk": 0, "transformer.act_loss": 0.01,
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        metafunc.parametrize(
            "entry", [pytest.param(entry, id=name) for name, entry in entries(metafunc.config, "argv")]
        )


def typed(value: str) -> Any:
    """A word of a command line as an argument parser stores it where the argument is a number."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def test_every_official_case_is_the_model_that_it_was(entry: dict[str, Any]):
    expected = model_config(entry, vocab_size=61)
    words = arguments(entry["argv"])
    for given in (words, {name: typed(value) for name, value in words.items()}):
        config, notes = described_model(given, 61)
        assert as_rotated(config, expected) == expected
        assert notes == ()


def test_the_arguments_of_a_whole_checkpoint(pytestconfig: pytest.Config):
    manifest = Path(str(pytestconfig.getoption("--parity"))) / "manifest.json"
    if not manifest.is_file():
        pytest.skip(f"no official numbers at {manifest.parent}: give --parity PATH")
    given = json.loads(manifest.read_text())["checkpoint"]["args"]
    assert len(given) == 142
    config, notes = described_model(given, 61)
    assert notes == ()
    assert config == ModelConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=6, group_size=2,
        attention=SwitchHeadConfig(num_attention_heads=2, head_dim=14, num_experts=3),
        feed_forward=SigmaMoEConfig(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=8),
        embedding_scale=1.0, embedding_norm=False, final_norm=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "name", "parameters"),
    [
        (MOEUT_44M, "moeut-44m", 44_345_792),
        (SIGMA_MOE_44M, "sigma-moe-44m", 44_129_080),
        (DENSE_44M, "dense-44m", 44_544_264),
        (SUT_44M, "sut-44m", 44_657_100),
    ],
)
def test_the_papers_runs_are_our_presets(given: dict[str, Any], name: str, parameters: int):
    config, notes = described_model(given, 8000)
    assert notes == ()
    assert cost(config).parameters == parameters
    ours = preset(name)
    assert (config.schedule, config.norm) == (ours.schedule, ours.norm)
    for part in ("attention", "feed_forward"):
        theirs = getattr(config, part)
        if hasattr(theirs, "loss_form"):
            theirs = replace(theirs, loss_form="corrected")
        assert theirs == getattr(ours, part)


def test_what_is_not_said_is_as_in_the_training_code():
    config, notes = described_model({"transformer.variant": "moe_universal"}, 10)
    assert notes == ()
    assert config == ModelConfig(
        vocab_size=10, hidden_size=128, num_hidden_layers=3, group_size=1, norm="post",
        attention=DenseAttentionConfig(num_attention_heads=4, head_dim=32),
        feed_forward=SigmaMoEConfig(
            num_experts=128, num_experts_per_tok=1, moe_intermediate_size=128, router_aux_loss_coef=0.0
        ),
        embedding_scale=128**0.5, embedding_norm=False, final_norm=False,
    )  # fmt: skip


def changed(**changes: Any) -> ModelConfig:
    """The 44M MoEUT with some arguments changed (`a__b` is `a.b`)."""
    return described_model(MOEUT_44M | {name.replace("__", "."): value for name, value in changes.items()}, 8000).config


def test_where_norms_stand_and_what_surrounds_the_layers():
    assert changed(moe__nonorm=0).norm == "pre"
    post = changed(moe__nonorm=0, transformer__variant="moe_universal", lm__trafo__norm_input="1")
    assert (post.norm, post.embedding_scale, post.embedding_norm, post.final_norm) == ("post", 412**0.5, True, False)
    assert changed(moe__nonorm=1, transformer__variant="moe_universal").norm == "peri"
    assert changed(transformer__variant="moe_universal", lm__trafo__force_out_norm=1).final_norm
    assert changed(transformer__embedding_scale="2.5").embedding_scale == 2.5
    unshared = changed(transformer__variant="preln_moe")
    assert (unshared.group_size, unshared.num_repeats) == (16, 1)


def test_gates_dropout_and_balance():
    softmax = changed(moe__selection_mode="gate", moe__att__selection_mode="softmax", moe__drop_expert=0.1, dropout=0.2)
    assert isinstance(softmax.attention, SwitchHeadConfig)
    assert isinstance(softmax.feed_forward, SigmaMoEConfig)
    assert (softmax.feed_forward.gate, softmax.attention.gate) == ("softmax", "softmax_of_selected")
    assert (softmax.feed_forward.expert_dropout, softmax.attention.expert_dropout) == (0.1, 0.1)
    assert softmax.hidden_dropout == 0.2
    other = changed(
        moe__drop_expert=0.1, moe__att__drop_expert="0.3", moe__att__perplexity_reg="none", moe__perplexity_reg=0.5,
        moe__perplexity_reg_mode="time", moe__att__perplexity_reg_mode="global", reg=0.25,
    )  # fmt: skip
    assert isinstance(other.attention, SwitchHeadConfig)
    assert isinstance(other.feed_forward, SigmaMoEConfig)
    assert (other.attention.expert_dropout, other.attention.balance_scope) == (0.3, "batch")
    assert other.attention.router_aux_loss_coef == 0.125
    # The training code adds these terms up over 8 repeats; ours are averaged.
    assert (other.feed_forward.router_aux_loss_coef, other.feed_forward.balance_scope) == (1.0, "application")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"transformer__variant": "standard"},
            r"transformer\.variant: 'standard' has no counterpart; there are preln_",
        ),
        ({"transformer__variant": "preln_rope_parallel"}, r"transformer\.variant: 'preln_rope_parallel' has no"),
        ({"embedding_size": "64"}, r"embedding_size: an embedding of 64 channels beside the layers' 412 has no"),
        ({"transformer__activation": "gelu"}, r"transformer\.activation: 'gelu' has no counterpart, only 'relu'"),
        ({"moe__activation_after_topk": 1}, r"moe\.activation_after_topk: has no counterpart"),
        ({"moe__att__enable": 0}, r"moe\.nonorm: the training code has it only with experts in attention"),
        ({"moe__att__q_expert": 1}, r"moe\.att\.q_expert: 1 has no counterpart, only 0"),
        ({"moe__att__o_expert": 0}, r"moe\.att\.o_expert: 0 has no counterpart, only 1"),
        ({"moe__att__same_sel": 1}, r"moe\.att\.same_sel: 1 has no counterpart, only 0"),
        ({"moe__att__separate_kq_sel": "1"}, r"moe\.att\.separate_kq_sel: 1 has no counterpart, only 0"),
        ({"moe__att__selection_mode": "gumbel_sigmoid"}, r"moe\.att\.selection_mode: input should be 'sigmoid' or"),
        ({"moe__n_experts": "many"}, r"moe\.n_experts: input should be a valid integer.*, not 'many'"),
        ({"transformer__n_heads": 0}, r"transformer\.n_heads: input should be greater than 0, not 0"),
        ({"moe__att__k": 9}, r"attention\.num_experts_per_tok: 9 experts cannot be chosen from 8"),
        ({"transformer__universal__group_size": 3}, r"group_size: 16 layers \(num_hidden_layers\) cannot be made of"),
        (
            {"transformer__variant": "sut_universal", "transformer__head_projection_size": "none"},
            r"transformer\.head_projection_size: SUT must say it",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=rf"^{line}"):
        changed(**changes)


def test_every_mistake_is_told_and_an_architecture_must_be_named():
    with pytest.raises(ValueError, match=r"^moe\.att\.q_expert: 1 has.*\nmoe\.att\.v_expert: 0 has no counterpart.*$"):
        changed(moe__att__q_expert=1, moe__att__v_expert=0)
    with pytest.raises(ValueError, match=r"^transformer\.variant: missing$"):
        described_model({"state_size": 4}, 8000)


def test_what_training_alone_had_is_noted():
    given = MOEUT_44M | {
        "dropout": 0.1, "lm.trafo.context_blocks": 1, "reg_scales": "moe=2", "moe.perplexity_reg_mode": "step",
        "moe.layer_encoding": "none", "moe.att.variant": "full_rope", "moe.init_scale": 3.0, "lr": 1.0,
    }  # fmt: skip
    config, notes = described_model(given, 8000)
    assert isinstance(config.feed_forward, SigmaMoEConfig)
    assert config.feed_forward.router_aux_loss_coef == 0
    told = "has no full counterpart; the model is the same, training on would differ"
    assert notes == (
        f"dropout 0.1 {told}",
        f"lm.trafo.context_blocks 1 {told}",
        f"reg_scales moe=2 {told}",
        "the balance term 'step' has no counterpart; its weight is 0 here",
        "moe.att.variant full_rope is unknown to the published training code, and passed over here as there",
    )
