"""Are the lengths of the updates those of the stream?"""

from pathlib import Path

import pytest
import torch
from small_study import entrant, inequalities, prepared

from moeut.data.tokens import open_prepared
from moeut.experiments.reproduction.growth import residual_growth, update, updates
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.reproduction.scales import SMALL
from moeut.experiments.reproduction.study import Means
from moeut.experiments.reproduction.systems import MOEUT
from moeut.experiments.run import train
from moeut.model.folder import load_model
from moeut.training.progress import Progress


def test_updates_are_means_over_tokens(tmp_path: Path):
    run = Run(entrant(MOEUT, prepared(tmp_path)), 0.001, 0)
    train(run.config(tmp_path), tmp_path / "run", quiet=True)
    found = updates(Means(torch.device("cpu"), None, Progress(quiet=True)))(tmp_path / "run")
    model = load_model(tmp_path / "run" / "final").eval()
    stream = open_prepared(tmp_path / "small").held_out
    tokens = torch.from_numpy(stream.read(0, len(stream)).astype("int64"))
    lengths = [[], []]
    for first in range(0, len(tokens) - 1, 16):
        block = tokens[first : min(first + 16, len(tokens) - 1)][None]
        with torch.no_grad():
            states = model(block, return_hidden_states=True).hidden_states
        assert states is not None
        for layer in range(2):
            lengths[layer] += (states[layer + 1] - states[layer])[0].norm(dim=-1).tolist()
    assert found == pytest.approx(
        {update(layer + 1): sum(one) / len(one) for layer, one in enumerate(lengths)}, rel=1e-5
    )


def test_the_last_layer_is_set_beside_the_first():
    study = residual_growth(SMALL)
    assert [quantity.metric for quantity in inequalities(study)[0]] == ["update of layer 1", "update of layer 8"]
    assert list(study.charts[0].points(study.entrants[0])) == list(range(1, 9))
