"""Do the tables say what the recording holds, one model below the other, without a number that is none?"""

import json

import numpy as np
import pytest
from looked_at import DENSE, MOEUT, SUT, VOCAB_SIZE, batches, build

from moeut.analysis import measures, record
from moeut.analysis.numbers import profiles, summary, tables

PIECES = [f"<{token}>" for token in range(VOCAB_SIZE)]


@pytest.fixture(scope="module")
def found():
    """The tables of a MoEUT and a SUT, and the recordings they are made of."""
    recordings = {
        "moeut": record(build(MOEUT), {"a": batches(), "b": batches(seed=1)}),
        "sut": record(build(SUT), {"a": batches(), "b": batches(seed=1)}),
    }
    return tables(recordings, dict.fromkeys(recordings, PIECES)), recordings


def test_there_are_all_tables_and_json_can_say_them(found):
    names = ["routers", "experts", "top_tokens", "tokens", "depths", "places", "stream", "halting"]
    assert sorted(found[0]) == sorted(names)
    assert json.loads(json.dumps(found[0], allow_nan=False)) == found[0]


def test_experts_add_up(found):
    numbers, recordings = found
    router = recordings["moeut"].routers[1]
    rows = [
        row
        for row in numbers["experts"]
        if (row["model"], row["router"], row["layer"]) == ("moeut", "attention_output", 0)
    ]
    assert [(row["group"], row["expert"]) for row in rows] == [(g, e) for g in range(2) for e in range(3)]
    assert [row["uses"] for row in rows] == router.counts.sum(axis=1).reshape(3, 6).T.tolist()
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sorted(row["place_across_depth"] for row in rows) == list(range(6))
    preference = np.array([row["preference"] for row in rows]).T
    assert measures.preference_order(preference).tolist() == [
        number for _, number in sorted((row["place_across_depth"], number) for number, row in enumerate(rows))
    ]


def test_whole_routers(found):
    numbers, recordings = found
    [row] = [row for row in numbers["routers"] if (row["model"], row["router"]) == ("sut", "feed_forward")]
    router = next(router for router in recordings["sut"].routers if router.name == "feed_forward")
    assert (row["groups"], row["experts"], row["num_experts_per_tok"], row["depths"]) == (1, 5, 2, [0, 1, 2])
    assert row["uses"] == router.counts.sum()
    assert row["dead_experts"] == (router.counts.sum(axis=(0, 1, 2)) == 0).sum()
    assert row["token_information"] == pytest.approx(measures.mutual_information(router.counts.sum(axis=0)[:, 0]))
    assert row["source_information"] >= 0


def test_tokens_and_places(found):
    numbers, recordings = found
    row = next(row for row in numbers["tokens"] if row["model"] == "moeut" and row["router"] == "feed_forward")
    router = next(router for router in recordings["moeut"].routers if router.name == "feed_forward")
    counts = router.counts[:, row["token"], 0]
    assert row["text"] == PIECES[row["token"]]
    assert row["distinct_experts"] == (counts > 0).sum(axis=1).tolist()
    assert row["in_all"] == (counts.sum(axis=0) > 0).sum() >= max(row["distinct_experts"])
    uses = sum(
        sum(row["uses"]) for row in numbers["places"]
        if (row["model"], row["router"], row["layer"], row["source"]) == ("moeut", "feed_forward", 0, "b")
    )  # fmt: skip
    assert uses == router.place_counts[1].sum()


def test_the_stream_ends_without_an_update(found):
    numbers, recordings = found
    rows = [row for row in numbers["stream"] if row["model"] == "moeut"]
    assert [row["layers_executed"] for row in rows] == list(range(7))
    assert rows[-1]["update"] is None
    assert [row["norm"] for row in rows] == pytest.approx(recordings["moeut"].stream.norm)


def test_halting_belongs_to_models_that_halt(found):
    numbers, recordings = found
    assert {row["model"] for row in numbers["halting"]} == {"sut"}
    assert sum(row["occurrences"] for row in numbers["halting"]) == recordings["sut"].tokens
    assert all(1 <= row["expected_layers"] <= 3 for row in numbers["halting"])


def test_a_summary_names_models_only_where_there_are_two(found):
    rows = found[0]["routers"]
    heading, *cells = summary(rows)
    assert {len(row) for row in cells} == {len(heading)}
    assert cells[0][:2] == ["moeut 0.attention_value", "2 of 2×3"]
    [_, first, *_] = summary([row for row in rows if row["model"] == "moeut"])
    assert first[0] == "0.attention_value"


def test_a_dense_model_has_a_stream():
    recordings = {"dense": record(build(DENSE), {"text": batches()})}
    assert tables(recordings, {"dense": PIECES}).keys() == {"stream"}


def test_profiles_for_the_page(found):
    recording = found[1]["moeut"]
    for router, profile in zip(recording.routers, profiles(recording, PIECES), strict=True):
        assert (profile.layer, profile.name) == (router.layer, router.name)
        assert (profile.usage == router.counts.sum(axis=1)).all()
        _, _, groups, experts = router.counts.shape
        assert [len(group) for group in profile.top_tokens] == [experts] * groups
        best = measures.top_tokens(router.counts.sum(axis=0)[:, groups - 1])[0]
        expected = [(PIECES[token], lift) for token, lift in zip(best.tokens, best.lifts, strict=True)]
        assert profile.top_tokens[groups - 1][0] == expected
