"""What does the verb `analyse` do?"""

import argparse
from pathlib import Path

from moeut.commands.answers import show


def analyse(options: argparse.Namespace) -> int:
    """`moeut analyse`: what happens inside one model, or two side by side, as figures, numbers and a page."""
    from moeut.experiments.analysis import AnalysisPlan
    from moeut.experiments.analysis import analyse as look_inside
    from moeut.experiments.subjects import Reading
    from moeut.training.distributed import pick_device
    from moeut.training.progress import Progress

    reading = Reading(
        device=pick_device(options.device),
        context_length=options.context_length,
        batch_size=options.batch_size,
        repeats=options.repeats,
    )
    plan = AnalysisPlan(
        reading=reading, texts=tuple(map(Path, options.data or ())), by_source=options.by_source, tokens=options.tokens
    )
    with Progress(quiet=options.quiet) as progress:
        found = look_inside(options.models, plan, options.out, progress)
    show(found.facts, found.lines, as_json=options.json)
    return 0
