"""What becomes of the residual stream on its way through the layers? Sizes, directions, what could be read from it.

Letters: B rows, T tokens of a row, n sampled positions, L executed layers, d hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeut.model.language_model import LanguageModel, mean_cross_entropy


@dataclass(frozen=True)
class StreamRecording:
    """Means over sampled positions; x_i is the stream before layer i, x_L what the last layer leaves.

    positions: how many were sampled. norm: [L + 1], ‖x_i‖. update: [L], ‖x_{i+1} − x_i‖. relative_update: [L], their
    ratio ‖x_{i+1} − x_i‖ / ‖x_i‖. cosine: [L + 1, L + 1], x_i·x_j / (‖x_i‖ ‖x_j‖). cross_entropy: [L + 1], −ln p of the
    next token, in nats, where final norm and head read x_i as if it were x_L (the logit lens).
    """

    positions: int
    norm: NDArray[np.float64]
    update: NDArray[np.float64]
    relative_update: NDArray[np.float64]
    cosine: NDArray[np.float64]
    cross_entropy: NDArray[np.float64]


class StreamTally:
    """The sums of a `StreamRecording`, in float64 and therefore on the CPU."""

    def __init__(self, model: LanguageModel) -> None:
        depths = model.config.num_hidden_layers + 1
        self.model, self.positions = model, 0
        self.norm = torch.zeros(depths, dtype=torch.float64)
        self.update, self.relative_update = torch.zeros_like(self.norm[1:]), torch.zeros_like(self.norm[1:])
        self.cosine = torch.zeros(depths, depths, dtype=torch.float64)
        self.cross_entropy = torch.zeros_like(self.norm)

    def add(self, hidden_states: Sequence[Tensor], targets: Tensor, places: Tensor) -> None:
        """Add some positions of a batch.

        hidden_states: L + 1 of [B, T, d]. targets: [B, T]. places: [n], which of the B·T positions.
        """
        states = [state.flatten(0, 1)[places] for state in hidden_states]
        streams = torch.stack(states)
        streams = streams.to(torch.promote_types(streams.dtype, torch.float32))
        norms = torch.linalg.vector_norm(streams, dim=-1)
        divisors = norms.clamp(min=torch.finfo(norms.dtype).tiny)
        updates = torch.linalg.vector_norm(streams.diff(dim=0), dim=-1)
        directions = (streams / divisors.unsqueeze(-1)).flatten(1)
        self.positions += len(places)
        self.norm += norms.sum(dim=1).cpu()
        self.update += updates.sum(dim=1).cpu()
        self.relative_update += (updates / divisors[:-1]).sum(dim=1).cpu()
        self.cosine += (directions @ directions.T).cpu()
        answers = targets.flatten()[places]
        for depth, state in enumerate(states):
            logits = self.model.lm_head(self.model.norm(state))
            self.cross_entropy[depth] += len(places) * mean_cross_entropy(logits[None], answers[None]).cpu()

    def recording(self) -> StreamRecording:
        """The means of what has been added so far."""
        sums = (self.norm, self.update, self.relative_update, self.cosine, self.cross_entropy)
        return StreamRecording(self.positions, *((total / self.positions).numpy() for total in sums))


@dataclass(frozen=True)
class HaltingRecording:
    """How many layers tokens take in a model that lets each stop at a depth of its own.

    by_token: [V], the mean over the positions of an input token, NaN for one that was not read. positions: [L], how
    many positions took 1, 2, … L layers, rounded.
    """

    by_token: NDArray[np.float64]
    positions: NDArray[np.int64]


class HaltingTally:
    """The sums of a `HaltingRecording`, in float64 and therefore on the CPU."""

    def __init__(self, model: LanguageModel) -> None:
        self.layers = torch.zeros(model.config.vocab_size, dtype=torch.float64)
        self.tokens = torch.zeros_like(self.layers)
        self.positions = torch.zeros(model.config.num_hidden_layers, dtype=torch.int64)

    def add(self, expected_layers: Tensor, tokens: Tensor, places: Tensor) -> None:
        """Add a batch. expected_layers: [B, T]; tokens: [N], the input tokens at `places` among the B·T positions."""
        layers, tokens = expected_layers.flatten()[places].cpu().double(), tokens.cpu()
        self.layers.index_add_(0, tokens, layers)
        self.tokens.index_add_(0, tokens, torch.ones_like(layers))
        last = len(self.positions) - 1
        self.positions += (layers.round().long() - 1).clamp(0, last).bincount(minlength=last + 1)

    def recording(self) -> HaltingRecording:
        """What has been added so far."""
        return HaltingRecording((self.layers / self.tokens).numpy(), self.positions.numpy())
