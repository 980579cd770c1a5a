"""What does the verb `evaluate` do?"""

import argparse
from pathlib import Path
from typing import Any

from moeut.commands.answers import show


def evaluate(options: argparse.Namespace) -> int:
    """`moeut evaluate`: models on texts or on tasks, or two of them item by item."""
    from moeut.evaluation.outcomes import write_outcomes
    from moeut.evaluation.tables import comma_separated, markdown, together
    from moeut.experiments.evaluation import compare_files, measure, text_facts, text_lines, write_record
    from moeut.training.progress import Progress

    if options.compare:
        found = compare_files(options.compare)
        facts: dict[str, Any] = {"comparisons": [vars(one) for one in found]}
        show(facts, [one.in_words() for one in found], as_json=options.json)
        return 0
    if not options.models:
        raise ValueError("name a model to evaluate, or two files of items with --compare")
    if options.samples is not None and not options.samples.absolute().parent.is_dir():
        raise ValueError(f"--samples: there is no folder {options.samples.parent}")
    with Progress(quiet=options.quiet) as progress:
        measured = measure(options.models, _plan(options), progress)
    form = "json" if options.json else options.format
    rows = together([row for one in measured for row in one.rows])
    records = [one.record for one in measured]
    facts, lines = records[0] if len(records) == 1 else {"models": records}, markdown(rows)
    if form == "csv":
        lines = comma_separated(rows)
    elif len(measured) == len(measured[0].texts) == 1 and not options.tasks:
        facts, lines = text_facts(measured[0]), text_lines(measured[0])
    show(facts, lines, as_json=form == "json")
    if options.samples is not None:
        write_outcomes(options.samples, [outcome for one in measured for outcome in one.outcomes])
    for one in measured:
        write_record(one, options.output)
    return 0


def _plan(options: argparse.Namespace) -> Any:
    """What is to be measured, and how."""
    from moeut.evaluation.zero_shot import SCORINGS
    from moeut.experiments.describe import dtype_named
    from moeut.experiments.evaluation import Plan
    from moeut.experiments.subjects import Reading
    from moeut.training.distributed import pick_device

    reading = Reading(
        device=pick_device(options.device),
        dtype=None if options.dtype is None else dtype_named(options.dtype),
        context_length=options.context_length,
        batch_size=options.batch_size,
        repeats=options.repeats,
    )
    return Plan(
        reading=reading,
        texts=tuple(map(Path, options.data or ())),
        by_source=options.by_source,
        stride=options.stride,
        tasks=tuple(filter(None, (options.tasks or "").split(","))),
        task_folder=options.task_data,
        scorings=SCORINGS if options.scoring == "both" else (options.scoring,),
        limit=options.limit,
    )
