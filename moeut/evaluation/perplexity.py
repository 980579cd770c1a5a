"""How well does a model predict a text? Cross entropy, perplexity and bits per byte over every token of it.

The stream is cut into blocks that follow each other; each is scored on its own, its first tokens with little context
(as in the paper). Or a window slides over it in strides, and every token but the first ones has much context.
Letters: B blocks, T tokens of a block, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moeut.data.sampler import evaluation_batches, evaluation_windows
from moeut.data.tokens import TokenStream
from moeut.model.language_model import evaluation_mode, token_losses
from moeut.settings import IGNORED_TARGET


@dataclass(frozen=True)
class Perplexity:
    """How well a text was predicted.

    cross_entropy: nats a token, mean of −ln p over `tokens` scored tokens, ends of documents included.
    standard_error: of that mean, from how much blocks differ (tokens of one block are not independent); infinite for a
    single block. perplexity: exp(cross_entropy). bits_per_byte: all nats / ln 2 / `bytes`, the UTF-8 bytes of the text,
    so that tokenizers can be compared.
    """

    cross_entropy: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    standard_error: float


class BlockSums(NamedTuple):
    """The summed loss in nats and the number of scored tokens of each block, and the bytes of the text."""

    nats: list[float]
    counts: list[int]
    num_bytes: int


class Share(NamedTuple):
    """The part of every batch that one of several processes scores, and how their results come together.

    Process `rank` of `world_size`; add_up: the sum of a tensor over all of them. The default is the whole of it.
    """

    rank: int = 0
    world_size: int = 1
    add_up: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def of(self, rows: int) -> slice:
        """This process's rows of so many; the first one where none is left, since all must call the model alike."""
        size = -(-rows // self.world_size)
        return slice(self.rank * size, (self.rank + 1) * size) if self.rank * size < rows else slice(1)

    def counts(self, rows: int) -> bool:
        """Whether this process's rows of so many are not another's."""
        return self.rank * -(-rows // self.world_size) < rows


def evaluate(
    model: nn.Module,
    stream: TokenStream,
    context_length: int,
    batch_size: int,
    progress: Callable[[str, int, int | None], None] | None = None,
    share: Share = Share(),  # noqa: B008 (immutable)
    stride: int | None = None,
) -> Perplexity:
    """How well a stream is predicted: `summarise` of its `block_sums`."""
    return summarise(*block_sums(model, stream, context_length, batch_size, progress, share, stride))


def block_sums(
    model: nn.Module,
    stream: TokenStream,
    context_length: int,
    batch_size: int,
    progress: Callable[[str, int, int | None], None] | None = None,
    share: Share = Share(),  # noqa: B008 (immutable)
    stride: int | None = None,
) -> BlockSums:
    """Score every token of a stream but the first, exactly once, in blocks of `context_length`, `batch_size` at a time.

    model: ids [B, T] → something with `logits` [B, T, V]; in evaluation mode meanwhile and afterwards as it was.
    stride: windows of `context_length` that begin so many tokens apart, each scored where the one before it ends, so
    that all tokens but those of the first have at least context_length − stride tokens of context; None: blocks.
    progress: called with ("evaluate", tokens scored, tokens in all). share: where several processes score together,
    each calls this with its own; all get the same result.

    Raises ValueError if there is nothing to score, or the stride is none.
    """
    total_tokens = len(stream) - 1
    if total_tokens < 1:
        raise ValueError("there is no text to evaluate: the stream has fewer than two tokens")
    device = next(model.parameters()).device
    blocks = len(evaluation_windows(len(stream), context_length, context_length if stride is None else stride))
    nats, counts = torch.zeros(blocks, dtype=torch.float64), torch.zeros(blocks, dtype=torch.int64)
    first = 0
    with evaluation_mode(model):
        for batch in evaluation_batches(stream, context_length, batch_size, stride):
            inputs, targets = map(torch.from_numpy, batch)
            mine = share.of(len(targets))
            losses = _losses(model, inputs[mine].to(device), targets[mine].to(device))
            if share.counts(len(targets)):
                nats[first : first + len(targets)][mine] = losses.cpu().double().sum(dim=1)
            counts[first : first + len(targets)] = (targets != IGNORED_TARGET).sum(dim=1)
            first += len(targets)
            if progress is not None:
                progress("evaluate", int(counts.sum()), total_tokens)
    assert counts.sum() == total_tokens
    return BlockSums(share.add_up(nats).tolist(), counts.tolist(), stream.num_bytes)


def joined(parts: Iterable[BlockSums]) -> BlockSums:
    """Several texts as one, for `summarise`."""
    nats, counts, num_bytes = zip(*parts, strict=True)
    return BlockSums(list(chain.from_iterable(nats)), list(chain.from_iterable(counts)), sum(num_bytes))


def _losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """−ln p of each target [B, T], at least in float32; 0 where nothing is scored."""
    return token_losses(model(inputs).logits.flatten(0, 1), targets.flatten()).view_as(targets)


def summarise(nats: list[float], counts: list[int], num_bytes: int) -> Perplexity:
    """Bring together the summed loss in nats and the number of scored tokens of each block, and the bytes of the text.

    The standard error is that of a ratio of sums over m blocks: sqrt(m / (m − 1) · Σ (nats − mean · count)²) / tokens.
    """
    blocks, tokens, total = len(counts), sum(counts), math.fsum(nats)
    mean = total / tokens
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(nats, counts, strict=True))
    error = math.sqrt(blocks / (blocks - 1) * squares) / tokens if blocks > 1 else math.inf
    bits_per_byte = total / math.log(2) / num_bytes if num_bytes else math.inf
    return Perplexity(mean, perplexity(mean), bits_per_byte, tokens, num_bytes, error)


def perplexity(cross_entropy: float) -> float:
    """exp(cross_entropy), infinite where a float cannot hold it."""
    try:
        return math.exp(cross_entropy)
    except OverflowError:
        return math.inf
