"""Which figures does an analysis have? Those of every router, for all models side by side, and those of the stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeut.analysis import measures, plots
from moeut.analysis.plots import Grid, Panel
from moeut.analysis.recording import Recording
from moeut.analysis.selections import POSITION_RANGES, RouterRecording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = 4
"""So many layers of a group are drawn; the numbers have all."""
FREQUENT_TOKENS = 6000
SOURCES = 24
"""So many sources are drawn, the largest ones."""
LETTERS = 24
"""Names of models and sources that are longer are cut."""
Routers = Mapping[str, Sequence[RouterRecording]]
"""The routers of one name in each model, a layer each."""


def figures(recordings: Mapping[str, Recording]) -> Iterator[tuple[str, "Figure"]]:
    """Names and figures of some models, by their names.

    What compares depths is left out where no layer runs twice, and what compares sources where there is one.
    """
    recordings = dict(zip(short(list(recordings)), recordings.values(), strict=True))
    for name in router_names(recordings):
        routers = {
            model: [router for router in recording.routers if router.name == name]
            for model, recording in recordings.items()
        }
        routers = {model: found for model, found in routers.items() if found}
        for kind, figure in _of_router(routers, recordings):
            yield f"{kind}-{name}", figure
    streams = {model: recording.stream for model, recording in recordings.items()}
    yield (
        "update_sizes",
        plots.update_sizes({m: (found.norm, found.update, found.relative_update) for m, found in streams.items()}),
    )
    panels = [[Panel(m, found.cosine, range(len(found.cosine))) for m, found in streams.items()]]
    yield "hidden_states", plots.similarity_between_depths(panels, "cosine of hidden states", "layers executed")
    yield "logit_lens", plots.logit_lens({model: found.cross_entropy for model, found in streams.items()})
    halting = {model: found.halting.positions for model, found in recordings.items() if found.halting is not None}
    if halting:
        yield "halting", plots.halting_depths(halting)


def router_names(recordings: Mapping[str, Recording]) -> list[str]:
    """The names of the routers of all models, each once."""
    return list(dict.fromkeys(router.name for recording in recordings.values() for router in recording.routers))


def short(names: Sequence[str]) -> list[str]:
    """Names that fit into a figure: the end of each that is long, with a number where these ends are alike."""
    ends = [name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}" for name in names]
    return ends if len(set(ends)) == len(ends) else [f"{number}: {end}" for number, end in enumerate(ends, 1)]


def position_names() -> list[str]:
    """What each range of positions holds: 1, 2, 3–4, 5–8 …"""
    names = [f"{2 ** (number - 1) + 1:,}–{2**number:,}" for number in range(2, POSITION_RANGES - 1)]
    return ["1", "2", *names, f"{2 ** (POSITION_RANGES - 2) + 1:,}–"]


def _of_router(routers: Routers, recordings: Mapping[str, Recording]) -> Iterator[tuple[str, "Figure"]]:
    if any(len(router.depths) > 1 for found in routers.values() for router in found):
        yield "experts_across_depth", plots.experts_across_depth(_grid(routers, _preference))
        grid = _grid(routers, lambda router, _: measures.overlap(router.overlap, router.overlap_positions))
        yield "overlap", plots.similarity_between_depths(grid, "overlap of selections (IoU)")
        grid = _grid(routers, lambda router, _: measures.layer_similarity(router.counts.sum(axis=1)))
        yield "layer_similarity", plots.similarity_between_depths(grid, "similarity of usage")

        def share(router: RouterRecording, model: str) -> NDArray[Any]:
            frequent = np.argsort(-recordings[model].token_counts, kind="stable")[:FREQUENT_TOKENS]
            read = frequent[recordings[model].token_counts[frequent] > 0]
            return measures.distinct_share(side_by_side(router.counts[:, read]))

        yield "distinct_by_token", plots.distinct_by_token(_grid(routers, share))
    yield "distinct_by_rank", plots.distinct_by_rank([_distinct(model, found) for model, found in routers.items()])
    usage = [
        Panel(
            model,
            np.stack([side_by_side(router.counts.sum(axis=(0, 1))) for router in found]),
            [router.layer for router in found],
        )
        for model, found in routers.items()
    ]
    yield "usage", plots.usage_by_rank(usage)
    by_range = sum(router.place_counts.sum(axis=(0, 2, 3)) for found in routers.values() for router in found)
    names = position_names()[: 1 + int(np.flatnonzero(by_range).max(initial=0))]
    positions = _grid(
        routers,
        lambda router, _: measures.lift(side_by_side(router.place_counts.sum(axis=0)[: len(names)])),
        names,
    )
    yield "position", plots.lift_by_place(positions, "position in the block")
    sources = short(next(iter(recordings.values())).sources)
    if len(sources) > 1:
        uses = next(iter(routers.values()))[0].place_counts.sum(axis=(1, 2, 3))
        drawn = sorted(np.argsort(-uses, kind="stable")[:SOURCES].tolist())
        places = _grid(
            routers,
            lambda router, _: measures.lift(side_by_side(router.place_counts.sum(axis=1)))[drawn],
            [sources[number] for number in drawn],
        )
        yield "source", plots.lift_by_place(places, "source")


def side_by_side(counts: NDArray[Any]) -> NDArray[Any]:
    """Experts of all groups as one axis: [..., G, E] → [..., G·E]."""
    return counts.reshape(*counts.shape[:-2], -1)


def _preference(router: RouterRecording, _: str) -> NDArray[Any]:
    return measures.layer_preference(side_by_side(router.counts.sum(axis=1)))


def _distinct(model: str, routers: Sequence[RouterRecording]) -> Panel:
    """Distinct experts of all executed layers, in the order in which they run."""
    of_depth = {
        depth: measures.distinct_experts(side_by_side(counts))
        for router in routers
        for depth, counts in zip(router.depths, router.counts, strict=True)
    }
    depths = sorted(of_depth)
    return Panel(model, np.stack([of_depth[depth] for depth in depths]), depths)


def _grid(
    routers: Routers,
    measure: Callable[[RouterRecording, str], NDArray[Any]],
    rows: Sequence[Any] | None = None,
) -> Grid:
    """A measure of some layers of each model. rows: what its rows stand for; None: the depths of the layer."""
    drawn = {model: [found[number] for number in plots.spread(len(found), LAYERS)] for model, found in routers.items()}
    return [
        [
            Panel(f"{model}, layer {found[number].layer}", measure(found[number], model), rows or found[number].depths)
            if number < len(found)
            else None
            for model, found in drawn.items()
        ]
        for number in range(max(map(len, drawn.values())))
    ]
