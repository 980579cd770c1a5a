"""A process that carries out the small study: python carrying_out.py DATA OUT [STEPS]. See test_execution.py."""

import sys
from pathlib import Path

from small_study import long_study, small_study

from moeut.experiments.reproduction.execution import Manner, carry_out
from moeut.experiments.reproduction.runs import Effort, wanted
from moeut.training.progress import Progress

if __name__ == "__main__":
    data, out, *steps = sys.argv[1:]
    study = long_study(Path(data), int(steps[0])) if steps else small_study(Path(data))
    runs = list(wanted(study, Effort(), lambda run: None))
    with Progress() as progress:
        carry_out(study, lambda: runs, Manner(out=Path(out), device="cpu", quiet=True), None, progress)
