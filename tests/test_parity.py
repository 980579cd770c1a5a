"""Do our models compute what the official code computes? Every case of a folder of official numbers.

`pytest --parity PATH` reads any folder of that format (a manifest.json and safetensors files; by default
../shared/parity); the two smallest cases lie in tests/assets/parity. A case's model is built from its `semantic` and
`config` entries, never from its name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moeut.hf.official import from_official
from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

ASSETS = Path(__file__).parent / "assets" / "parity"

PRECISIONS = [
    pytest.param(torch.float32, "ref", 1e-5, id="float32"),
    pytest.param(torch.float64, "f64buf", 1e-10, id="float64"),
]


Case = tuple[Path, dict[str, Any]]

# Hidden states, masked logits and selections were computed with constants rounded to float32 only.
ROUNDED_CONSTANTS = 1e-6


class NotBuiltError(Exception):
    """The case needs a part that does not exist yet."""


def parity_folder(config: pytest.Config) -> Path:
    return Path(str(config.getoption("--parity")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    cases = []
    for folder in dict.fromkeys([ASSETS, parity_folder(metafunc.config)]):
        manifest = folder / "manifest.json"
        if manifest.is_file():
            entries = json.loads(manifest.read_text())["cases"]
            cases += [pytest.param((folder, entry), id=f"{folder.name}-{name}") for name, entry in entries.items()]
        else:
            why = f"no official numbers at {folder}: give --parity PATH"
            cases.append(pytest.param((folder, {}), id="absent", marks=pytest.mark.skip(reason=why)))
    metafunc.parametrize("case", cases)


def required(condition: bool, part: str) -> None:
    if not condition:
        raise NotBuiltError(part)


def feed_forward_config(semantic: dict[str, Any], official: dict[str, Any]) -> SigmaMoEConfig | MLPConfig:
    if semantic["ffn"] == "dense relu with biases":
        return MLPConfig(intermediate_size=semantic["ffn_size"])
    required(semantic["ffn"] == "sigma_moe", f"feed-forward {semantic['ffn']}")
    required(semantic.get("ffn_selection", semantic.get("selection")) == "sigmoid", "softmax selection")
    required(not semantic.get("ffn_expert_bias"), "expert biases")
    required(not semantic.get("ffn_selection_bias"), "selection biases")
    balance = semantic["regulariser"]
    required(balance.get("mode", "layers_time") == "layers_time", f"balance scope {balance.get('mode')}")
    return SigmaMoEConfig(
        num_experts=semantic.get("ffn_n_experts") or official["ff_n_experts"],
        num_experts_per_tok=semantic.get("ffn_k") or official["ff_k"],
        moe_intermediate_size=semantic.get("ffn_expert_size") or official.get("ff_expert_size", 128),
        router_aux_loss_coef=balance["ffn"],
    )


def attention_config(semantic: dict[str, Any], official: dict[str, Any]) -> DenseAttentionConfig | SwitchHeadConfig:
    heads, head_dim = semantic["n_heads"], semantic["d_head"]
    if semantic["attention"] in ("dense_rope", "dense_with_output_gate"):
        gate = semantic["attention"] == "dense_with_output_gate"
        return DenseAttentionConfig(
            num_attention_heads=heads, head_dim=head_dim, output_gate=gate, rope_theta=semantic["rope_base"]
        )
    required(semantic.get("att_selection", "sigmoid") == "sigmoid", "softmax selection in attention")
    return SwitchHeadConfig(
        num_attention_heads=heads,
        head_dim=head_dim,
        num_experts=semantic.get("att_n_experts") or official["att_n_experts"],
        num_experts_per_tok=semantic.get("att_k") or official.get("att_k", 2),
        rope_theta=semantic["rope_base"],
        router_aux_loss_coef=semantic["regulariser"]["attention"],
    )


def model_config(entry: dict[str, Any], vocab_size: int) -> ModelConfig:
    semantic, official = entry["semantic"], entry.get("config") or {}
    required(semantic["attention"] in ("switchhead", "dense_rope", "dense_with_output_gate"), semantic["attention"])
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=semantic["d_model"],
        num_hidden_layers=semantic["n_layers"],
        group_size=semantic["group_size"] or semantic["n_layers"],
        layer_order="aabb" if semantic["sharing"] == "aabb" else "abab",
        norm=semantic["norm"],
        attention=attention_config(semantic, official),
        feed_forward=feed_forward_config(semantic, official),
    )
    assert config.schedule == semantic["layer_order"]
    return config


def worst_error(ours: Tensor | None, official: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference."""
    assert ours is not None
    assert ours.shape == official.shape
    return ((ours.double() - official).abs().max() / official.abs().max().clamp(min=1e-300)).item()


