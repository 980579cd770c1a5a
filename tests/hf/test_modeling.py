"""Does our model behave as transformers expects, whatever its cache, padding and folder?"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_variants import ROWS
from test_variants import VARIANTS as TABLE
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache

import moeut
from moeut.hf.modeling import CACHE_NAME, MoEUTForCausalLM
from moeut.model.attention import DenseAttentionConfig
from moeut.model.folder import STUB, load_model, save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.presets import dense
from moeut.presets import moeut as moeut_config

MOEUT = moeut_config(
    hidden_size=16, num_hidden_layers=4, group_size=2, num_attention_heads=2, head_dim=6, attention_experts=3,
    experts=6, experts_per_tok=2, expert_size=4, vocab_size=40,
)  # fmt: skip
GATED = replace(MOEUT, attention=DenseAttentionConfig(num_attention_heads=2, head_dim=6, output_gate=True))
DENSE = dense(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, head_dim=6, intermediate_size=20, vocab_size=40
)
SUT = replace(TABLE["sut"], vocab_size=40)
VARIANTS = pytest.mark.parametrize("config", [MOEUT, GATED, DENSE, SUT], ids=["moeut", "gated", "dense", "sut"])
GREEDY = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}


def build(config: ModelConfig) -> Any:
    """A float64 model that is not in love with one token, as a fresh one is."""
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return MoEUTForCausalLM.wrap(model)


def prompts(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(1, 40, (batch, length))


def generated(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **{**GREEDY, **settings})[:, ids.shape[1] :]


def load_with_info(folder: Path) -> tuple[Any, dict[str, Any]]:
    result: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return result


@VARIANTS
def test_numbers_are_the_language_models(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    labels = ids.clone()
    labels[0, :3] = -100
    targets = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    theirs, ours = model.train()(ids, labels=labels, output_hidden_states=True), model.model(ids, targets)
    assert torch.equal(theirs.logits, ours.logits)
    assert theirs.loss == ours.loss
    assert theirs.aux_loss == ours.regulariser
    assert len(theirs.hidden_states) == config.num_hidden_layers + 1
    assert model.eval()(ids).aux_loss is None


def test_the_last_logits_alone_and_a_plain_tuple() -> None:
    model, ids = build(MOEUT), prompts()
    whole = model(ids, labels=ids)
    last = model(ids, labels=ids, logits_to_keep=3)
    torch.testing.assert_close(last.logits, whole.logits[:, -3:])
    shifted = torch.nn.functional.cross_entropy(whole.logits[:, -3:-1].flatten(0, 1), ids[:, -2:].flatten())
    torch.testing.assert_close(last.loss, shifted)
    assert torch.equal(model(ids, labels=ids, return_dict=False)[1], whole.logits)


@VARIANTS
def test_greedy_text_is_the_same_with_any_cache_and_without(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    uncached = generated(model, ids, use_cache=False)
    assert len(uncached.unique()) > 3
    assert torch.equal(generated(model, ids), uncached)
    assert torch.equal(generated(model, ids, cache_implementation="static"), uncached)
    step_by_step = ids
    for _ in range(GREEDY["max_new_tokens"]):
        step_by_step = torch.cat([step_by_step, model.model(step_by_step).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(step_by_step[:, ids.shape[1] :], uncached)


@VARIANTS
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_in_chunks_are_those_of_one_pass(config: ModelConfig, kind: str, masked: bool) -> None:
    model, ids = build(config), prompts(length=12)
    mask = torch.ones_like(ids)
    if masked:
        mask[0, :4] = 0
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    cache: Cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=20)
    chunks, start = [], 0
    for length in (5, 1, 4, 1, 1):
        stop = start + length
        seen = mask[:, :stop] if masked else None
        output = model(ids[:, start:stop], attention_mask=seen, use_cache=True, **{CACHE_NAME: cache})
        chunks.append(output.logits)
        start = stop
    got = torch.cat(chunks, dim=1)
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-10, atol=1e-10)
    assert int(cache.get_seq_length(config.num_hidden_layers - 1)) == 12


def test_both_names_of_the_cache_mean_the_same() -> None:
    model, ids = build(MOEUT), prompts()
    expected = model(ids).logits[:, 4:]
    for name in ("past_key_values", "cache"):
        cache = DynamicCache(config=model.config)
        model(ids[:, :4], **{name: cache})
        torch.testing.assert_close(model(ids[:, 4:], **{name: cache}).logits, expected)


@VARIANTS
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_left_padding_changes_nothing(config: ModelConfig, settings: dict[str, Any]) -> None:
    model = build(config)
    alone = [prompts(1, length) for length in (3, 8, 5)]
    padded = torch.stack([torch.nn.functional.pad(ids[0], (8 - ids.shape[1], 0)) for ids in alone])
    mask = (padded != 0).long()
    together = generated(model, padded, mask, **settings)
    assert torch.equal(together, torch.cat([generated(model, ids) for ids in alone]))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_writes_the_same_with_a_cache_without_one_and_in_a_padded_batch(row: str) -> None:
    """Greedily, in float64; a prompt alone, and with padding on its left beside longer ones."""
    config = replace(TABLE[row], vocab_size=40)
    model = build(config)
    few: dict[str, Any] = {"max_new_tokens": 5}
    alone = [prompts(1, length) for length in (2, 6, 4)]
    texts = torch.cat([generated(model, ids, **few) for ids in alone])
    assert torch.equal(torch.cat([generated(model, ids, use_cache=False, **few) for ids in alone]), texts)
    padded = torch.stack([torch.nn.functional.pad(ids[0], (6 - ids.shape[1], 0)) for ids in alone])
    assert torch.equal(generated(model, padded, (padded != 0).long(), **few), texts)


def test_a_rival_survives_a_folder(tmp_path: Path) -> None:
    """SUT with halting, by both makers of folders."""
    model, ids = build(SUT), prompts()
    save_model(model.model, tmp_path / "ours")
    loaded, info = load_with_info(tmp_path / "ours")
    assert not any(info.values())
    assert loaded.config.model_config == SUT
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-10, atol=1e-10)
    loaded.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(load_model(tmp_path / "theirs").state_dict(), model.model.state_dict(), rtol=0, atol=0)


def test_beams_are_the_same_with_and_without_a_cache() -> None:
    model, ids = build(MOEUT), prompts()
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3}
    assert torch.equal(generated(model, ids, **beams), generated(model, ids, use_cache=False, **beams))


def test_more_repeats_than_trained_build_a_longer_cache() -> None:
    model = MoEUTForCausalLM.wrap(LanguageModel(replace(MOEUT, num_hidden_layers=8)).double().eval())
    model.load_state_dict(build(MOEUT).state_dict())
    ids = prompts()
    cache = getattr(model(ids), CACHE_NAME)
    assert len(cache.layers) == 8
    assert torch.equal(generated(model, ids), generated(model, ids, use_cache=False))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, ids = build(MOEUT).train(), prompts()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    kept = gradients()
    # The public methods have another name in every other version of transformers.
    model._set_gradient_checkpointing(enable=True)
    assert model.model.stack.gradient_checkpointing
    torch.testing.assert_close(gradients(), kept)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids, use_cache=True)


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
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-10, atol=1e-10)
    assert (loaded.model.lm_head.weight is loaded.model.embedding.weight) == tied
    loaded.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(load_model(tmp_path / "theirs").state_dict(), model.model.state_dict(), rtol=0, atol=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.bfloat16).dtype == torch.bfloat16


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


def test_a_new_model_has_our_initial_weights() -> None:
    model = MoEUTForCausalLM(build(replace(MOEUT, vocab_size=2000)).config)
    assert model.model.embedding.weight.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert model.model.lm_head.weight.abs().max() <= 16**-0.5


def test_wrapping_shares_the_parameters() -> None:
    ours = LanguageModel(MOEUT)
    wrapped = MoEUTForCausalLM.wrap(ours, end_of_document_id=5)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in ours.parameters()}
    assert wrapped.config.eos_token_id == wrapped.generation_config.pad_token_id == 5
    assert wrapped.training
    assert wrapped.device.type == "cpu"


def test_the_vocabulary_can_grow(tmp_path: Path) -> None:
    model, ids = build(MOEUT), prompts()
    expected = model(ids).logits
    model.resize_token_embeddings(50)
    torch.testing.assert_close(model(ids).logits[..., :40], expected)
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path).config.vocab_size == 50


def test_a_folder_loads_in_a_process_that_never_imported_us(tmp_path: Path) -> None:
    model, ids = build(MOEUT), prompts()
    model.save_pretrained(tmp_path / "model")
    save_file({"ids": ids, "logits": model(ids).logits.contiguous()}, tmp_path / "expected.safetensors")
    script = """
import sys
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
assert "moeut" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/model", trust_remote_code=True)
expected = load_file(sys.argv[1] + "/expected.safetensors")
assert (model(expected["ids"]).logits - expected["logits"]).abs().max() < 1e-10
model.save_pretrained(sys.argv[1] + "/again")
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


def test_a_folder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moeut.hf", None)
    with pytest.raises(ImportError, match="pip install moeut"):
        exec(STUB, {})
