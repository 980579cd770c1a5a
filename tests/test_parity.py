"""Do our models compute what the official code computes? Every case of a folder of official numbers.

`pytest --parity PATH` reads any folder of that format (a manifest.json and safetensors files; by default
../shared/parity); three small cases lie in tests/assets/parity. A case's model is built from its `semantic` and
`config` entries, never from its name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from official_cases import model_config
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.softmax_moe import SoftmaxMoEConfig
from moeut.model.switchhead import SwitchHeadConfig
from moeut.official.names import from_official

ASSETS = Path(__file__).parent / "assets" / "parity"

PRECISIONS = [
    pytest.param(torch.float32, "ref", 1e-5, id="float32"),
    pytest.param(torch.float64, "f64buf", 1e-10, id="float64"),
]


Case = tuple[Path, dict[str, Any]]

# Hidden states, masked logits and selections were computed with constants rounded to float32 only.
ROUNDED_CONSTANTS = 1e-6


def parity_folder(config: pytest.Config) -> Path:
    return Path(str(config.getoption("--parity")))


# What a case must hold for the tests that take it under this name.
NEEDED = {
    "case": "ref/eval/logits",
    "selecting_case": "ref/eval/selected/0/ffn",
    "halting_case": "ref/eval/act/acc_expect_depth/0",
    "padded_case": "mask/src_length_mask",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in set(NEEDED) & set(metafunc.fixturenames):
        cases = []
        for folder in dict.fromkeys([ASSETS, parity_folder(metafunc.config)]):
            manifest = folder / "manifest.json"
            if manifest.is_file():
                entries = json.loads(manifest.read_text())["cases"]
                held = {title: entry for title, entry in entries.items() if holds(folder / entry["file"], NEEDED[name])}
                cases += [pytest.param((folder, entry), id=f"{folder.name}-{title}") for title, entry in held.items()]
            else:
                why = f"no official numbers at {folder}: give --parity PATH"
                cases.append(pytest.param((folder, {}), id="absent", marks=pytest.mark.skip(reason=why)))
        metafunc.parametrize(name, cases)


def holds(file: Path, tensor: str) -> bool:
    with safe_open(file, "pt") as content:
        return tensor in content.keys()  # noqa: SIM118 (it is no mapping)


def worst_error(ours: Tensor | None, official: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference."""
    assert ours is not None
    assert ours.shape == official.shape
    return ((ours.double() - official).abs().max() / official.abs().max().clamp(min=1e-300)).item()


def load(case: Case, dtype: torch.dtype) -> tuple[LanguageModel, dict[str, Tensor]]:
    folder, entry = case
    tensors = load_file(folder / entry["file"])
    weights = {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")}
    model = LanguageModel(model_config(entry, weights["embedding.weight"].shape[0]))
    model.load_state_dict(from_official(weights))
    return model.to(dtype), tensors


def present(tensors: dict[str, Tensor], reference: str) -> str:
    """Cases without constants that could be rounded have one reference for both precisions."""
    return reference if f"{reference}/eval/logits" in tensors else "ref"


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_evaluation_equals_the_official_numbers(case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(case, dtype)
    model.eval()
    reference = present(tensors, reference)
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
def test_selections_equal_the_official_ones(selecting_case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    model, tensors = load(selecting_case, dtype)
    names = [name for name in tensors if name.startswith("ref/eval/selected/")]
    routing = model.eval()(tensors["input_ids"], return_routing=True).routing
    ours = {"ffn": "feed_forward", "attention_v": "attention_value", "attention_o": "attention_output"}
    for name in names:
        depth, part = name.removeprefix("ref/eval/selected/").split("/")
        selected = routing[int(depth)][ours[part]].experts.sort(dim=-1).values
        official = tensors[name].view(selected.shape)
        assert torch.equal(selected, official.to(selected.dtype))


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_halting_equals_the_official_numbers(halting_case: Case, dtype: torch.dtype, reference: str, tolerance: float):
    """Which tokens halt, and how many layers after the first each is expected to take."""
    model, tensors = load(halting_case, dtype)
    last = model.config.num_hidden_layers - 1
    assert model.config.halting is not None
    survival = tensors[f"ref/eval/act/log_never_halt/{last}"].exp()
    survival = survival.where(survival >= 1 - model.config.halting.threshold, 0)
    official = tensors[f"ref/eval/act/acc_expect_depth/{last}"] + survival * last
    output = model.eval()(tensors["input_ids"], return_routing=True)
    assert worst_error(output.expected_layers - 1, official) < tolerance
    match model.config.feed_forward:
        case SoftmaxMoEConfig(num_experts=nobody) | SigmaMoEConfig(num_experts=nobody):
            halted = (output.routing[last]["feed_forward"].experts == nobody).all(-1).all(-1)
            assert torch.equal(halted, survival == 0)


@pytest.mark.parametrize(("dtype", "reference", "tolerance"), PRECISIONS)
def test_padding_masks_equal_the_official_numbers(
    padded_case: Case, dtype: torch.dtype, reference: str, tolerance: float
):
    model, tensors = load(padded_case, dtype)
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
    prefix = f"{present(tensors, reference)}/train/"
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
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
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
