"""What does the verb `reproduce` do?"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from moeut.commands.answers import exit_code, show


def reproduce(options: argparse.Namespace) -> int:
    """`moeut reproduce`: a figure or table of the paper as runs, and what came of them."""
    from moeut.experiments.describe import aligned
    from moeut.experiments.reproduction.catalogue import studies
    from moeut.experiments.reproduction.reproduce import reproduce as carry_out
    from moeut.experiments.reproduction.scales import scale
    from moeut.experiments.reproduction.study_report import REPORT, directions, results
    from moeut.training.interruption import signal_of, sigterm_interrupts
    from moeut.training.trackers import finite

    if options.list:
        listed = {study.name: study.source for study in studies(scale(options.scale))}
        show(listed, [f"{name:<20}{source}" for name, source in listed.items()], as_json=options.json)
        return 0
    undertaking = _undertaking(options)
    command = _command(options, undertaking)
    if options.commands:
        commands = [f"{command} --only {shlex.quote(run.name)}" for run in undertaking.runs()]
        show({"commands": commands}, commands, as_json=options.json)
        return 0
    if options.dry_run:
        return _dry_run(options, undertaking)
    try:
        with sigterm_interrupts():
            findings, outcome = carry_out(undertaking, task_folder=options.task_data, command=command)
    except KeyboardInterrupt as interrupt:
        return exit_code(signal_of(interrupt))
    folder = undertaking.report_folder
    facts = {
        "report": str(folder / REPORT),
        "entrants": {
            name: {metric: number._asdict() for metric, number in known.items()}
            for name, known in findings.estimates.items()
        },
        "left": findings.left,
    }
    lines = [
        *aligned([list(row) for row in results(findings)]),
        "",
        *aligned([list(row) for row in directions(findings)]),
    ]
    lines.append(f"{folder / REPORT}: {len(findings.numbers):,} of {len(findings.runs):,} runs are finished")
    show(finite(facts), lines, as_json=options.json)
    failed = [f"{name}: {why}" for name, why in (outcome.failed | outcome.given_up).items()]
    for why in [*failed, *outcome.taken.values()]:
        print(f"moeut: {why}", file=sys.stderr)
    return 2 if outcome.failed else 0


def _undertaking(options: argparse.Namespace) -> Any:
    """What the options ask for."""
    from moeut.experiments.reproduction.catalogue import study_named
    from moeut.experiments.reproduction.execution import Manner
    from moeut.experiments.reproduction.reproduce import Undertaking
    from moeut.experiments.reproduction.runs import Effort
    from moeut.experiments.reproduction.scales import scale

    if options.study is None:
        raise ValueError("name a figure or table; --list says which there are")
    found = scale(options.scale, options.data)
    return Undertaking(
        study_named(options.study, found),
        found,
        Effort(options.seeds, tuple(dict.fromkeys(options.learning_rates or ()))),
        Manner(
            out=Path(options.out or f"reproduce/{options.scale}"), device=options.device, processes=options.processes,
            takeover=options.takeover, quiet=options.quiet,
        ),
        options.only or (),
    )  # fmt: skip


def _command(options: argparse.Namespace, undertaking: Any) -> str:
    """The command that carries out the whole study in the same way."""
    given = {
        "--data": [options.data],
        "--seeds": [options.seeds if options.seeds > 1 else None],
        "--learning-rates": options.learning_rates or [],
        "--processes": [options.processes if options.processes > 1 else None],
        "--task-data": [options.task_data],
        "--device": [options.device if options.device != "auto" else None],
    }
    words = ["moeut", "reproduce", options.study, "--scale", options.scale, "--out", str(undertaking.manner.out)]
    for name, values in given.items():
        words += [name, *map(str, values)] if any(value is not None for value in values) else []
    return shlex.join(words)


def _dry_run(options: argparse.Namespace, undertaking: Any) -> int:
    """What every run would be, and all of them together."""
    from dataclasses import asdict

    from moeut.experiments.describe import aligned
    from moeut.experiments.dry_run import duration
    from moeut.experiments.reproduction.reproduce import expected

    runs = expected(undertaking)
    cells = [["run", "parameters", "tokens", "multiply-adds", "expected here"]]
    cells += [
        [run.run, f"{run.parameters:,}", f"{run.tokens:,}", f"{run.macs:.2e}", duration(run.seconds)] for run in runs
    ]
    tokens, macs, seconds = (sum(getattr(run, name) for run in runs) for name in ("tokens", "macs", "seconds"))
    cells.append([f"{len(runs):,} runs", "", f"{tokens:,}", f"{macs:.2e}", duration(seconds)])
    facts = {"runs": [asdict(run) for run in runs], "tokens": tokens, "macs": macs, "seconds": seconds}
    show(facts, aligned(cells), as_json=options.json)
    return 0
