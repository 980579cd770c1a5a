"""Does a model survive a folder, whoever writes and whoever reads it, and is what is none refused in one line?"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import DENSE, MOEUT, SUT, build, byte_model, generated, prompts
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

import moeut
from moeut.hf import MoEUTForCausalLM, MoEUTModel
from moeut.model.folder import FORMAT, STUB, load_model, save_model
from moeut.model.language_model import LanguageModel


def load_with_info(folder: Path, auto: Any = AutoModelForCausalLM, **settings: Any) -> tuple[Any, dict[str, Any]]:
    return auto.from_pretrained(folder, output_loading_info=True, **settings)


def assert_same_weights(model: LanguageModel, other: LanguageModel) -> None:
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_folders_of_both_makers_hold_the_same_model(tmp_path: Path, tied: bool) -> None:
    config, ids = replace(MOEUT, tie_word_embeddings=tied), prompts()
    model = build(config)
    expected = model(ids).logits
    save_model(model.model, tmp_path / "ours", end_of_document_id=7)
    loaded, info = load_with_info(tmp_path / "ours")
    assert not any(info.values())
    assert loaded.dtype == torch.float64
    assert (loaded.generation_config.eos_token_id, loaded.config.pad_token_id) == (7, 7)
    assert_same_weights(loaded.model, model.model)
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-10, atol=1e-10)
    assert (loaded.model.lm_head.weight is loaded.model.embedding.weight) == tied
    loaded.save_pretrained(tmp_path / "theirs")
    assert_same_weights(load_model(tmp_path / "theirs"), model.model)


def test_a_rival_survives_a_folder(tmp_path: Path) -> None:
    """SUT with halting, by both makers of folders."""
    model, ids = build(SUT), prompts()
    save_model(model.model, tmp_path / "ours")
    loaded, info = load_with_info(tmp_path / "ours")
    assert not any(info.values())
    assert loaded.config.model_config == SUT
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-10, atol=1e-10)
    loaded.save_pretrained(tmp_path / "theirs")
    assert_same_weights(load_model(tmp_path / "theirs"), model.model)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_in_several_files_are_one_model(tmp_path: Path, tied: bool) -> None:
    model = build(replace(MOEUT, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_weights(load_model(tmp_path), model.model)
    loaded, info = load_with_info(tmp_path)
    assert not any(info.values())
    assert_same_weights(loaded.model, model.model)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_weights_come_in_the_dtype_that_is_asked_for(tmp_path: Path, name: str) -> None:
    save_model(build(MOEUT).model, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, **{name: torch.bfloat16})
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    loaded.save_pretrained(tmp_path / "short")
    ours = load_model(tmp_path / "short")
    assert ours.embedding.weight.dtype == torch.bfloat16
    assert_same_weights(ours, loaded.model)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "short").dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_weights_go_to_the_device_that_is_asked_for(tmp_path: Path, device_map: Any) -> None:
    pytest.importorskip("accelerate", reason="device maps need accelerate: pip install accelerate")
    model, ids = build(MOEUT), prompts()
    save_model(model.model, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    assert loaded.device.type == "cpu" or device_map == "auto"
    assert torch.equal(generated(loaded.cpu(), ids), generated(model, ids))


def test_the_model_without_a_head_reads_and_writes_the_same_folders(tmp_path: Path) -> None:
    model, ids = build(MOEUT), prompts()
    save_model(model.model, tmp_path / "whole")
    loaded, info = load_with_info(tmp_path / "whole", AutoModel)
    assert isinstance(loaded, MoEUTModel)
    assert not any(info.values())
    states = loaded(ids).last_hidden_state
    torch.testing.assert_close(model.model.lm_head(states), model(ids).logits, rtol=1e-10, atol=1e-10)
    loaded.save_pretrained(tmp_path / "headless")
    again, info = load_with_info(tmp_path / "headless", AutoModel)
    assert not any(info.values())
    torch.testing.assert_close(again(ids).last_hidden_state, states, rtol=1e-10, atol=1e-10)
    _, info = load_with_info(tmp_path / "headless")
    assert info["missing_keys"] == {"model.lm_head.weight", "model.lm_head.bias"}
    with pytest.raises(ValueError, match=r"model\.lm_head\.weight is missing"):
        load_model(tmp_path / "headless")


def without(folder: Path, *names: str) -> tuple[Any, dict[str, Any]]:
    """What transformers makes of a folder that has lost some tensors."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name not in names}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    loaded, info = load_with_info(folder)
    assert info["missing_keys"] == set(names)
    return loaded, {name.removeprefix("model."): tensor for name, tensor in kept.items()}


def test_what_a_checkpoint_lacks_gets_our_initial_weights(tmp_path: Path) -> None:
    save_model(build(MOEUT).model, tmp_path)
    loaded, kept = without(tmp_path, "model.lm_head.weight", "model.norm.weight")
    bound = 1 / 16**0.5
    assert torch.equal(loaded.model.norm.weight, torch.ones(16).double())
    assert 0.9 * bound < loaded.model.lm_head.weight.abs().max() <= bound
    torch.testing.assert_close({name: loaded.model.state_dict()[name] for name in kept}, kept, rtol=0, atol=0)


