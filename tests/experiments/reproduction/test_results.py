"""Are the numbers of a run those that it wrote, and their means those of a hand?"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import prepared, small_study

from moeut.experiments.reproduction.results import Estimate, estimates, measured_file, numbers_of, trained_numbers
from moeut.experiments.reproduction.runs import Run
from moeut.experiments.run import train
from moeut.model.tensor_files import write_json
from moeut.training.report import read_metrics


def test_means_and_errors_over_seeds():
    found = estimates([{"loss": 1.0, "rare": 5.0}, {"loss": 2.0}, {"loss": 6.0}])
    # Variance ((−2)² + (−1)² + 3²) / 2 = 7, of which a third.
    assert found["loss"] == pytest.approx((3.0, math.sqrt(7 / 3), 3))
    assert found["rare"] == Estimate(5.0, math.inf, 1)


def test_numbers_of_a_run(tmp_path: Path):
    study = small_study(prepared(tmp_path))
    run, out = Run(study.entrants[0], 0.001, 0), tmp_path / "out"
    folder, config = run.folder(out), run.config(out)
    assert trained_numbers(folder, config) is None
    result = train(config, folder, quiet=True)
    numbers = trained_numbers(folder, config)
    assert numbers is not None
    assert result.held_out is not None
    assert numbers["cross_entropy"] == result.held_out.cross_entropy
    reports = [line for line in read_metrics(folder) if line["split"] == "train"]
    assert numbers["hours"] == reports[-1]["seconds"] / 3600
    rates = sorted(32 / line["tokens_per_second"] for line in reports)
    assert numbers["seconds_per_step"] == pytest.approx((rates[1] + rates[2]) / 2, rel=0.5)
    assert rates[0] <= numbers["seconds_per_step"] <= rates[-1]
    assert numbers["memory_bytes"] == max(line["memory_bytes"] for line in reports)
    assert numbers["dead_experts"] == sum(reports[-1]["dead_experts"].values())
    assert numbers_of(run, study, out) == numbers

    with_measure = replace(study, measure=lambda means: lambda run: {})
    assert numbers_of(run, with_measure, out) is None
    measured_file(folder, study).parent.mkdir(exist_ok=True)
    write_json(measured_file(folder, study), {"update": 1.5})
    assert numbers_of(run, with_measure, out) == numbers | {"update": 1.5}

    shutil.rmtree(folder / "checkpoints")
    assert numbers_of(run, with_measure, out) == numbers | {"update": 1.5}
    other = replace(config, training=replace(config.training, seed=1))
    with pytest.raises(ValueError, match=r"another configuration \(training\.seed: 0, now 1\)"):
        trained_numbers(folder, other)
    unfinished = [line for line in read_metrics(folder) if line["split"] == "train"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in unfinished))
    assert trained_numbers(folder, config) is None
