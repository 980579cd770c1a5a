"""Whose is a run folder, and which model is in it? A folder belongs to one configuration; its models have a place.

RUN/config.yaml     the configuration, with a number or a name for everything that was `auto`
RUN/metrics.jsonl   see `moeut.training.report`
RUN/samples.jsonl   what the model wrote on the way, where samples are asked for
RUN/checkpoints/    see `moeut.training.checkpoint`
RUN/final           → the last checkpoint
RUN/best            → the checkpoint that predicted held-out text best
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeut.config import RunConfig
from moeut.files import held_by_one_process
from moeut.model.folder import CONFIG
from moeut.training.retention import checkpoints
from moeut.trees import differences, read_yaml, to_tree, write_yaml
from moeut.validation import validate

RUN_CONFIG = "config.yaml"
RESOLVED = {"model": ("expert_backend",), "training": ("micro_batch_size", "precision")}
"""Settings that may be `auto` until a run begins."""


@contextmanager
def claimed(
    run: Path, config: RunConfig, resume: str, resolve: Callable[[RunConfig], RunConfig]
) -> Iterator[RunConfig]:
    """While inside, the run folder is this configuration's and no other process's; gives the configuration to use.

    resolve: puts something for every `auto` of a run that begins. One that goes on keeps what it began with.

    Raises ValueError if the folder has checkpoints of another configuration (and says what differs), or some that
    `resume` forbids to go on from, or if another process trains in it.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"--resume: {resume!r} is neither auto nor never")
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: a file is in the way; choose another run folder")
    if resume == "never" and checkpoints(run):
        raise ValueError(f"{run}: has checkpoints already; choose another run folder, or --resume auto to go on")
    run.mkdir(parents=True, exist_ok=True)
    with held_by_one_process(run):
        if checkpoints(run):
            yield gone_on_with(run, config)
            return
        # Whatever else lies here, no checkpoint has been made of it, and the run begins.
        config = resolve(config)
        write_yaml(run / RUN_CONFIG, config)
        yield config


def gone_on_with(run: Path, config: RunConfig) -> RunConfig:
    """`config` as the run began with it, if it is the same."""
    if not (run / RUN_CONFIG).exists():
        raise ValueError(f"{run}: is a run without its {RUN_CONFIG}; choose another run folder with --run")
    saved = validate(RunConfig, read_yaml(run / RUN_CONFIG))
    config = _with_resolved(config, saved)
    changed = differences(to_tree(saved), to_tree(config))
    if changed:
        raise ValueError(
            f"{run}: belongs to another configuration ({'; '.join(changed)}); choose another run folder with --run"
        )
    return config


def _with_resolved(config: RunConfig, saved: RunConfig) -> RunConfig:
    """`config` with what a saved one found for each of its `auto`."""
    parts: dict[str, Any] = {}
    for part, names in RESOLVED.items():
        given, found = getattr(config, part), getattr(saved, part)
        parts[part] = replace(given, **{name: getattr(found, name) for name in names if getattr(given, name) == "auto"})
    return replace(config, **parts)


def model_folder(path: Path) -> Path:
    """The model folder that a user means: the folder itself, or the last checkpoint of a run folder.

    Raises ValueError where it is neither.
    """
    for folder in (path, path / "final"):
        if (folder / CONFIG).is_file():
            return folder
    if (path / RUN_CONFIG).is_file():
        raise ValueError(f"{path}: this run has no checkpoint yet; train it first")
    raise ValueError(f"{path}: no model here ({CONFIG} is missing); name a model folder or a run folder")


def run_of(folder: Path) -> RunConfig | None:
    """The configuration of the run that a model folder lies in, or None."""
    for parent in folder.resolve().parents:
        if (parent / RUN_CONFIG).is_file():
            return validate(RunConfig, read_yaml(parent / RUN_CONFIG))
    return None
