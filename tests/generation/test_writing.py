"""Does a writer say what the model would say without a cache of ours, from any prompt, in any way of generating?"""

from typing import Any

import pytest
import torch
from tiny_folder import CONFIG
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, StaticCache

from moeut.generation.growing_cache import GrowingCache, GrowingLayer
from moeut.generation.writing import Writer
from moeut.hf.modeling import CACHE_NAME, MoEUTForCausalLM
from moeut.model.language_model import LanguageModel


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(CONFIG).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.lm_head.bias[0] = -100  # never ends a document by itself
    return model


def written(writer: Any, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    torch.manual_seed(1)
    mask = settings.pop("attention_mask", torch.ones_like(ids))
    return writer.generate(ids, attention_mask=mask, max_new_tokens=20, top_k=0, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3},
     {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)  # fmt: skip
def test_the_same_as_without_a_cache(model: LanguageModel, settings: dict[str, Any]) -> None:
    ids = torch.randint(1, CONFIG.vocab_size, (2, 5))
    expected = written(MoEUTForCausalLM.wrap(model), ids, use_cache=False, **settings)
    assert torch.equal(written(Writer.wrap(model), ids, **settings), expected)


def test_prompts_of_different_lengths(model: LanguageModel) -> None:
    ids = torch.randint(1, CONFIG.vocab_size, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = written(Writer.wrap(model), ids, attention_mask=mask, do_sample=False)
    for row, length in enumerate((3, 5)):
        alone = written(Writer.wrap(model), ids[row : row + 1, -length:], do_sample=False)
        assert torch.equal(both[row, -20:], alone[0, -20:])


def test_a_prompt_without_tokens_begins_a_document(model: LanguageModel) -> None:
    writer = Writer.wrap(model)
    # A tokenizer gives a list without numbers, of which torch makes floating-point numbers.
    nothing = written(writer, torch.tensor([[]]), attention_mask=torch.tensor([[]]), do_sample=False)
    assert torch.equal(nothing, written(writer, torch.tensor([[0]]), do_sample=False))


def test_its_cache_grows(model: LanguageModel) -> None:
    output: Any = written(Writer.wrap(model), torch.tensor([[1, 2]]), do_sample=False, return_dict_in_generate=True)
    cache = output[CACHE_NAME]
    assert isinstance(cache, Cache)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer] * CONFIG.num_hidden_layers
    assert cache.get_seq_length() == 21


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device: looking at a number in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_a_step_waits_for_nothing_and_is_one_graph(model: LanguageModel, kind: str) -> None:
    hf = MoEUTForCausalLM.wrap(model)
    tokens = torch.randint(1, CONFIG.vocab_size, (1, 6))

    def cache() -> Cache:
        if kind == "growing":
            return GrowingCache(CONFIG.num_hidden_layers)
        return StaticCache(config=hf.config, max_cache_len=8)

    with torch.no_grad():
        expected = model(tokens).logits[:, 5:]
        filled = cache()
        hf(tokens[:, :5], **{CACHE_NAME: filled})
        mask = (torch.arange(8) < 6).view(1, 1, 1, 8) if kind == "static" else None
        with Waits() as waits:
            step = model(tokens[:, 5:], attention_mask=mask, cache=filled)
        assert waits.seen == []
        torch.testing.assert_close(step.logits, expected)
        if kind == "static":
            filled = cache()
            hf(tokens[:, :5], **{CACHE_NAME: filled})
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(tokens[:, 5:], attention_mask=mask, cache=filled).logits, expected)
