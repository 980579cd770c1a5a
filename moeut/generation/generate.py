"""How does a prompt become text? Tokens chosen one after another by transformers' `generate`, streamed as they come."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import transformers
from pydantic import Field
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from moeut.data.tokenizer import encode, end_of_document_id, load_tokenizer
from moeut.generation.writing import Writer
from moeut.hf.modeling import MoEUTForCausalLM
from moeut.model.elastic_depth import with_repeats
from moeut.model.folder import load_model
from moeut.settings import STRICT, NonNegativeFloat, PositiveInt

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer shows for bytes that are no character, or not yet."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerationConfig:
    """How each next token is chosen.

    max_new_tokens: where to stop if the model does not end the document before. temperature: the logits are divided by
    it; 0 takes the likeliest token. top_k: choose among the k likeliest. top_p: choose among the likeliest that hold
    this share of the probability. None: among all. seed: the same seed gives the same text.
    """

    max_new_tokens: PositiveInt = 200
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0


class LoadedModel(NamedTuple):
    """A model ready to speak, and the tokenizer it was trained with."""

    model: MoEUTForCausalLM
    tokenizer: Tokenizer


def load(folder: Path, device: torch.device | str = "cpu", num_repeats: int | None = None) -> LoadedModel:
    """Read a model folder. num_repeats: how often each layer runs, None: as in training.

    Raises ValueError, one line, if it is none, its tokenizer knows more tokens than it, or it has no other depth.
    """
    model = load_model(folder, device)
    if num_repeats is not None:
        model = with_repeats(model, num_repeats)
    tokenizer = load_tokenizer(folder)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, more than the model's "
            f"{model.config.vocab_size} (vocab_size)"
        )
    return LoadedModel(Writer.wrap(model.eval(), end_of_document_id(tokenizer)), tokenizer)


def generate(
    model: LoadedModel | Path | str,
    prompt: str = "",
    config: GenerationConfig = GenerationConfig(),  # noqa: B008 (frozen)
    stream: Callable[[str], object] | None = None,
) -> str:
    """The text that a model writes after `prompt`, up to the end of the document.

    model: a loaded one, or a model folder. An empty prompt begins a document. stream: called with each piece of the
    text as soon as no later token can change it; the pieces together are the result. The random state of the process is
    the same afterwards. Raises ValueError, one line, where the folder is no model folder.
    """
    loaded = model if isinstance(model, LoadedModel) else load(Path(model))
    end = end_of_document_id(loaded.tokenizer)
    prompt_ids = encode(loaded.tokenizer, [prompt])[0] or [end]
    text = _Text(loaded.tokenizer, prompt_ids, stream)
    device = loaded.model.device
    input_ids = torch.tensor([prompt_ids], device=device)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        loaded.model.generate(  # pyright: ignore[reportAttributeAccessIssue] (its protocol fits no model)
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=for_transformers(config, loaded),
            streamer=text,
        )
    return text.shown


def for_transformers(config: GenerationConfig, loaded: LoadedModel) -> transformers.GenerationConfig:
    """The same settings in transformers' words. Ids that the model has but the tokenizer lacks are never chosen."""
    end = end_of_document_id(loaded.tokenizer)
    sampling = {}
    if config.temperature > 0:
        sampling = {"temperature": config.temperature, "top_k": config.top_k or 0, "top_p": config.top_p or 1.0}
    return transformers.GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        suppress_tokens=list(range(loaded.tokenizer.get_vocab_size(), loaded.model.config.vocab_size)) or None,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        **sampling,
    )


class _Text(BaseStreamer):
    """Receives tokens and shows their text.

    A character's bytes may lie in several tokens, so whatever ends in an incomplete character waits for the next token.
    The whole text is decoded each time, prompt included: tokenizers differ in what a token means at the beginning.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stream: Callable[[str], object] | None) -> None:
        self.shown = ""
        self._tokenizer = tokenizer
        self._stream = stream
        self._ids = list(prompt_ids)
        self._prompt = self._decoded()
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt [1, T] at the first call, a token [1] at each later one."""
        if self._in_prompt:
            self._in_prompt = False
            return
        self._ids += value.tolist()
        self._show(self._decoded().rstrip(INCOMPLETE))

    def end(self) -> None:
        """Show what still waits: bytes that did not become a character."""
        self._show(self._decoded())

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def _show(self, text: str) -> None:
        new = text[len(self._prompt) + len(self.shown) :]
        self.shown += new
        if new and self._stream is not None:
            self._stream(new)
