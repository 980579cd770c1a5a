"""Does the main table hold the paper's corpora, sizes and tasks?"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examined import ITEMS, save_tiny
from small_study import inequalities

from moeut.evaluation.zero_shot import AVERAGE, TASKS
from moeut.experiments.evaluation import Plan, measure
from moeut.experiments.reproduction.main_table import main_table, tasks
from moeut.experiments.reproduction.scales import PAPER, SMALL, TINY
from moeut.experiments.reproduction.study import Means
from moeut.experiments.subjects import Reading
from moeut.training.progress import Progress

QUIET = Progress(quiet=True)


def test_the_papers_pairs():
    study = main_table(PAPER)
    ours = [entrant for entrant in study.entrants if entrant.system == "MoEUT"]
    assert [(entrant.corpus, entrant.size) for entrant in ours] == [
        *(("c4", size) for size in ("44m", "126m", "244m", "318m", "727m", "1b")),
        *(("slimpajama", size) for size in ("44m", "244m", "1b")),
        *(("pes2o", size) for size in ("44m", "244m")),
    ]
    better = [more.entrant.system for _, more in inequalities(study) if more.metric == "piqa"]
    assert better == ["MoEUT"] * 11
    assert study.metrics == ("cross_entropy", "perplexity", *TASKS, AVERAGE)
    assert main_table(TINY).measure is None
    assert main_table(SMALL).metrics[2:] == ("lambada", "blimp")


def test_accuracies_are_those_of_the_papers_scoring(tmp_path: Path):
    run = save_tiny(tmp_path / "model")
    scale = replace(SMALL, tasks=("lambada", "piqa"))
    found = tasks(scale)(Means(torch.device("cpu"), ITEMS, QUIET))(run)
    plan = Plan(reading=Reading(device=torch.device("cpu")), tasks=scale.tasks, task_folder=ITEMS, scorings=("paper",))
    [measured] = measure([str(run)], plan, QUIET)
    assert found == {row.task: row.value for row in measured.rows if row.metric == "acc"}
    assert set(found) == {"lambada", "piqa"}


def test_missing_items_are_said_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no items of lambada"):
        tasks(SMALL)(Means(torch.device("cpu"), tmp_path, QUIET))
