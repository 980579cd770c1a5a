"""Is the time that runs will take corrected by what others took?"""

from pathlib import Path

import pytest
from small_study import prepared, small_study

from moeut.experiments.reproduction.expectation import seconds_of
from moeut.experiments.reproduction.results import trained_numbers
from moeut.experiments.reproduction.runs import Effort, wanted
from moeut.experiments.run import train
from moeut.model.cost import cost
from moeut.training.distributed import Ranks


def test_seconds(tmp_path: Path):
    ours, dense = wanted(small_study(prepared(tmp_path)), Effort(), lambda run: None)
    guessed = seconds_of([ours, dense], tmp_path, Ranks())
    ratio = cost(dense.entrant.model, 16).macs_per_token / cost(ours.entrant.model, 16).macs_per_token
    assert guessed[dense.name] / guessed[ours.name] == pytest.approx(ratio)
    train(ours.config(tmp_path), ours.folder(tmp_path), quiet=True)
    numbers = trained_numbers(ours.folder(tmp_path), ours.config(tmp_path))
    assert numbers is not None
    corrected = seconds_of([ours, dense], tmp_path, Ranks())
    assert corrected[ours.name] == 3600 * numbers["hours"]
    assert corrected[dense.name] == pytest.approx(ratio * corrected[ours.name])
    (ours.folder(tmp_path).parent / "broken").mkdir()
    (ours.folder(tmp_path).parent / "broken" / "config.yaml").write_text("model: [")
    alone = seconds_of([dense], tmp_path, Ranks())
    assert alone == {dense.name: pytest.approx(corrected[dense.name])}, "what another study has finished tells it too"
