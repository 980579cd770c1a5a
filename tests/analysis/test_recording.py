"""Does a pass leave sums that depend on the text alone, and the model as it was?"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from looked_at import DENSE, MOEUT, SUT, VOCAB_SIZE, batches, build

from moeut.analysis import record
from moeut.analysis.recording import Batch
from moeut.settings import IGNORED_TARGET


def rows(one: Batch) -> Iterator[Batch]:
    """The rows of a batch, a batch each."""
    inputs, targets = one
    for number in range(len(inputs)):
        yield inputs[number : number + 1], targets[number : number + 1]


@pytest.mark.parametrize("config", [MOEUT, DENSE, SUT], ids=["moeut", "dense", "sut"])
def test_batches_do_not_matter(config):
    """In float64, so that no choice depends on the shape of a product."""
    model = build(config).double()
    whole = record(model, {"text": batches()}, sample_every=1)
    apart = record(model, {"text": (row for batch in batches() for row in rows(batch))}, sample_every=1)
    assert whole.tokens == apart.tokens == 54
    assert whole.cross_entropy == pytest.approx(apart.cross_entropy)
    assert len(whole.routers) == {MOEUT: 6, DENSE: 0, SUT: 2}[config]
    for one, other in zip(whole.routers, apart.routers, strict=True):
        assert (one.counts == other.counts).all()
        assert (one.place_counts == other.place_counts).all()
        assert one.overlap == pytest.approx(other.overlap)
        assert (one.overlap_positions == other.overlap_positions).all()
    for name in ("norm", "update", "relative_update", "cosine", "cross_entropy"):
        assert getattr(whole.stream, name) == pytest.approx(getattr(apart.stream, name)), name
    assert (whole.halting is None) == (config is not SUT)
    if whole.halting is not None and apart.halting is not None:
        assert whole.halting.by_token == pytest.approx(apart.halting.by_token, nan_ok=True)


def test_what_is_not_scored_counts_nowhere():
    """A batch filled up with tokens without targets is the batch without them."""
    model = build(MOEUT).double()

    def filled() -> Iterator[Batch]:
        for inputs, targets in batches():
            more = np.zeros((len(inputs) + 1, 12), np.int64)
            nothing = np.full_like(more, IGNORED_TARGET)
            more[:-1, :9], nothing[:-1, :9] = inputs, targets
            yield more, nothing

    plain, padded = (
        record(model, {"text": batches()}, sample_every=1),
        record(model, {"text": filled()}, sample_every=1),
    )
    assert padded.tokens == plain.tokens == 54
    assert padded.cross_entropy == pytest.approx(plain.cross_entropy)
    assert padded.stream.positions == plain.stream.positions
    assert padded.stream.norm == pytest.approx(plain.stream.norm)
    for one, other in zip(plain.routers, padded.routers, strict=True):
        assert (one.counts == other.counts).all()
        assert (one.place_counts == other.place_counts).all()


def test_every_router_selects_for_every_token():
    model = build(MOEUT)
    found = record(model, {"text": batches()})
    tokens = np.bincount(np.concatenate([inputs.flatten() for inputs, _ in batches()]), minlength=VOCAB_SIZE)
    assert (found.token_counts == tokens).all()
    assert [(router.layer, router.name) for router in found.routers] == [
        (layer, name) for layer in (0, 1) for name in ("attention_value", "attention_output", "feed_forward")
    ]
    for router in found.routers:
        groups = 1 if router.name == "feed_forward" else 2
        assert router.depths == tuple(range(router.layer, 6, 2))
        assert (router.counts.sum(axis=-1) == 2 * tokens[None, :, None]).all()
        assert (router.overlap_positions == 54).all()
        assert router.overlap.shape == (groups, 3, 3)
        assert router.overlap[:, [0, 1, 2], [0, 1, 2]] == pytest.approx(54)


def test_sources_stay_apart():
    model = build(MOEUT).double()
    texts = {"a": list(batches(seed=1)), "b": list(batches(seed=2, number=1))}
    both, alone = record(model, texts), record(model, {"b": texts["b"]})
    assert both.sources == ("a", "b")
    for one, other in zip(both.routers, alone.routers, strict=True):
        assert (one.place_counts[1] == other.place_counts[0]).all()
        assert one.place_counts.sum() == one.counts.sum()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training: bool):
    model = build(MOEUT).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def broken() -> Iterator[Batch]:
        yield from batches(number=1)
        assert not model.training
        raise RuntimeError

    record(model, {"text": batches()})
    with pytest.raises(RuntimeError):
        record(model, {"text": broken()})
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_all_positions_have_their_turn():
    """Every third of rows of nine would be the same three positions; every fourth is each of them alike."""
    [(inputs, targets)] = batches(rows=4, length=9, number=1)
    model = build(MOEUT)
    found = record(model, {"text": [(inputs, targets)]}, sample_every=3)
    assert found.stream.positions == 9, "36 positions, every fourth"
    # The positions sampled are the multiples of four of the whole text, also across batches.
    in_rows = record(model, {"text": rows((inputs, targets))}, sample_every=3)
    assert in_rows.stream.positions == 9
    assert in_rows.stream.norm == pytest.approx(found.stream.norm, rel=1e-4)


def test_one_token_and_one_repeat():
    found = record(build(DENSE), {"text": [(np.array([[3]]), np.array([[4]]))]})
    assert (found.tokens, found.stream.positions) == (1, 1)
    assert np.isfinite(found.stream.norm).all()


def test_nothing_to_read():
    with pytest.raises(ValueError, match="there is no text to analyse"):
        record(build(MOEUT), {"text": []})
    with pytest.raises(ValueError, match="there is no text to analyse"):
        record(build(MOEUT), {"text": [(np.array([[3]]), np.array([[IGNORED_TARGET]]))]})