def test_the_rest_of_a_module_that_lacks_something_stays_as_it_was(tmp_path: Path) -> None:
    save_model(build(DENSE).model, tmp_path)
    bias = "stack.layers.0.feed_forward.up_proj.bias"
    loaded, kept = without(tmp_path, f"model.{bias}")
    assert torch.equal(loaded.model.state_dict()[bias], torch.zeros(20).double())
    torch.testing.assert_close({name: loaded.model.state_dict()[name] for name in kept}, kept, rtol=0, atol=0)


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_a_folder_says_its_format_and_its_context(tmp_path: Path) -> None:
    save_model(build(MOEUT).model, tmp_path / "ours", context_length=64)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "theirs")
    for maker in ("ours", "theirs"):
        content = json.loads((tmp_path / maker / "config.json").read_text())
        assert (content["moeut_format"], content["moeut_version"]) == (FORMAT, moeut.__version__)
        assert content["max_position_embeddings"] == 64
    assert not hasattr(build(MOEUT).config, "max_position_embeddings")


def test_a_folder_from_before_formats_had_numbers_is_read_and_gets_one(tmp_path: Path) -> None:
    model = build(MOEUT)
    save_model(model.model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["moeut_format"]
    (tmp_path / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": False}))
    assert_same_weights(load_model(tmp_path), model.model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(loaded.model, model.model)
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["moeut_format"] == FORMAT


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            FORMAT + 1,
            f"written in format {FORMAT + 1}, newer than {FORMAT}, the newest that moeut .* reads; pip",
        ),
        (0, "0 is no format"),
        ("1", "'1' is no format"),
        (True, "True is no format"),
        (None, "None is no format"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused(tmp_path: Path, number: object, message: str) -> None:
    save_model(build(MOEUT).model, tmp_path)
    edit_config(tmp_path, moeut_format=number)
    for load in (load_model, AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=f"moeut_format: {message}") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_mistakes_in_a_folder_are_told_by_transformers_too(tmp_path: Path) -> None:
    save_model(build(MOEUT).model, tmp_path)
    core = json.loads((tmp_path / "config.json").read_text())["core"]
    edit_config(tmp_path, core={**core, "hidden_size": -1})
    with pytest.raises(ValueError, match=r"core\.hidden_size: input should be greater than 0"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_folder_loads_in_a_process_that_never_imported_us_and_says_what_to_install_where_it_cannot(
    tmp_path: Path,
) -> None:
    model, ids = build(MOEUT), prompts()
    model.save_pretrained(tmp_path / "model")
    save_file({"ids": ids, "logits": model(ids).logits.contiguous()}, tmp_path / "expected.safetensors")
    script = """
import sys
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM
folder = sys.argv[1]
assert "moeut" not in sys.modules
sys.modules["moeut"] = None  # as where it is not installed
try:
    AutoModelForCausalLM.from_pretrained(folder + "/model", trust_remote_code=True)
except ImportError as error:
    assert str(error) == "this model needs the package moeut: pip install moeut", error
else:
    raise AssertionError("was not missed")
del sys.modules["moeut"]
model = AutoModelForCausalLM.from_pretrained(folder + "/model", trust_remote_code=True)
headless = AutoModel.from_pretrained(folder + "/model", trust_remote_code=True)
expected = load_file(folder + "/expected.safetensors")
assert (model(expected["ids"]).logits - expected["logits"]).abs().max() < 1e-10
states = headless(expected["ids"]).last_hidden_state
assert (model.model.lm_head(states) - expected["logits"]).abs().max() < 1e-10
model.save_pretrained(folder + "/again")
"""
    path = os.pathsep.join([str(Path(moeut.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in (tmp_path / "model").iterdir()
    }


def test_the_module_in_a_folder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moeut.hf", None)
    with pytest.raises(ImportError, match="pip install moeut"):
        exec(STUB, {})


def test_the_auto_classes_know_ours() -> None:
    config = build(MOEUT).config
    assert isinstance(AutoModelForCausalLM.from_config(config), MoEUTForCausalLM)
    assert isinstance(AutoModel.from_config(config), MoEUTModel)


def test_a_pipeline_writes_text(tmp_path: Path) -> None:
    model = byte_model(tmp_path / "model")
    write = pipeline("text-generation", str(tmp_path / "model"), device="cpu")
    [answer] = write("def f(x):", max_new_tokens=8, do_sample=False)
    ids = torch.tensor([[byte + 1 for byte in b"def f(x):"]])
    wrapped: Any = MoEUTForCausalLM.wrap(model)
    expected = wrapped.generate(ids, max_new_tokens=8, do_sample=False)
    text = bytes(token - 1 for token in expected[0].tolist() if token).decode(errors="replace")
    assert answer["generated_text"] == text
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    both = write(["a", "longer than a"], batch_size=2, **settings)
    assert both == [write(prompt, **settings) for prompt in ("a", "longer than a")]
    read: Any = pipeline("feature-extraction", str(tmp_path / "model"), device="cpu")
    states = read("abc", return_tensors=True)
    assert states.shape == (1, 3, 16)


def test_folders_name_no_expert_backend(tmp_path: Path) -> None:
    """The machine that reads them may have no such one."""
    model = build(replace(MOEUT, expert_backend="reference"))
    save_model(model.model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        assert load_model(folder).config.expert_backend == "auto"
    assert model.config.core["expert_backend"] == "reference"