def load(case: Case, dtype: torch.dtype) -> tuple[LanguageModel, dict[str, Tensor]]:
    folder, entry = case
    tensors = load_file(folder / entry["file"])
    weights = {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")}
    try:
        config = model_config(entry, weights["embedding.weight"].shape[0])
    except NotBuiltError as missing:
        pytest.skip(f"not built yet: {missing}")
    model = LanguageModel(config)
    model.load_state_dict(from_official(weights))
    return model.to(dtype), tensors


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_evaluation_equals_the_official_numbers(case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(case, dtype)
    model.eval()
    output = model(tensors["input_ids"], tensors["targets"], return_hidden_states=True)
    assert worst_error(output.logits, tensors[f"{reference}/eval/logits"]) < tolerance
    assert output.regulariser.item() == 0
    hidden_after = {
        int(name.rpartition("/")[2]): value
        for name, value in tensors.items()
        if name.startswith("ref/eval/hidden_after_layer/")
    }
    assert len(hidden_after) == model.config.num_hidden_layers
    for depth, official in hidden_after.items():
        assert worst_error(output.hidden_states[depth + 1], official) < max(tolerance, ROUNDED_CONSTANTS)


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_selections_equal_the_official_ones(case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(case, dtype)
    names = [name for name in tensors if name.startswith("ref/eval/selected/")]
    if not names:
        pytest.skip("the case records no selections")
    routing = model.eval()(tensors["input_ids"], return_routing=True).routing
    ours = {"ffn": "feed_forward", "attention_v": "attention_value", "attention_o": "attention_output"}
    for name in names:
        depth, part = name.removeprefix("ref/eval/selected/").split("/")
        selected = routing[int(depth)][ours[part]].experts.sort(dim=-1).values
        official = tensors[name].view(selected.shape)
        assert torch.equal(selected, official.to(selected.dtype))


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_padding_masks_equal_the_official_numbers(case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(case, dtype)
    if "mask/src_length_mask" not in tensors:
        pytest.skip("the case has no padding mask")
    model.eval()
    ids, real = tensors["input_ids"], ~tensors["mask/src_length_mask"]
    causal = model(ids, attention_mask=real).logits
    stack = model.stack(model.embedding(ids), real, causal=False)
    bidirectional = model.lm_head(model.norm(stack.hidden_states))
    tolerance = max(tolerance, ROUNDED_CONSTANTS)
    assert worst_error(causal, tensors["ref/eval_causal_and_padding/logits"]) < tolerance
    assert worst_error(bidirectional, tensors["ref/eval_bidirectional_padding/logits"]) < tolerance


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_training_equals_the_official_numbers(case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(case, dtype)
    model.train()
    prefix = f"{reference}/train/"
    output = model(tensors["input_ids"], tensors["targets"])
    assert output.cross_entropy.item() == pytest.approx(tensors[prefix + "ce"].item(), abs=tolerance)
    assert output.regulariser.item() == pytest.approx(tensors[prefix + "reg_loss"].item(), abs=tolerance)
    assert output.loss.item() == pytest.approx(tensors[prefix + "loss"].item(), abs=tolerance)
    assert worst_error(output.logits, tensors[prefix + "logits"]) < tolerance
    output.loss.backward()
    gradients = from_official(
        {
            name.removeprefix(prefix + "grad/"): value
            for name, value in tensors.items()
            if name.startswith(prefix + "grad/")
        }
    )
    parameters = dict(model.named_parameters())
    assert parameters.keys() == gradients.keys()
    errors = {name: worst_error(parameters[name].grad, official) for name, official in gradients.items()}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("key", ["released_style", "full"])
@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_checkpoint_gives_the_official_logits(
    pytestconfig: pytest.Config, key: str, dtype: torch.dtype, reference: str, tolerance: float
):
    """A checkpoint as the official trainer writes it, and the same without its optimizer state, as released."""
    folder = parity_folder(pytestconfig)
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no official numbers at {folder}: give --parity PATH")
    entry = json.loads((folder / "manifest.json").read_text())["checkpoint"]
    # The trainer's own dict class is pickled by name; a plain dict under that name is all that is let in.
    with torch.serialization.safe_globals([(dict, "framework.data_structures.dotdict.DotDict")]):
        weights = torch.load(folder / entry["files"][key], weights_only=True)["model"]
    arguments = entry["args"]
    assert (arguments["transformer.variant"], arguments["moe.nonorm"]) == ("preln_moe_universal", 1)
    model = LanguageModel(
        ModelConfig(
            vocab_size=weights["embedding.weight"].shape[0],
            hidden_size=arguments["state_size"],
            num_hidden_layers=arguments["transformer.encoder_n_layers"],
            group_size=arguments["transformer.universal.group_size"],
            attention=SwitchHeadConfig(
                num_attention_heads=arguments["transformer.n_heads"],
                head_dim=int(arguments["transformer.head_projection_size"]),
                num_experts=arguments["moe.att.n_experts"],
                num_experts_per_tok=arguments["moe.att.k"],
            ),
            feed_forward=SigmaMoEConfig(
                num_experts=arguments["moe.n_experts"],
                num_experts_per_tok=arguments["pkm.n_heads"],
                moe_intermediate_size=arguments["moe.expert_size"],
            ),
        )
    )
    model.load_state_dict(from_official(weights))
    expected = load_file(folder / entry["files"]["expected"])
    output = model.eval().to(dtype)(expected["input_ids"], expected["targets"])
    assert worst_error(output.logits, expected[f"{reference}/eval/logits"]) < tolerance
    assert output.cross_entropy.item() == pytest.approx(expected["ref/eval/ce"].item(), abs=max(tolerance, 1e-7))
