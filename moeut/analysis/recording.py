"""What does a model do while it reads? One pass over text in evaluation mode, of which arrays remain.

Nothing is patched: the model is asked for its routing and its stream. Memory depends on the model, not on the text.
Letters: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray

from moeut.analysis.selections import RouterRecording, position_ranges, router_tallies
from moeut.analysis.stream import HaltingRecording, HaltingTally, StreamRecording, StreamTally
from moeut.model.language_model import LanguageModel, evaluation_mode
from moeut.settings import IGNORED_TARGET

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""inputs [B, T] and targets [B, T], as `moeut.data.sampler.evaluation_batches` makes them."""


@dataclass(frozen=True)
class Recording:
    """What remains of a pass.

    schedule: [L], the shared layer that ran at each depth. sources: the names of the texts. token_counts: [V], how
    often each token was an input. cross_entropy: nats a token. routers: those of each shared layer, in the order in
    which they select; none in a dense model. stream: see `StreamRecording`. halting: None in a model without it.
    """

    schedule: tuple[int, ...]
    sources: tuple[str, ...]
    token_counts: NDArray[np.int64]
    cross_entropy: float
    routers: tuple[RouterRecording, ...]
    stream: StreamRecording
    halting: HaltingRecording | None

    @property
    def tokens(self) -> int:
        """How many positions were counted."""
        return int(self.token_counts.sum())


def record(model: LanguageModel, texts: Mapping[str, Iterable[Batch]], *, sample_every: int = 32) -> Recording:
    """Read texts once, and say what the routers selected and what became of the stream.

    texts: batches of each source, by its name. Positions whose target is `IGNORED_TARGET` count nowhere. sample_every:
    the stream is looked at, and read by the head, at every so many-th position (or the next number that has no factor
    in common with T, so that all positions of a row have their turn); routers count every position. The model is in
    evaluation mode meanwhile and afterwards as it was.

    Memory besides the model's own: 4 bytes for each depth, token of the vocabulary and expert of the layer that runs
    there, and the streams of one batch at all depths.

    Raises ValueError where there is nothing to read.
    """
    device = model.embedding.weight.device
    routers = router_tallies(model, len(texts))
    stream, halting = StreamTally(model), None if model.config.halting is None else HaltingTally(model)
    token_counts = torch.zeros(model.config.vocab_size, dtype=torch.int64, device=device)
    nats, seen = 0.0, 0
    with evaluation_mode(model):
        for source, batches in enumerate(texts.values()):
            for inputs, targets in batches:
                counted = np.flatnonzero(targets != IGNORED_TARGET)
                if not len(counted):
                    continue
                length = inputs.shape[1]
                ids, answers, places = (torch.from_numpy(array).to(device) for array in (inputs, targets, counted))
                ranges = torch.from_numpy(position_ranges(length)).to(device)[places % length]
                tokens = ids.flatten()[places]
                output = model(ids, answers, return_routing=True, return_hidden_states=True)
                for router in routers:
                    router.add(output.routing, places, tokens, ranges, source)
                every = next(step for step in count(sample_every) if gcd(step, length) == 1)
                stream.add(output.hidden_states, answers, places[-seen % every :: every])
                if halting is not None:
                    halting.add(output.expected_layers, tokens, places)
                token_counts += tokens.bincount(minlength=len(token_counts))
                nats += float(output.cross_entropy) * len(counted)
                seen += len(counted)
    if not seen:
        raise ValueError("there is no text to analyse: no token has a next one")
    return Recording(
        tuple(model.config.schedule), tuple(texts), token_counts.cpu().numpy(), nats / seen,
        tuple(router.recording() for router in routers), stream.recording(),
        None if halting is None else halting.recording(),
    )  # fmt: skip
