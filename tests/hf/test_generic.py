"""What do transformers' own tests ask of every model, and does ours do it?

They are not in its wheel. docs/hugging_face.md lists them: where each is asked of ours, and which do not apply.
"""

import copy
import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import ACT, DENSE, MOEUT, SUT, VARIANTS, build, generated, left_padded, prompts
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from moeut.hf import MoEUTConfig, MoEUTForCausalLM, MoEUTModel
from moeut.hf.modeling import CACHE_NAME
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig

SEVERAL = pytest.mark.parametrize("config", [MOEUT, DENSE, SUT], ids=["moeut", "dense", "sut"])


@pytest.mark.parametrize("kind", [MoEUTModel, MoEUTForCausalLM])
def test_forward_begins_with_the_names_that_tools_pass_by_place(kind: type) -> None:
    names = list(inspect.signature(kind.forward).parameters)
    assert names[:4] == ["self", "input_ids", "attention_mask", "position_ids"]
    assert kind.main_input_name == "input_ids"
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind.forward).parameters.values())


@VARIANTS
def test_the_same_input_gives_the_same_output(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


@VARIANTS
def test_a_batch_is_its_rows(config: ModelConfig) -> None:
    model, ids = build(config), prompts(3)
    alone = torch.cat([model(row[None]).logits for row in ids])
    torch.testing.assert_close(model(ids).logits, alone, rtol=1e-9, atol=1e-10)


@SEVERAL
def test_a_tuple_holds_what_the_dict_holds(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    asked: dict[str, Any] = {"labels": ids, "output_hidden_states": True, "output_router_logits": True}
    by_name = model(ids, **asked, use_cache=False)
    as_tuple = model(ids, **asked, use_cache=False, return_dict=False)
    assert list(by_name.keys()) == ["loss", "logits", "hidden_states", "router_logits"]
    torch.testing.assert_close(as_tuple, by_name.to_tuple(), rtol=0, atol=0)
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)


@SEVERAL
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_reaches_every_parameter_that_was_used(config: ModelConfig, checkpointing: bool) -> None:
    model, ids = build(config).train(), prompts(4, 12)
    model.model.stack.gradient_checkpointing = checkpointing
    model(ids, labels=ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@SEVERAL
def test_gradients_reach_the_hidden_states(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    output = model(ids, output_hidden_states=True)
    for states in output.hidden_states[:-1]:
        states.retain_grad()
    output.logits.sum().backward()
    assert all(states.grad is not None for states in output.hidden_states[:-1])


def test_embedding_and_head_can_be_taken_and_replaced() -> None:
    model, ids = build(MOEUT), prompts()
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    embedding = nn.Embedding(40, 16).double()
    model.set_input_embeddings(embedding)
    head = nn.Linear(16, 40).double()
    model.set_output_embeddings(head)
    assert (model.get_input_embeddings(), model.get_output_embeddings()) == (embedding, head)
    states = model(ids, output_hidden_states=True)
    assert torch.equal(states.hidden_states[0], embedding(ids))
    assert torch.equal(states.logits, head(states.hidden_states[-1]))
    assert MoEUTModel(model.config).get_output_embeddings() is None


@VARIANTS
def test_vectors_in_place_of_tokens(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    vectors = model.get_input_embeddings()(ids)
    for use_cache in (False, True):
        assert torch.equal(model(inputs_embeds=vectors, use_cache=use_cache).logits, model(ids).logits)


def test_tied_weights_are_one_tensor_in_memory_and_on_disk(tmp_path: Path) -> None:
    model = build(replace(MOEUT, tie_word_embeddings=True))
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.embedding.weight" in file.keys()  # noqa: SIM118 (no dict)
        assert "model.lm_head.weight" not in file.keys()  # noqa: SIM118
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    ids = prompts()
    loaded(ids, labels=ids).loss.backward()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    optimizer.step()
    assert torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight)


def test_weights_of_another_shape_are_refused_or_begin_anew(tmp_path: Path) -> None:
    model = build(MOEUT)
    first = model.model.stack.layers[0]
    save_model(model.model, tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path, vocab_size=200)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, vocab_size=200, ignore_mismatched_sizes=True)
    assert loaded.config.model_config == replace(MOEUT, vocab_size=200)
    assert loaded.model.embedding.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert torch.equal(loaded.model.stack.layers[0].attention.k_proj.weight, first.attention.k_proj.weight)
    assert loaded(prompts()).logits.shape[-1] == 200


@pytest.mark.parametrize("config", [MOEUT, DENSE, SUT, ACT], ids=["moeut", "dense", "sut", "act"])
def test_every_weight_that_a_folder_lacks_begins_as_ours_do(tmp_path: Path, config: ModelConfig) -> None:
    """From a folder that has lost all but one of its tensors."""
    save_model(LanguageModel(config), tmp_path)
    save_file({"model.lm_head.bias": torch.zeros(40)}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    fresh = LanguageModel(config).state_dict()
    for name, tensor in loaded.model.state_dict().items():
        if name == "lm_head.bias":
            assert tensor.count_nonzero() == 0
        elif fresh[name].unique().numel() == 1:
            assert torch.equal(tensor, fresh[name]), name
        else:
            assert 0.5 < tensor.std() / fresh[name].std() < 2, name


def test_a_model_can_be_made_on_any_device() -> None:
    config = build(MOEUT).config
    with torch.device("meta"):
        model = MoEUTForCausalLM(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    with torch.device("cpu"):
        assert MoEUTModel(config)(prompts()).last_hidden_state.isfinite().all()


@SEVERAL
def test_either_name_of_an_attention_means_the_same(tmp_path: Path, config: ModelConfig) -> None:
    """There is one implementation; the names decide in which form transformers hands over masks."""
    save_model(build(config).model, tmp_path)
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name) for name in ("sdpa", "eager")
    ]
    ids, mask = left_padded([prompts(1, 6), prompts(1, 3)])
    texts = [generated(model, ids, mask) for model in models]
    assert torch.equal(*texts)
    logits = [model(ids, attention_mask=mask, use_cache=True).logits[mask.bool()] for model in models]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-10)
    with pytest.raises((ValueError, ImportError)):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


def test_generate_returns_everything_that_it_is_asked_for() -> None:
    model, ids = build(MOEUT), prompts()
    output = model.generate(
        ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
        output_scores=True, output_logits=True, output_hidden_states=True,
    )  # fmt: skip
    assert output.sequences.shape == (2, 10)
    assert [len(step) for step in output.hidden_states] == [5, 5, 5]
    assert [tuple(step[-1].shape) for step in output.hidden_states] == [(2, 7, 16), (2, 1, 16), (2, 1, 16)]
    assert torch.equal(torch.stack(output.logits).argmax(-1).T, output.sequences[:, 7:])
    assert torch.equal(torch.stack(output.scores), torch.stack(output.logits))
    assert getattr(output, CACHE_NAME).get_seq_length() == 9


@VARIANTS
def test_a_cache_has_the_shape_that_the_configuration_says(config: ModelConfig) -> None:
    model = build(config)
    theirs = model.config
    layers = getattr(model(prompts()), CACHE_NAME).layers
    assert len(layers) == theirs.num_hidden_layers
    for layer in layers:
        assert layer.keys.shape == layer.values.shape == (2, theirs.num_key_value_heads, 7, theirs.head_dim)


def test_positions_may_be_given_or_not() -> None:
    model = build(MOEUT)
    ids, mask = left_padded([prompts(1, 6), prompts(1, 3)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with_positions = model(ids, attention_mask=mask, position_ids=positions).logits
    without = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(with_positions[mask.bool()], without[mask.bool()], rtol=1e-9, atol=1e-10)


def test_without_a_prompt_a_text_begins() -> None:
    model = build(MOEUT)
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "eos_token_id": 0}
    written = model.generate(do_sample=False, **settings)
    assert written[0, 0] == model.config.bos_token_id
    assert torch.equal(written[:, 1:], generated(model, written[:, :1], **settings))


def test_every_beam_can_be_sampled() -> None:
    model, ids = build(MOEUT), prompts()
    settings: dict[str, Any] = {"do_sample": True, "num_beams": 3, "num_return_sequences": 2}
    torch.manual_seed(3)
    first = generated(model, ids, **settings)
    torch.manual_seed(3)
    assert torch.equal(generated(model, ids, use_cache=False, **settings), first)
    assert first.shape == (4, 9)


def test_a_configuration_survives_json_and_subfolders(tmp_path: Path) -> None:
    config = MoEUTConfig(core=asdict(MOEUT), output_router_logits=True, max_position_embeddings=64)
    assert json.loads(config.to_json_string())["core"] == json.loads(json.dumps(asdict(MOEUT)))
    config.to_json_file(tmp_path / "config.json")
    config.save_pretrained(tmp_path / "sub")
    copies = [
        MoEUTConfig.from_json_file(tmp_path / "config.json"),
        AutoConfig.from_pretrained(tmp_path, subfolder="sub"),
        copy.deepcopy(config),
        MoEUTConfig.from_dict(config.to_dict()),
    ]
    for again in copies:
        assert again.to_diff_dict() == config.to_diff_dict()
        assert (again.output_router_logits, again.max_position_embeddings) == (True, 64)


def test_a_whole_model_can_lie_in_half_precision() -> None:
    model, ids = build(MOEUT).bfloat16(), prompts()
    output = model(ids, labels=ids, output_router_logits=True)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert output.router_logits[0]["feed_forward"].dtype == torch.float32
    assert generated(model, ids).shape == (2, 9)


def test_layers_can_lie_on_the_disk(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="offloading needs accelerate: pip install accelerate")
    model, ids = build(MOEUT), prompts()
    save_model(model.model, tmp_path / "model")
    parts = {"model.embedding": "cpu", "model.stack.layers.0": "disk", "model.stack.layers.1": "cpu"}
    parts |= {"model.norm": "cpu", "model.lm_head": "cpu"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offloaded"
    )
    assert {tensor.device.type for tensor in loaded.model.stack.layers[0].parameters()} == {"meta"}
    assert torch.equal(generated(loaded, ids), generated(model, ids))


def test_the_number_of_parameters_counts_tied_ones_once() -> None:
    model = build(replace(MOEUT, tie_word_embeddings=True))
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert model.num_parameters() == build(MOEUT).num_parameters() - 40 * 16
