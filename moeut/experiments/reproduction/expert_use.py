"""What do the experts of a MoEUT do at its depths? Figures 9 to 11."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moeut.analysis import measures
from moeut.experiments.analysis import FIGURES, TABLES, AnalysisPlan, analyse
from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import LOSS, Chart, Direction, Means, Quantity, Study
from moeut.experiments.reproduction.systems import MOEUT
from moeut.experiments.subjects import Reading

ROUTER = "feed_forward"
ANALYSIS = "analysis"
"""Where in a run folder `moeut analyse` writes for this study."""
SPREAD = "depths an expert is used at"


def experts(scale: Scale) -> Study:
    """One MoEUT, looked at while it reads held-out text."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    moeut = scale.entrant(MOEUT, size, corpus)
    depth, group_size = moeut.model.num_hidden_layers, moeut.model.group_size
    first, middle, last = (Quantity(moeut, distinct(layer)) for layer in (1, (depth + 1) // 2, depth))
    layers = {float(layer): distinct(layer) for layer in range(1, depth + 1)}
    distances = {float(apart): overlap(apart) for apart in range(group_size, depth, group_size)}
    return Study(
        name="experts",
        source="figures 9 to 11",
        question="Do the shared layers of a MoEUT use other experts at other depths?",
        found="Some experts are used in few layers, most in many (figure 9); a token meets the most different experts "
        "in the middle, few at the bottom, and slightly fewer again near the top (figure 10); how much layers share of "
        "what a token selects (figure 11) is a picture without numbers.",
        entrants=[moeut],
        charts=[
            Chart("by-layer", "layer", "different experts that a token meets", lambda entrant: layers),
            Chart("by-distance", "layers apart", "overlap of selections (IoU)", lambda entrant: distances),
        ],
        directions=[Direction(first, middle), Direction(last, middle)],
        metrics=(LOSS, SPREAD, first.metric, middle.metric, last.metric, overlap(group_size)),
        measure=looked_at,
        pictures={
            f"{ANALYSIS}/{FIGURES}/{figure}-{ROUTER}": title
            for figure, title in {
                "experts_across_depth": "figure 9: where each expert is used",
                "distinct_by_rank": "figure 10: different experts that tokens meet",
                "overlap": "figure 11: overlap of selections between depths",
            }.items()
        },
    )


def distinct(layer: int) -> str:
    """The mean of n_lv (`moeut.analysis.measures.distinct_experts`) over tokens v met; layers are counted from 1."""
    return f"experts a token meets in layer {layer}"


def overlap(apart: int) -> str:
    """The mean overlap (`moeut.analysis.measures.overlap`) of the depths of shared layers that lie so far apart."""
    return f"overlap {apart} layers apart"


def looked_at(means: Means) -> Callable[[Path], dict[str, float]]:
    """`moeut analyse` on the held-out text of a run, into its folder, and the study's numbers from its tables."""

    def numbers(run: Path) -> dict[str, float]:
        analyse([str(run)], AnalysisPlan(reading=Reading(device=means.device)), run / ANALYSIS, means.progress)
        tables = run / ANALYSIS / TABLES
        return numbers_of_tables(
            *(_rows(tables / f"{name}.json") for name in ("routers", "experts", "tokens", "depths"))
        )

    return numbers


def numbers_of_tables(
    routers: list[dict[str, Any]], experts: list[dict[str, Any]], tokens: list[dict[str, Any]],
    depths: list[dict[str, Any]],
) -> dict[str, float]:  # fmt: skip
    """`distinct` of each layer, `overlap` of each distance, and `SPREAD`.

    The last is the mean over all experts that are used of exp(H), H the entropy of the depths at which one is used.
    """
    entropies = measures.usage_entropy(np.array([row["uses"] for row in experts]))
    found = {SPREAD: float(np.nanmean(np.exp(entropies)))}
    for router in routers:
        of_layer = np.array([row["distinct_experts"] for row in tokens if row["layer"] == router["layer"]])
        for depth, counts in zip(router["depths"], of_layer.T, strict=True):
            found[distinct(depth + 1)] = float(counts.mean())
    apart: dict[int, list[float]] = defaultdict(list)
    for row in depths:
        if row["other_depth"] > row["depth"]:
            apart[row["other_depth"] - row["depth"]].append(row["overlap"])
    return found | {overlap(distance): float(np.mean(values)) for distance, values in apart.items()}


def _rows(table: Path) -> list[dict[str, Any]]:
    return [row for row in json.loads(table.read_text(encoding="utf-8")) if row["router"] == ROUTER]
