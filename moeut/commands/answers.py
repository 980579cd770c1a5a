"""What do the verbs share? The configuration that options mean, results, exit codes."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_DATA = "data/stdlib"
DEFAULT_PRESET = "tiny"


def resolved_run(options: argparse.Namespace) -> Any:
    """The run's configuration: preset, then `--config`, then overrides."""
    from moeut.config import run_config
    from moeut.presets import run_preset
    from moeut.trees import to_tree

    base = to_tree(run_preset(options.preset or DEFAULT_PRESET, data=DEFAULT_DATA))
    named = {name: value for name in ("data", "init_from") if (value := getattr(options, name, None))}
    if "init_from" in named and options.preset is None:
        from moeut.experiments.matching import model_tree

        base["model"] = model_tree(Path(named["init_from"]))
    return run_config(
        base, options.config, [*options.overrides, *((name, json.dumps(value)) for name, value in named.items())]
    )


def named_model(name: str, options: argparse.Namespace) -> Any:
    """The configuration that a model's name means, with the overrides of the command line."""
    from moeut.experiments.named_models import named_run
    from moeut.presets import run_preset

    return named_run(name, run_preset(DEFAULT_PRESET, data=DEFAULT_DATA), options.overrides)


def show(result: dict[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    """Print a result to stdout, for people or for machines."""
    print(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def exit_code(interrupted_by: int | None, *, tell: bool = True) -> int:
    """0, or 128 + the signal that ended a run early, as shells count it."""
    if interrupted_by is None:
        return 0
    if tell:
        print("moeut: interrupted and saved; the same command goes on from here", file=sys.stderr)
    return 128 + interrupted_by
