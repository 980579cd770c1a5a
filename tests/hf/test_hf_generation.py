"""Does `generate` write the same whatever cache, batch or way of asking? In float64, where no top-k choice tips."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import DENSE, MOEUT, VARIANTS, build, byte_model, generated, left_padded, prompts
from test_variants import ROWS
from test_variants import VARIANTS as TABLE
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, StaticCache
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from moeut.hf.modeling import CACHE_NAME, MoEUTForCausalLM
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig

CACHES = pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"use_cache": False}])


@VARIANTS
def test_greedy_text_is_the_same_with_any_cache_and_without(config: ModelConfig) -> None:
    model, ids = build(config), prompts()
    uncached = generated(model, ids, use_cache=False)
    assert len(uncached.unique()) > 2
    assert torch.equal(generated(model, ids), uncached)
    assert torch.equal(generated(model, ids, cache_implementation="static"), uncached)
    step_by_step = ids
    for _ in range(uncached.shape[1]):
        step_by_step = torch.cat([step_by_step, model.model(step_by_step).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(step_by_step[:, ids.shape[1] :], uncached)


@VARIANTS
def test_logits_of_generated_tokens_are_the_same_with_any_cache_and_without(config: ModelConfig) -> None:
    model = build(config)
    ids, mask = left_padded([prompts(1, 6), prompts(1, 3)])

    def logits(**settings: Any) -> Tensor:
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True, **settings,
        )  # fmt: skip
        return torch.stack(output.logits)

    uncached = logits(use_cache=False)
    torch.testing.assert_close(logits(), uncached, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(logits(cache_implementation="static"), uncached, rtol=1e-9, atol=1e-10)


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
def test_left_padding_changes_nothing_with_a_static_cache(config: ModelConfig) -> None:
    model = build(config)
    alone = [prompts(1, length) for length in (3, 8, 5)]
    together = generated(model, *left_padded(alone), cache_implementation="static")
    assert torch.equal(together, torch.cat([generated(model, ids) for ids in alone]))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_writes_the_same_with_a_cache_without_one_and_in_a_padded_batch(row: str) -> None:
    """Greedily, in float64; a prompt alone, and with padding on its left beside longer ones."""
    config = replace(TABLE[row], vocab_size=40)
    model = build(config)
    alone = [prompts(1, length) for length in (2, 6, 4)]
    texts = torch.cat([generated(model, ids, max_new_tokens=5) for ids in alone])
    assert torch.equal(torch.cat([generated(model, ids, use_cache=False, max_new_tokens=5) for ids in alone]), texts)
    assert torch.equal(generated(model, *left_padded(alone), max_new_tokens=5), texts)


def test_beams_are_the_same_with_and_without_a_cache_and_in_a_padded_batch() -> None:
    model = build(MOEUT)
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3}
    alone = [prompts(1, length) for length in (3, 7)]
    expected = torch.cat([generated(model, ids, use_cache=False, **beams) for ids in alone])
    assert torch.equal(torch.cat([generated(model, ids, **beams) for ids in alone]), expected)
    assert torch.equal(generated(model, *left_padded(alone), **beams), expected)
    assert torch.equal(generated(model, *left_padded(alone), cache_implementation="static", **beams), expected)


@CACHES
def test_samples_are_the_same_for_the_same_seed(settings: dict[str, Any]) -> None:
    model, ids = build(MOEUT), prompts(3)
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 7, "top_p": 0.9, "temperature": 1.3}
    torch.manual_seed(5)
    expected = generated(model, ids, **sampling)
    torch.manual_seed(5)
    assert torch.equal(generated(model, ids, **sampling, **settings), expected)
    assert not torch.equal(generated(model, ids, **sampling, **settings), expected)


def test_a_prompt_may_come_in_chunks() -> None:
    model, ids = build(MOEUT), prompts(length=11)
    assert torch.equal(generated(model, ids, prefill_chunk_size=4), generated(model, ids))


@pytest.mark.parametrize("by", ["the prompt", "a smaller model"])
def test_guessing_ahead_changes_no_token(by: str) -> None:
    """Guesses are checked several at a time; those that are rejected leave the cache again."""
    model, ids = build(MOEUT), prompts(1, 4).repeat(1, 3)
    settings: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if by == "a smaller model":
        settings = {"assistant_model": build(DENSE)}
    assert torch.equal(generated(model, ids, **settings), generated(model, ids))


def test_a_streamer_gets_each_token_as_it_comes() -> None:
    class Collector(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.pieces.append(value.flatten())

        def end(self) -> None:
            self.ended = True

    model, ids, collector = build(MOEUT), prompts(1), Collector()
    text = generated(model, ids, streamer=collector)
    assert torch.equal(collector.pieces[0], ids[0])
    assert torch.equal(torch.cat(collector.pieces[1:]), text[0])
    assert len(collector.pieces) == 10
    assert collector.ended


def test_writing_stops_where_it_is_told_to() -> None:
    model, ids = build(MOEUT), prompts(1)
    whole = generated(model, ids)[0].tolist()
    first = whole.index(whole[4])
    assert generated(model, ids, eos_token_id=[39, whole[4]])[0].tolist() == whole[: first + 1]

    def three_more(so_far: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        return torch.full((len(so_far),), so_far.shape[1] >= ids.shape[1] + 3)

    stopped = generated(model, ids, stopping_criteria=StoppingCriteriaList([three_more]))
    assert stopped[0].tolist() == whole[:3]


def test_writing_goes_on_from_a_cache() -> None:
    model, ids = build(MOEUT), prompts()
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    whole = model.generate(ids, max_new_tokens=8, **settings)
    begun = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, **settings)
    again = model.generate(begun.sequences, max_new_tokens=5, **{CACHE_NAME: getattr(begun, CACHE_NAME)}, **settings)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("beams", [1, 2])
def test_vectors_serve_in_place_of_tokens(beams: int) -> None:
    model, ids = build(MOEUT), prompts()
    embedded = model.get_input_embeddings()(ids)
    settings: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    written = model.generate(inputs_embeds=embedded, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(written, generated(model, ids, **settings))


def test_more_repeats_than_trained_build_a_longer_cache(tmp_path: Path) -> None:
    """The weights of 2 repeats run 4 times: 8 slots, and the text is the same with and without them."""
    trained = build(MOEUT)
    deeper = MoEUTForCausalLM.wrap(LanguageModel(replace(MOEUT, num_hidden_layers=8)).double().eval())
    deeper.load_state_dict(trained.state_dict())
    save_model(trained.model, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, num_hidden_layers=8)
    ids = prompts()
    for model in (deeper, loaded):
        assert len(getattr(model(ids), CACHE_NAME).layers) == 8
        text = generated(model, ids)
        assert torch.equal(text, generated(model, ids, use_cache=False))
        assert torch.equal(text, generated(model, ids, cache_implementation="static"))
    assert not torch.equal(generated(trained, ids), text)


def test_sequences_packed_into_one_do_not_see_each_other() -> None:
    """Positions that begin again say where; the balance term takes the whole for one sequence."""
    model = build(MOEUT)
    first, second = prompts(1, 4), prompts(1, 6)
    positions = torch.cat([torch.arange(4), torch.arange(6)])[None]
    packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :4], model(first).logits, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(packed[:, 4:], model(second).logits, rtol=1e-9, atol=1e-10)


def test_strings_that_stop_a_text(tmp_path: Path) -> None:
    model = MoEUTForCausalLM.wrap(byte_model(tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("az", return_tensors="pt").input_ids
    with torch.no_grad():
        model.model.lm_head.bias[ids[0, 1]] = 100  # z, whatever stands before it
    assert tokenizer.decode(generated(model, ids[:, :1])[0]) == 9 * "z"
    stopped = generated(model, ids[:, :1], stop_strings=["zzz"], tokenizer=tokenizer)
    assert tokenizer.decode(stopped[0]) == "zzz"
