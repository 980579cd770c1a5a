"""How long do one more token and a prompt take, and how long must it take to read the weights that they need?

Letters: B batch, H heads, P head size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count, cycle
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, StaticCache

from moeut.experts import ExpertBackend
from moeut.generation.growing_cache import GrowingCache
from moeut.hf.modeling import MoEUTForCausalLM
from moeut.model.language_model import LanguageModel
from moeut.model.sigma_moe import SigmaMoE
from moeut.model.switchhead import SwitchHeadAttention
from moeut.presets import run_preset

DIFFERENT = 16  # tokens that take turns, so that experts do
BUFFER = 2**27  # numbers: what is read in a row lies at a random place in so many, which no cache holds


def build(preset: str, backend: ExpertBackend) -> LanguageModel:
    """The model of a preset with random weights, always the same."""
    torch.manual_seed(0)
    return LanguageModel(replace(run_preset(preset, "").model, expert_backend=backend)).eval()


def tokens(model: LanguageModel, batch_size: int, length: int) -> Tensor:
    """Random tokens [B, length]."""
    return torch.randint(model.config.vocab_size, (batch_size, length))


def fill(cache: Cache, model: LanguageModel, batch_size: int, context: int) -> None:
    """Have a cache hold keys and values of `context` tokens: random ones, which take as long as any."""
    attention = model.config.attention
    for slot in range(model.config.num_hidden_layers):
        shape = (batch_size, attention.num_attention_heads, context, attention.head_dim)
        cache.update(torch.randn(shape), torch.randn(shape), slot)


def step(model: LanguageModel, batch_size: int, context: int) -> Callable[[], object]:
    """One more token for each sequence: called again and again, the context grows."""
    cache = GrowingCache(model.config.num_hidden_layers)
    fill(cache, model, batch_size, context)
    inputs = cycle([tokens(model, batch_size, 1) for _ in range(DIFFERENT)])

    def run() -> object:
        with torch.no_grad():
            return model(next(inputs), cache=cache, logits_to_keep=1)

    return run


def compiled_step(model: LanguageModel, batch_size: int, context: int, calls: int) -> Callable[[], object]:
    """The same as one graph of `torch.compile`, with a `StaticCache` that has room for so many calls.

    The first call compiles it.
    """
    cache = StaticCache(MoEUTForCausalLM.wrap(model).config, max_cache_len=context + calls)
    fill(cache, model, batch_size, context)
    inputs, lengths = cycle([tokens(model, batch_size, 1) for _ in range(DIFFERENT)]), count(context)
    places, compiled = torch.arange(context + calls)[None, None, None], torch.compile(model, fullgraph=True)

    def run() -> object:
        with torch.no_grad():
            return compiled(next(inputs), attention_mask=places <= next(lengths), cache=cache, logits_to_keep=1)

    return run


def prefill(model: LanguageModel, batch_size: int, context: int) -> Callable[[], object]:
    """A prompt into an empty cache."""
    inputs = tokens(model, batch_size, context)

    def run() -> object:
        with torch.no_grad():
            return model(inputs, cache=GrowingCache(model.config.num_hidden_layers), logits_to_keep=1)

    return run


def recomputation(model: LanguageModel, context: int) -> Callable[[], object]:
    """One more token for one sequence, by computing all of it anew."""
    inputs = tokens(model, 1, context + 1)

    def run() -> object:
        with torch.no_grad():
            return model(inputs, logits_to_keep=1)

    return run


class BytesRead(NamedTuple):
    """Weights that a step reads, in bytes; see `bytes_read`."""

    once: float
    again: float


def bytes_read(model: LanguageModel, batch_size: int) -> BytesRead:
    """Weights that a step reads: the mean over some steps.

    The embedding is left out, of which a token reads one vector. In each executed layer, the experts that some token of
    the batch has chosen count, whether or not an earlier repeat has read them. What all tokens meet (queries, keys,
    routers, norms) counts once for each layer that has weights of its own (`once`), or once for each executed layer
    (`again`). Head and final norm count once.
    """
    dense = [
        sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() < 3)
        for layer in model.stack.layers
    ]  # expert matrices alone have three dimensions
    ends = sum(parameter.numel() for part in (model.norm, model.lm_head) for parameter in part.parameters())
    steps = [experts_read(model, tokens(model, batch_size, 1)) for _ in range(DIFFERENT)]
    others, itemsize = ends + sum(steps) / len(steps), model.lm_head.weight.itemsize
    once, again = (itemsize * (times * sum(dense) + others) for times in (1, model.config.num_repeats))
    return BytesRead(once, again)


def experts_read(model: LanguageModel, inputs: Tensor) -> int:
    """Numbers in the experts' matrices that some of the inputs [B, 1] meet, summed over executed layers."""
    with torch.no_grad():
        routing = model(inputs, return_routing=True).routing
    total = 0
    for index, selections in zip(model.config.schedule, routing, strict=True):
        layer = model.stack.layers[index]
        matrices: dict[str, list[Tensor]] = {}
        if isinstance(layer.attention, SwitchHeadAttention):
            matrices["attention_value"] = [layer.attention.v_experts]
            matrices["attention_output"] = [layer.attention.o_experts]
        if isinstance(layer.feed_forward, SigmaMoE):
            matrices["feed_forward"] = [layer.feed_forward.up_experts, layer.feed_forward.down_experts]
        for name, selection in selections.items():
            groups = selection.experts.flatten(0, 1).unbind(1)  # an expert's number is one within its head
            chosen = sum(len(group.unique()) for group in groups)
            total += chosen * sum(matrix[0].numel() for matrix in matrices[name])
    return total


def reading(num_bytes: float) -> Callable[[], object]:
    """Read so many bytes in a row, as float32, from a place where no cache has them: sum them up."""
    numbers = int(num_bytes / 4)
    memory = torch.ones(max(BUFFER, 2 * numbers))

    def run() -> object:
        start = int(torch.randint(len(memory) - numbers, ()))
        return memory[start : start + numbers].sum()

    return run
