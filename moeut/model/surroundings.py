"""What is each part of a layer given, besides its own weights? Its inputs, and what a whole forward pass shares.

Letters: B batch, T query tokens, N key tokens, d hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moeut.model.rope import Phases


class Inputs(NamedTuple):
    """What a part reads, as the norm placement wants it (`moeut.model.layer.norm_placement`).

    scored: [B, T, d] for everything that ends in a softmax or sigmoid: queries, keys, gates, routers. projected:
    [B, T, d] for what is only multiplied by weights: values, experts.
    """

    scored: Tensor
    projected: Tensor


class Tokens(NamedTuple):
    """Which tokens count, and how much.

    real: [B, T], True at real tokens, or None: all are real. survival: [B, T], how much of a token goes on to this
    depth (`moeut.model.halting`), 0 where it has halted, or None in a model without halting. No expert computes
    anything for a halted token.
    """

    real: Tensor | None = None
    survival: Tensor | None = None


class Surroundings(NamedTuple):
    """What every layer of one forward pass shares; only a token's survival changes with depth.

    phases: rotation angles of the query tokens. places: [T] integers, where the queries stand among the keys. mask:
    [B or 1, 1, T, N], True (or 0.0) where a query may look at a key, or None. is_causal: a plain causal triangle, T =
    N, and no mask.
    """

    phases: Phases
    places: Tensor
    mask: Tensor | None
    is_causal: bool
    tokens: Tokens


def token_weights(tokens: Tokens) -> Tensor | None:
    """What each token counts in a mean over tokens, [B, T]; None where every token counts one."""
    if tokens.real is None or tokens.survival is None:
        return tokens.survival if tokens.real is None else tokens.real
    return tokens.real * tokens.survival


def visibility(padding_mask: Tensor | None, num_queries: int, num_keys: int, *, causal: bool, device: torch.device):
    """Which query may look at which key: (mask or None, is_causal), made only when a plain triangle does not say it.

    The last of num_queries queries stands at the last of num_keys keys. padding_mask: [B, num_keys], True at real
    tokens. A query that may look at nothing (padding on the left) looks at everything instead: its result is used by
    nobody, and a softmax over nothing would be NaN.
    """
    if padding_mask is None and (not causal or num_queries == 1):
        return None, False
    if padding_mask is None and num_queries == num_keys:
        return None, True
    mask = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    if causal:
        mask = mask.tril(num_keys - num_queries)
    if padding_mask is not None:
        mask = mask & padding_mask[:, None, None, :]
        mask = mask | ~mask.any(dim=-1, keepdim=True)
    return mask, False
