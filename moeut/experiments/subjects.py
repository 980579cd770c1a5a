"""Which model and which text does a user mean? Runs, folders, models of transformers, prepared text, files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moeut.data.local import find_files
from moeut.data.tokens import MANIFEST, TokenStream, open_prepared, read_manifest
from moeut.evaluation.subject import DEFAULT_CONTEXT_LENGTH, Subject, is_ours, open_ours, open_theirs
from moeut.evaluation.texts import file_streams, reencoded, source_streams
from moeut.experiments.matching import TOKENIZER, same_tokenizer
from moeut.experiments.run_folder import model_folder, run_of
from moeut.model.elastic_depth import with_repeats
from moeut.model.language_model import LanguageModel

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How models are opened and read. dtype, context_length, repeats: None: each model's own."""

    device: torch.device
    dtype: torch.dtype | None = None
    context_length: int | None = None
    batch_size: int = 8
    repeats: int | None = None


def open_subject(name: str, reading: Reading, tokenizer_folder: Path | None = None) -> Subject:
    """The model of a name: a model folder or a run folder, ours or of transformers, or OWNER/NAME on the Hub.

    tokenizer_folder: has the tokenizer of a model folder of ours that comes without. Raises ValueError where there is
    no model.
    """
    path = Path(name)
    on_the_hub = not path.exists() and HUB_NAME.fullmatch(name) is not None
    folder = None if on_the_hub else model_folder(path)
    if folder is None or not is_ours(folder):
        if reading.repeats is not None:
            raise ValueError(f"--repeats: {name} is no model of this package; none of its layers can be repeated")
        return open_theirs(
            name if folder is None else str(folder), reading.device, reading.dtype, reading.context_length
        )
    run = run_of(folder)

    def deeper(model: LanguageModel) -> LanguageModel:
        return model if reading.repeats is None else with_repeats(model, reading.repeats)

    return open_ours(
        folder, reading.device, reading.dtype,
        reading.context_length or (run.training.context_length if run else DEFAULT_CONTEXT_LENGTH),
        change=deeper, name=name,
        tokenizer_folder=folder if tokenizer_folder is None or (folder / TOKENIZER).is_file() else tokenizer_folder,
    )  # fmt: skip


def data_of_run(name: str) -> Path:
    """The prepared folder that a run was trained on. Raises ValueError where a model is not part of a run."""
    folder = model_folder(Path(name))
    run = run_of(folder)
    if run is None:
        raise ValueError(f"{folder}: not part of a run, so name the text to evaluate on with --data PATH")
    return Path(run.data)


def is_prepared(path: Path) -> bool:
    """Whether a path is a prepared folder rather than files of text."""
    return (path / MANIFEST).is_file()


def identities(paths: Sequence[Path]) -> dict[str, str]:
    """What stands for the content of prepared folders and files, by their names."""
    found: dict[str, str] = {}
    for path in paths:
        if is_prepared(path):
            found[str(path)] = read_manifest(path).fingerprint
        else:
            found |= {file.name: file.identity() for file in find_files([path])}
    return found


def streams(paths: Sequence[Path], subject: Subject, *, by_source: bool = False) -> dict[str, TokenStream]:
    """The texts behind some paths, by name: the held-out part of a prepared folder or of its sources, or files.

    by_source: each source of a prepared folder apart. Raises ValueError where there is no text, or a tokenizer that has
    lost some of it stands between it and the model.
    """
    found: dict[str, TokenStream] = {}
    for path in paths:
        if not is_prepared(path):
            found |= file_streams([path], subject)
            continue
        data = open_prepared(path)
        texts = {f"{path} (held out)": data.held_out}
        if by_source:
            texts = {f"{path} (held out): {name}": stream for name, stream in source_streams(data).items()}
        if not same_tokenizer(data.folder, subject.tokenizer_folder):
            texts = {name: reencoded(data, stream, subject) for name, stream in texts.items()}
        found |= texts
    return found
