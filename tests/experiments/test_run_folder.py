"""Is a run folder only its own run's, and is the model found that a user means?"""

from dataclasses import replace
from pathlib import Path

import pytest
from small_run import prepared, small_run

from moeut.config import RunConfig
from moeut.experiments.run import train
from moeut.experiments.run_folder import claimed, model_folder, run_of
from moeut.experts import ExpertBackend
from moeut.model.folder import load_model
from moeut.training.report import read_metrics
from moeut.training.retention import checkpoint_folder
from moeut.trees import read_yaml
from moeut.validation import validate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_run(prepared(tmp_path))


def with_backend(config: RunConfig, backend: ExpertBackend) -> RunConfig:
    return replace(config, model=replace(config.model, expert_backend=backend))


def test_what_was_auto_is_found_once_and_kept(config: RunConfig, tmp_path: Path):
    asked = replace(config, training=replace(config.training, micro_batch_size="auto", precision="auto"))
    with_two = replace(with_backend(config, "cpu"), training=replace(config.training, micro_batch_size=2))
    with claimed(tmp_path / "run", asked, "auto", lambda given: with_two) as found:
        assert found == with_two
    assert validate(RunConfig, read_yaml(tmp_path / "run" / "config.yaml")) == with_two
    checkpoint_folder(tmp_path / "run", 1).mkdir(parents=True)

    def find_again(given: RunConfig) -> RunConfig:
        raise AssertionError("resolved a second time")

    with claimed(tmp_path / "run", asked, "auto", find_again) as found:
        assert found == with_two
    given = replace(config, training=replace(config.training, micro_batch_size=1))
    with (
        pytest.raises(ValueError, match=r"training\.micro_batch_size: 2, now 1"),
        claimed(tmp_path / "run", given, "auto", find_again),
    ):
        pass


def test_a_run_that_has_not_come_to_a_checkpoint_may_begin_with_another_configuration(
    config: RunConfig, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("left: behind")
    (run / "metrics.jsonl").write_text('{"split": "train", "step": 1, "cross_entropy": 9.0}\n')
    with claimed(run, config, "never", lambda given: given) as found:
        assert found == config
        with pytest.raises(ValueError, match="another process is writing it"), claimed(run, config, "auto", replace):
            pass
    train(config, run, quiet=True)
    assert validate(RunConfig, read_yaml(run / "config.yaml")) == with_backend(config, "cpu")
    assert all(line["cross_entropy"] != 9.0 for line in read_metrics(run))


def test_a_model_is_found_in_its_run_and_the_run_around_its_model(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(config, run, quiet=True)
    assert model_folder(run) == run / "final"
    assert model_folder(run / "final") == run / "final"
    assert run_of(run / "final") == with_backend(config, "cpu")
    assert load_model(model_folder(run)).config == config.model
    (tmp_path / "elsewhere").mkdir()
    assert run_of(tmp_path / "elsewhere") is None
    with pytest.raises(ValueError, match="no model here"):
        model_folder(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        model_folder(tmp_path / "elsewhere")


def test_a_folder_belongs_to_one_configuration(config: RunConfig, tmp_path: Path):
    run = tmp_path / "run"
    train(config, run, quiet=True)
    other = replace(config, training=replace(config.training, seed=1))
    with pytest.raises(ValueError, match=r"another configuration \(training\.seed: 0, now 1\)"):
        train(other, run, quiet=True)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"a run without its config\.yaml"):
        train(config, run, quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file is in the way"):
        train(config, tmp_path / "file", quiet=True)
