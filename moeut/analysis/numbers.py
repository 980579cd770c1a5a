"""Which numbers does an analysis have? Tables of rows, one model below the other; a summary for people.

What is 0/0 in a measure is None in a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moeut.analysis import measures
from moeut.analysis.figures import position_names, side_by_side
from moeut.analysis.page import RouterProfile
from moeut.analysis.recording import Recording
from moeut.analysis.selections import RouterRecording

Row = dict[str, Any]


def tables(recordings: Mapping[str, Recording], pieces: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """All tables by their names. recordings: of models, by their names. pieces: the text of each token of a model.

    routers: one figure each of whole routers. experts: how often each was used at each depth, and its place in the
    paper's order. top_tokens: of each expert. tokens: distinct experts of each token that was read, at each depth and
    in all. depths: what two depths have in common. places: uses by source and position. stream: sizes, logit lens,
    cosines. halting: layers that each token takes.
    """
    found: dict[str, list[Row]] = {}
    for model, recording in recordings.items():
        for router in recording.routers:
            head = {"model": model, "router": router.name, "layer": router.layer}
            for name, rows in _of_router(router, recording, pieces[model]).items():
                found.setdefault(name, []).extend(head | row for row in rows)
        found.setdefault("stream", []).extend({"model": model} | row for row in _of_stream(recording))
        if recording.halting is not None:
            rows = _of_halting(recording, pieces[model])
            found.setdefault("halting", []).extend({"model": model} | row for row in rows)
    return {name: [_without_nan(row) for row in rows] for name, rows in found.items()}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """The table `routers` for people, as rows of cells below a heading."""
    heading = ["router", "experts", "dead", "evenness", "IoU", "similarity", "I(token)", "I(position)"]
    columns = ("usage_perplexity", "overlap", "similarity", "token_information", "position_information")
    cells = [heading]
    several = len({row["model"] for row in rows}) > 1
    for row in rows:
        model = f"{row['model']} " if several else ""
        experts = f"{row['groups']}×{row['experts']}" if row["groups"] > 1 else str(row["experts"])
        figures = ("–" if row[column] is None else f"{row[column]:.3f}" for column in columns)
        name = f"{model}{row['layer']}.{row['router']}"
        cells.append([name, f"{row['num_experts_per_tok']} of {experts}", f"{row['dead_experts']:,}", *figures])
    return cells


def profiles(recording: Recording, pieces: Sequence[str]) -> list[RouterProfile]:
    """What the page shows of each router beside the text. pieces: the text of each token."""
    found: list[RouterProfile] = []
    for router in recording.routers:
        counts = router.counts.sum(axis=0)
        groups = (measures.top_tokens(counts[:, group]) for group in range(counts.shape[1]))
        top = [[_preferred(of_expert, pieces) for of_expert in of_group] for of_group in groups]
        found.append(RouterProfile(router.layer, router.name, router.counts.sum(axis=1), top))
    return found


def _preferred(top: measures.TopTokens, pieces: Sequence[str]) -> list[tuple[str, float]]:
    tokens: list[int] = top.tokens.tolist()
    return [(pieces[token], lift) for token, lift in zip(tokens, top.lifts.tolist(), strict=True)]


def _of_router(router: RouterRecording, recording: Recording, pieces: Sequence[str]) -> dict[str, list[Row]]:
    overlap = measures.overlap(router.overlap, router.overlap_positions)
    similarity = measures.layer_similarity(router.counts.sum(axis=1))
    return {
        "routers": [_figures(router, overlap, similarity)],
        "experts": list(_experts(router)),
        "top_tokens": list(_top_tokens(router, pieces)),
        "tokens": list(_tokens(router, recording, pieces)),
        "depths": [
            {"depth": a, "other_depth": b, "overlap": overlap[i, j], "similarity": similarity[i, j]}
            for i, a in enumerate(router.depths)
            for j, b in enumerate(router.depths)
        ],
        "places": [
            {"source": source, "positions": positions, "group": group, "uses": uses.tolist()}
            for source, of_source in zip(recording.sources, router.place_counts, strict=True)
            for positions, of_range in zip(position_names(), of_source, strict=True)
            for group, uses in enumerate(of_range)
            if uses.any()
        ],
    }


def _figures(router: RouterRecording, overlap: measures.Floats, similarity: measures.Floats) -> Row:
    """One figure each of a whole router; means over groups, and over pairs of depths."""
    of_token = router.counts.sum(axis=0)
    uses = of_token.sum(axis=0)
    groups, experts = uses.shape

    def information(counts: measures.Integers) -> float:
        return float(np.mean([measures.mutual_information(counts[:, group]) for group in range(groups)]))

    return {
        "depths": list(router.depths),
        "groups": groups,
        "experts": experts,
        "num_experts_per_tok": router.num_experts_per_tok,
        "uses": int(uses.sum()),
        "dead_experts": measures.dead_experts(uses),
        "usage_entropy": measures.usage_entropy(uses).mean(),
        "usage_perplexity": measures.usage_perplexity(uses).mean(),
        "overlap": measures.between_depths(overlap),
        "similarity": measures.between_depths(similarity),
        "token_information": information(of_token),
        "position_information": information(router.place_counts.sum(axis=0)),
        "source_information": information(router.place_counts.sum(axis=1)),
    }


def _experts(router: RouterRecording) -> Iterator[Row]:
    uses = side_by_side(router.counts.sum(axis=1))
    preference = measures.layer_preference(uses)
    places = np.argsort(measures.preference_order(preference))
    share = measures.ratio(uses.sum(axis=0), uses.sum())
    experts = router.counts.shape[-1]
    for number in range(uses.shape[1]):
        yield {
            "group": number // experts, "expert": number % experts, "share": share[number],
            "place_across_depth": int(places[number]), "uses": uses[:, number].tolist(),
            "preference": preference[:, number].tolist(),
        }  # fmt: skip


def _top_tokens(router: RouterRecording, pieces: Sequence[str]) -> Iterator[Row]:
    experts = router.counts.shape[-1]
    for number, top in enumerate(measures.top_tokens(side_by_side(router.counts.sum(axis=0)))):
        for rank, (token, uses, lift) in enumerate(zip(*(of.tolist() for of in top), strict=True)):
            yield {
                "group": number // experts, "expert": number % experts, "rank": rank, "token": token,
                "text": pieces[token], "uses": uses, "lift": lift,
            }  # fmt: skip


def _tokens(router: RouterRecording, recording: Recording, pieces: Sequence[str]) -> Iterator[Row]:
    read = np.flatnonzero(recording.token_counts)
    counts = side_by_side(router.counts[:, read])
    distinct = measures.distinct_experts(counts)
    in_all = np.count_nonzero(counts.any(axis=0), axis=-1)
    for column, token in enumerate(read.tolist()):
        yield {
            "token": token, "text": pieces[token], "occurrences": int(recording.token_counts[token]),
            "distinct_experts": distinct[:, column].tolist(), "in_all": int(in_all[column]),
        }  # fmt: skip


def _of_stream(recording: Recording) -> Iterator[Row]:
    stream = recording.stream
    # After the last layer there is no update.
    updates = [*zip(stream.update, stream.relative_update, strict=True), (np.nan, np.nan)]
    for depth, (update, relative) in enumerate(updates):
        yield {
            "layers_executed": depth, "norm": stream.norm[depth], "update": update, "relative_update": relative,
            "cross_entropy": stream.cross_entropy[depth], "cosine": stream.cosine[depth].tolist(),
        }  # fmt: skip


def _of_halting(recording: Recording, pieces: Sequence[str]) -> Iterator[Row]:
    assert recording.halting is not None
    for token in np.flatnonzero(recording.token_counts).tolist():
        yield {
            "token": token, "text": pieces[token], "occurrences": int(recording.token_counts[token]),
            "expected_layers": recording.halting.by_token[token],
        }  # fmt: skip


def _without_nan(value: Any) -> Any:
    """Plain Python values, None for what is no number."""
    match value:
        case dict():
            return {name: _without_nan(inner) for name, inner in value.items()}
        case list():
            return [_without_nan(inner) for inner in value]
        case float() | np.floating():
            return float(value) if np.isfinite(value) else None
        case _:
            return value
