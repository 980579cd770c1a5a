"""Is a model on disk the model that was saved, and is everything else refused in one line?"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moeut.model.attention import DenseAttentionConfig
from moeut.model.feedforward import MLPConfig
from moeut.model.folder import load_model, load_weights, refuse_misfits, replacing, save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

MOE = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=4,
    group_size=2,
    attention=SwitchHeadConfig(num_attention_heads=2, head_dim=4, num_experts=3),
    feed_forward=SigmaMoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=4),
)
TIED = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    group_size=2,
    norm="pre",
    attention=DenseAttentionConfig(num_attention_heads=2, head_dim=4, rope_theta=500.0),
    feed_forward=MLPConfig(intermediate_size=12),
    tie_word_embeddings=True,
)
CONFIGS = pytest.mark.parametrize("config", [MOE, TIED], ids=["moe", "tied"])


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_is_loaded_is_what_was_saved(tmp_path, config, dtype):
    model = LanguageModel(config).to(dtype).eval()
    save_model(model, tmp_path / "model")
    random_state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model").eval()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == config
    assert (loaded.lm_head.weight is loaded.embedding.weight) == config.tie_word_embeddings
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.dtype == dtype and parameter.requires_grad for parameter in loaded.parameters())
    tokens = torch.arange(10).view(2, 5)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@CONFIGS
def test_layout(tmp_path, config):
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tokenizer" / name).write_text(f"the content of {name}")
    folder = tmp_path / "model"
    model = LanguageModel(config)
    save_model(model, folder, tokenizer_folder=tmp_path / "tokenizer", end_of_document_id=3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "modeling_moeut.py", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder / "tokenizer.json").read_text() == "the content of tokenizer.json"
    content = json.loads((folder / "config.json").read_text())
    assert content["model_type"] == "moeut"
    assert content["dtype"] == "float32"
    assert [content[f"{use}_token_id"] for use in ("bos", "eos", "pad")] == [3, 3, 3]
    assert content["core"]["attention"]["kind"] == config.attention.kind
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert names == {f"model.{name}" for name, _ in model.named_parameters()}
    assert ("model.lm_head.weight" in names) != config.tie_word_embeddings


def test_saving_again_replaces(tmp_path):
    save_model(LanguageModel(TIED), tmp_path / "model")
    model = LanguageModel(MOE)
    save_model(model, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model").lm_head.weight, model.lm_head.weight)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    model = LanguageModel(MOE)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias, norm = tensors.pop("model.lm_head.bias"), tensors.pop("model.norm.weight")
    whole_numbers = tensors["model.norm.bias"].int()
    changed = {"model.lm_head.bias": bias[1:], "model.norm.bias": whole_numbers, "model.extra": norm}
    save_file(tensors | changed, tmp_path / "model.safetensors")
    for load in (lambda: load_model(tmp_path), lambda: load_weights(model, tmp_path)):
        with pytest.raises(ValueError, match=r"^.+: the weights do not fit the model: ") as error:
            load()
        assert {*str(error.value).split("model: ", 1)[1].split("; ")} == {
            "model.norm.weight is missing",
            "model.extra is not part of it",
            "model.lm_head.bias has shape (10,) instead of (11,)",
            "model.norm.bias holds torch.int32, which are no weights",
        }


def test_of_many_misfits_the_first_are_named_and_the_others_counted():
    expected = {f"weight {number}": torch.zeros(2) for number in range(1200)}
    with pytest.raises(ValueError, match=r"model: weight 0 is missing; .*; weight 9 is missing; and 1,190 more$"):
        refuse_misfits(expected, {})
    refuse_misfits(expected, expected)


def break_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing; this is no model folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not a JSON file"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json: not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: expected a JSON object"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "config.json names no model_type; only models of type",
        ),
        (lambda folder: break_config(folder, dtype="float31"), "is damaged: its dtype is not one of float64, float32"),
        (lambda folder: break_config(folder, dtype=None), "is damaged: its dtype is not one of float64, float32"),
        (lambda folder: break_config(folder, dtype="nn"), "is damaged: its dtype is not one of float64, float32"),
        (lambda folder: break_config(folder, dtype=["float32"]), "is damaged: its dtype is not one of float64"),
        (lambda folder: break_config(folder, core=None), "is damaged: it has no core"),
        (lambda folder: break_config(folder, model_type="llama"), "is that of a model of type 'llama'; only models of"),
        (lambda folder: break_config(folder, moeut_format=2), "moeut_format: written in format 2, newer than 1"),
        (lambda folder: break_config(folder, moeut_format=0), "moeut_format: 0 is no format; the folder is damaged"),
        (lambda folder: break_config(folder, core={}), "no model that can be built: .*hidden_size: "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"text"), "not a safetensors file"),
    ],
)
def test_what_is_no_model_folder_is_refused_in_one_line(tmp_path, damage, message):
    save_model(LanguageModel(MOE), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_another_vocabulary_is_refused_in_one_line(tmp_path):
    save_model(LanguageModel(MOE), tmp_path)
    core = json.loads((tmp_path / "config.json").read_text())["core"]
    break_config(tmp_path, core=core | {"vocab_size": 12})
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(11, 8\) instead of \(12, 8\)") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_model(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_model(tmp_path / "file")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail_in_the_middle() -> None:
        with replacing(path) as file:
            file.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fail_in_the_middle()
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write_text("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
