"""Are sizes, directions and readings of the stream those that a plain loop finds?"""

import numpy as np
import pytest
import torch
from looked_at import MOEUT, SUT, batches, build

from moeut.analysis.stream import HaltingTally, StreamTally


def test_the_stream_by_hand():
    """One position: (3, 4, 0 …) → the same → four times as long, and turned; then one of nothing but zeros."""
    model = build(MOEUT)
    tally = StreamTally(model)
    states = [torch.zeros(1, 1, 16) for _ in range(7)]
    states[0][0, 0, :2] = states[1][0, 0, :2] = torch.tensor([3.0, 4.0])
    states[2][0, 0, 2] = 20
    with torch.no_grad():
        tally.add(states, torch.tensor([[1]]), torch.tensor([0]))
    found = tally.recording()
    assert found.positions == 1
    assert found.norm == pytest.approx([5, 5, 20, 0, 0, 0, 0])
    assert found.update == pytest.approx([0, 425**0.5, 20, 0, 0, 0])
    assert found.relative_update == pytest.approx([0, 425**0.5 / 5, 1, 0, 0, 0])
    assert found.cosine[:3, :3] == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
    assert (found.cosine[3:] == 0).all()


@pytest.mark.parametrize("config", [MOEUT, SUT], ids=["moeut", "sut"])
def test_the_lens_ends_with_the_model(config):
    """Some positions, one at a time: the last depth is what the model says, and any other what its head reads there."""
    model = build(config).eval()
    [(inputs, targets)] = batches(number=1)
    tally = StreamTally(model)
    places = torch.tensor([0, 5, 13, 26])
    with torch.no_grad():
        output = model(torch.from_numpy(inputs), return_hidden_states=True, return_routing=True)
        tally.add(output.hidden_states, torch.from_numpy(targets), places)
        found = tally.recording()
        for depth, state in enumerate(output.hidden_states):
            logits = model.lm_head(model.norm(state)).log_softmax(-1)
            losses = [-logits[place // 9, place % 9, targets[place // 9, place % 9]] for place in places.tolist()]
            assert found.cross_entropy[depth] == pytest.approx(np.mean(losses), rel=1e-5)
        final = output.logits.log_softmax(-1).flatten(0, 1)[places]
        assert found.cross_entropy[-1] == pytest.approx(
            -final.gather(1, torch.from_numpy(targets).flatten()[places][:, None]).mean().item(), rel=1e-5
        )
        a, b = (output.hidden_states[depth].flatten(0, 1)[places] for depth in (1, 3))
        assert found.cosine[1, 3] == pytest.approx(torch.cosine_similarity(a, b).mean().item(), rel=1e-5)


def test_sixteen_bits_are_measured_in_more():
    """The square of 300 is no number in float16."""
    model = build(MOEUT).half()
    tally = StreamTally(model)
    with torch.no_grad():
        tally.add([torch.full((1, 1, 16), 300.0).half()] * 7, torch.tensor([[1]]), torch.tensor([0]))
    assert tally.recording().norm == pytest.approx([1200] * 7)


def test_halting_by_hand():
    model = build(SUT)
    tally = HaltingTally(model)
    layers = torch.tensor([[1.0, 1.4, 2.6], [3.0, 2.0, 1.0]])
    tally.add(layers, torch.tensor([4, 4, 7, 7]), torch.tensor([0, 1, 2, 3]))
    found = tally.recording()
    assert found.positions.tolist() == [2, 0, 2]
    assert found.by_token[[4, 7]] == pytest.approx([1.2, 2.8])
    assert np.isnan(np.delete(found.by_token, [4, 7])).all()
