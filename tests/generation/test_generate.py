"""Is a text what the model would say, whole and in pieces, and the same for the same seed?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from moeut.data.tokenizer import byte_tokenizer, encode, save_tokenizer, train_tokenizer
from moeut.generation.generate import GenerationConfig, LoadedModel, _Text, generate, load
from moeut.hf.modeling import MoEUTForCausalLM
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.variants import moeut as moeut_config

CONFIG = moeut_config(
    hidden_size=16, num_hidden_layers=2, group_size=1, num_attention_heads=2, head_dim=6, attention_experts=2,
    experts=4, experts_per_tok=2, expert_size=4, vocab_size=257,
)  # fmt: skip
SHORT = GenerationConfig(max_new_tokens=24)
GREEDY = replace(SHORT, temperature=0.0)


def build(config: ModelConfig = CONFIG, tokenizer: Tokenizer | None = None) -> LoadedModel:
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.lm_head.bias[0] = -100  # never ends a document by itself
    return LoadedModel(MoEUTForCausalLM.wrap(model), tokenizer or byte_tokenizer())


def folder(path: Path, config: ModelConfig = CONFIG) -> Path:
    path.mkdir()
    save_tokenizer(byte_tokenizer(), path)
    save_model(build(config).model.model, path, tokenizer_folder=None)
    return path


def said(loaded: LoadedModel, ids: list[int], steps: int) -> bytes:
    """Greedy text by the plainest means: the whole sequence anew for each token of the byte tokenizer."""
    tokens = torch.tensor([ids])
    for _ in range(steps):
        tokens = torch.cat([tokens, loaded.model.model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return bytes(token - 1 for token in tokens[0, len(ids) :].tolist())


@pytest.mark.parametrize("prompt", ["def f(x):", "", "ünïcödé", "long " * 300])
def test_greedy_text_is_the_likeliest_token_again_and_again(prompt: str) -> None:
    loaded = build()
    ids = [byte + 1 for byte in prompt.encode()] or [0]
    assert generate(loaded, prompt, GREEDY) == said(loaded, ids, 24).decode(errors="replace")


def test_pieces_are_the_text_and_none_is_half_a_character() -> None:
    loaded, pieces = build(), []
    text = generate(loaded, "", replace(SHORT, max_new_tokens=60, temperature=1.5), pieces.append)
    assert "".join(pieces) == text
    assert len(pieces) > 10


def test_the_seed_decides_and_the_process_keeps_its_random_state() -> None:
    loaded = build()
    before = torch.get_rng_state()
    texts = [generate(loaded, "a", replace(SHORT, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_one_choice_is_no_choice() -> None:
    loaded = build()
    greedy = generate(loaded, "a", GREEDY)
    assert generate(loaded, "a", replace(SHORT, top_k=1, temperature=3.0)) == greedy
    assert generate(loaded, "a", replace(SHORT, top_p=1e-6, temperature=3.0)) == greedy


def test_nothing_restricts_the_choice_unless_asked() -> None:
    """transformers would sample from the 50 likeliest by default; here these are no ASCII."""
    loaded = build()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.zero_()
        loaded.model.model.lm_head.bias.copy_(torch.linspace(0, 0.01, 257))
        loaded.model.model.lm_head.bias[0] = -100
    assert any(character.isascii() for character in generate(loaded, "", SHORT))
    assert not any(character.isascii() for character in generate(loaded, "", replace(SHORT, top_k=50)))


def test_the_end_of_the_document_ends_the_text() -> None:
    loaded, pieces = build(), []
    with torch.no_grad():
        loaded.model.model.lm_head.bias[0] = 1000
    assert generate(loaded, "a", SHORT, pieces.append) == ""
    assert pieces == []


def test_tokens_without_text_are_never_chosen() -> None:
    loaded = build(replace(CONFIG, vocab_size=300))
    with torch.no_grad():
        loaded.model.model.lm_head.bias[257:] = 1000
    assert len(generate(loaded, "a", GREEDY)) > 0


def test_a_folder_speaks_like_the_model_in_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    loaded = load(path)
    assert not loaded.model.training
    assert generate(path, "a", SHORT) == generate(str(path), "a", SHORT) == generate(loaded, "a", SHORT)


def test_what_is_no_model_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    small = folder(tmp_path / "small", replace(CONFIG, vocab_size=100))
    untold = folder(tmp_path / "untold")
    (untold / "tokenizer.json").unlink()
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, reason in {
        "nowhere": "no model folder",
        "file": "no model folder",
        "empty": "no model folder",
        untold.name: "tokenizer.json: no such file",
        small.name: "the tokenizer has 257 tokens, more than the model's 100",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            generate(tmp_path / name, "a")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": 2**64}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


TRAINED = train_tokenizer(["żółw 日本語 naïve 🙂🙃", "🙂 naïve żółw 日本語"], 290)


def streamed(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> tuple[str, list[str]]:
    pieces: list[str] = []
    text = _Text(tokenizer, encode(tokenizer, [prompt])[0], pieces.append)
    text.put(torch.tensor([[0]]))
    for token in ids:
        text.put(torch.tensor([token]))
    text.end()
    return text.shown, pieces


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["bytes", "trained"]))
def test_streaming_loses_nothing(prompt: str, text: str, name: str) -> None:
    tokenizer = byte_tokenizer() if name == "bytes" else TRAINED
    shown, pieces = streamed(tokenizer, prompt, encode(tokenizer, [text])[0])
    assert shown == "".join(pieces) == text
    assert all(pieces)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=24))
def test_streaming_shows_what_is_no_text_as_decoding_does(content: bytes) -> None:
    shown, _ = streamed(byte_tokenizer(), "é", [byte + 1 for byte in content])
    assert shown == content.decode(errors="replace")


def test_a_split_character_waits_for_its_end() -> None:
    _, pieces = streamed(byte_tokenizer(), "", [byte + 1 for byte in "a🙂b".encode()])
    assert pieces == ["a", "🙂", "b"]


def test_batches_of_tokens_arrive_as_tensors() -> None:
    text = _Text(byte_tokenizer(), [1], None)
    prompt: Tensor = torch.tensor([[1]])
    text.put(prompt)
    text.put(torch.tensor([66]))
    assert text.shown == "A"
