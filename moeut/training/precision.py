"""In which numbers is a step computed? float32, or autocast to 16 bits; weights and their updates stay float32.

| precision  | forward                        | backward                               | `auto` chooses it on    |
| ---------- | ------------------------------ | -------------------------------------- | ----------------------- |
| `float32`  | as the weights are             | as the weights are                     | CPUs, MPS               |
| `bfloat16` | matrix products in bfloat16    | the same; as wide a range as float32   | CUDA GPUs from 8.0 on   |
| `float16`  | matrix products in float16     | of the loss times a scale (`guard.py`) | older CUDA GPUs         |

Routers, norms, softmax, the balance term and the loss are float32 in all three. Held-out text is scored in float32
whatever the training's precision, as in the paper, so that the figure is the one `moeut evaluate` gives.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def resolve_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision that is used on a device: `auto` as in the table above, any other as it is."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass of this precision runs; in float32 one that changes nothing."""
    if precision == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=getattr(torch, precision))
