"""What is a model, before anything is built? Parts, parameters, computation and bytes; several models side by side."""

from dataclasses import asdict
from textwrap import shorten
from typing import Any, NamedTuple

import torch

from moeut.model.cost import cost
from moeut.model.folder import DTYPES
from moeut.model.footprint import activation_bytes, cache_bytes_per_token, weight_bytes
from moeut.model.language_model import ModelConfig
from moeut.training.report import human
from moeut.trees import to_tree

WIDTH = 80
"""Columns of a terminal that a table fits into."""
LISTED = ("parameters", "  active", "multiply-adds", "cache", "layers")


def description(config: ModelConfig, context_length: int = 1024, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Everything there is to say of a configuration, as plain values.

    Besides `moeut.model.cost.Cost` there are bytes (`moeut.model.footprint`), activations for one sequence of
    `context_length`, all in `dtype`; the layer that runs at each depth; and the configuration itself.
    """
    activations = {
        name: activation_bytes(config, context_length, dtype=dtype, gradient_checkpointing=recomputed)
        for name, recomputed in (("activation_bytes", False), ("checkpointed_activation_bytes", True))
    }
    return {
        **asdict(cost(config, context_length)),
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": weight_bytes(config, dtype),
        **activations,
        "cache_bytes_per_token": cache_bytes_per_token(config, dtype),
        "schedule": config.schedule,
        "model": to_tree(config),
    }


def dtype_named(name: str) -> torch.dtype:
    """The dtype of this name. Raises ValueError where weights cannot have it."""
    if name not in DTYPES:
        raise ValueError(f"--dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


class Row(NamedTuple):
    """A line of what is said of a model: what, how much, and what that means."""

    label: str
    value: str
    note: str = ""


def lines(facts: dict[str, Any]) -> list[str]:
    """One model, a line for each of `rows`."""
    return [f"{row.label:<17}{row.value:>15}   {row.note}".rstrip() for row in rows(facts)]


def table(described: dict[str, dict[str, Any]]) -> list[str]:
    """Several models by their names: side by side where a line holds them, otherwise a line each of what counts."""
    by_name = {name: {row.label: row.value for row in rows(facts)} for name, facts in described.items()}
    labels = [row.label for row in rows(next(iter(described.values())))]
    side_by_side = [["", *by_name], *([label, *(of[label] for of in by_name.values())] for label in labels)]
    lines = aligned(side_by_side)
    if len(lines[0]) <= WIDTH:
        return lines
    listed = [[name, *(of[label] for label in LISTED)] for name, of in by_name.items()]
    return aligned([["", *(label.strip() for label in LISTED)], *listed])


def aligned(cells: list[list[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        label.ljust(first) + "".join(cell.rjust(2 + width) for cell, width in zip(values, others, strict=True))
        for label, *values in cells
    ]


def rows(facts: dict[str, Any]) -> list[Row]:
    """What is said of a model, in order: sizes, computation, bytes, parts."""
    model, schedule = facts["model"], facts["schedule"]
    tokens, repeats = f"{facts['context_length']:,}", len(schedule) // model["group_size"]
    executed = shorten(f"executed: {' '.join(map(str, schedule))}", WIDTH - 35, placeholder=" …")
    return [
        Row("parameters", f"{facts['parameters']:,}", "in all, each shared one once"),
        Row("  active", f"{facts['active_parameters']:,}", "met by one token in each layer once"),
        Row("  embedding, head", f"{facts['embedding_parameters']:,}"),
        Row("multiply-adds", f"{facts['macs_per_token']:,}", f"a token, forward, context {tokens}"),
        Row("  training", f"{facts['training_macs_per_token']:,}", "forward and backward"),
        Row("weights", human(facts["weight_bytes"]), facts["dtype"]),
        Row("activations", human(facts["activation_bytes"]), f"kept in training, {tokens} tokens"),
        Row("  recomputed", human(facts["checkpointed_activation_bytes"]), "with gradient checkpointing"),
        Row("cache", human(facts["cache_bytes_per_token"]), "keys and values of a token"),
        Row("layers", f"{model['group_size']} × {repeats}", executed),
        Row("width", f"{model['hidden_size']:,}", "hidden size"),
        Row("attention", model["attention"]["kind"]),
        Row("feed-forward", model["feed_forward"]["kind"]),
        Row("layer norm", model["norm"]),
        Row("halting", "none" if model["halting"] is None else model["halting"]["kind"]),
    ]
