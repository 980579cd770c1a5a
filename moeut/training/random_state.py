"""Where is a run's randomness, and how does it go on after a stop? The generators of torch, Python and numpy.

Which data a step sees is none of this: it follows from the step's number (`moeut.data.sampler`). These generators feed
initial weights and dropout.
"""

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Start every generator from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of_rank(seed: int, step: int, rank: int) -> int:
    """A seed for one of several ranks that go on after `step` steps of a run, unlike that of any other."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


def random_state() -> dict[str, Any]:
    """The state of every generator as plain JSON values (torch's bytes as hexadecimal digits)."""
    numpy_state = dict(np.random.get_state(legacy=False))
    generator = numpy_state["state"]
    # Of the GPU that this process computes on: asking the others would take memory there.
    cuda = _digits(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else None
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": generator["key"].tolist(), "pos": generator["pos"]}},
        "torch": _digits(torch.get_rng_state()),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator into a state that `random_state` returned, also after a trip through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _digits(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
