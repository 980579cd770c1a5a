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


def random_state() -> dict[str, Any]:
    """The state of every generator as plain JSON values (torch's bytes as hexadecimal digits)."""
    numpy_state = dict(np.random.get_state(legacy=False))
    generator = numpy_state["state"]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": generator["key"].tolist(), "pos": generator["pos"]}},
        "torch": _digits(torch.get_rng_state()),
        "cuda": [_digits(state) for state in cuda],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator into a state that `random_state` returned, also after a trip through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(digits) for digits in state["cuda"]])


def _digits(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
