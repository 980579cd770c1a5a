"""Which model does a name mean? A preset, a YAML file, a model folder or a run folder."""

from collections.abc import Iterable
from pathlib import Path

from moeut.config import RunConfig, run_config
from moeut.experiments.matching import model_tree
from moeut.experiments.run_folder import model_folder, run_of
from moeut.presets import PRESETS, no_such_preset, run_preset
from moeut.trees import to_tree


def named_run(name: str, default: RunConfig, overrides: Iterable[tuple[str, str]] = ()) -> RunConfig:
    """The configuration that a name means, with dotted overrides.

    A preset: its model and training. A YAML file: as it is when laid over `default`. A run folder, or a model folder in
    one: the run's. Another model folder: its model, and the rest of `default`. Data are `default`'s unless a file or a
    run says others. Raises ValueError where the name means nothing, or its configuration is none.
    """
    path = Path(name)
    if name in PRESETS:
        return run_config(to_tree(run_preset(name, default.data)), None, overrides)
    if path.is_file():
        return run_config(to_tree(default), path, overrides)
    if not path.exists():
        raise ValueError(f"{name}: no such file or folder, and no preset; {no_such_preset(name)}")
    base = to_tree(run_of(model_folder(path)) or default)
    base["model"] = model_tree(path)
    return run_config(base, None, overrides)
