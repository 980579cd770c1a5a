"""What does a model make of one text, token by token? Its loss, its experts at each depth, when it halts.

Letters: T tokens of the text, L executed layers, R repeats of a layer, G groups of experts (heads; 1 in a feed-forward
layer), E experts in a group, K selected.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.sampler import evaluation_batches
from moeut.data.tokenizer import end_of_document_id
from moeut.data.tokens import TokenStream
from moeut.model.language_model import LanguageModel, ModelOutput, evaluation_mode, token_losses
from moeut.settings import IGNORED_TARGET

MAX_TOKENS = 2000
"""As much as a page shows well."""


@dataclass(frozen=True)
class RouterReading:
    """What one router of one shared layer selected for each token.

    layer: its place in the group. name: as the layer reports it. depths: [R], when it ran, counted from 0.
    num_experts: E. experts: [T, R, G, K], numbers within a group; E for nobody.
    """

    layer: int
    name: str
    depths: tuple[int, ...]
    num_experts: int
    experts: NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """One text, read by one model.

    pieces: [T], the text of each token; together they are the text read, and where a character is made of several
    tokens, the first of them has it and the others have nothing. losses: [T], −ln p(token | all before it), in nats.
    num_layers: L. expected_layers: [T], how many layers each token takes; None in a model without halting. routers:
    those of each shared layer, in the order in which they select; none in a dense model.
    """

    pieces: tuple[str, ...]
    losses: NDArray[np.float32]
    num_layers: int
    expected_layers: NDArray[np.float32] | None
    routers: tuple[RouterReading, ...]


def read(
    model: LanguageModel, tokenizer: Tokenizer, text: str, context_length: int, max_tokens: int = MAX_TOKENS
) -> Reading:
    """Read the first `max_tokens` tokens of a text, after an end of a document.

    A text longer than `context_length` is read in windows of that length that begin half of it apart; of each token
    count what the first window that holds it says of it, so that all but those of the first window have at least half
    a context before them. The model is in evaluation mode meanwhile and afterwards as it was.

    Raises ValueError where the text has no token, or the tokenizer none that ends a document.
    """
    end = end_of_document_id(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids = encoding.ids[:max_tokens]
    if not ids:
        raise ValueError("there is no text to read: it has no token")
    # A token's loss is found where the one before it is the input, its experts where it is the input itself: the stream
    # is one longer at both ends, and each of its places counts in one window.
    stream = TokenStream([np.array([end, *ids, end])], np.array([[1, len(text.encode())]]))
    with evaluation_mode(model):
        losses, layers, experts = map(list, zip(*_windows(model, stream, context_length), strict=True))
    return Reading(
        tuple(pieces(text, encoding.offsets[:max_tokens])),
        np.concatenate(losses)[:-1],
        model.config.num_hidden_layers,
        None if model.config.halting is None else np.concatenate(layers)[1:],
        tuple(
            RouterReading(layer, router.name, depths, router.config.num_experts, np.concatenate(selected)[1:])
            for (layer, depths, router), selected in zip(model.stack.routers(), zip(*experts, strict=True), strict=True)
        ),
    )


def pieces(text: str, offsets: list[tuple[int, int]]) -> Iterator[str]:
    """The part of the text that belongs to each token: from where the last one ended to where this one does.

    offsets: where each token begins and ends in the text. What lies between two tokens is the second one's.
    """
    last = 0
    for _, end in offsets:
        yield text[last:end]
        last = max(last, end)


def _windows(
    model: LanguageModel, stream: TokenStream, context_length: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None, list[NDArray[np.int64]]]]:
    """Of each window's places that count, t of them: losses [t], expected layers [t], and experts [t, R, G, K]."""
    device = model.embedding.weight.device
    for batch in evaluation_batches(stream, context_length, 1, stride=-(-context_length // 2)):
        inputs, targets = (torch.from_numpy(array).to(device) for array in batch)
        counted = targets[0] != IGNORED_TARGET
        output: ModelOutput = model(inputs, return_routing=True)
        assert output.routing is not None
        losses = token_losses(output.logits[0, counted], targets[0, counted])
        layers = output.expected_layers
        experts = [
            torch.stack([output.routing[depth][router.name].experts[0, counted] for depth in depths], dim=1)
            for _, depths, router in model.stack.routers()
        ]
        yield (
            losses.float().cpu().numpy(),
            None if layers is None else layers[0, counted].float().cpu().numpy(),
            [selected.cpu().numpy() for selected in experts],
        )
