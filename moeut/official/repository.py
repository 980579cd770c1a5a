"""How are the official checkpoints fetched by name? From their place on the Hub, with the tokenizer they speak.

The names of the files are those that the repository has when it is asked: `C4_44M.ckpt` is meant by `c4-44m`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from huggingface_hub import HfApi, hf_hub_download

from moeut.data.documents import Notice
from moeut.data.download import PATIENT, Patience, patiently

OFFICIAL = "official:"
"""What a source begins with that is to be fetched."""

REPOSITORY = "robertcsordas/moeut_training_checkpoints"
CHECKPOINTS = (".ckpt", ".pth")
T = TypeVar("T")


class OfficialFiles(NamedTuple):
    """A checkpoint and its SentencePiece model on this machine. tokenizer: None where none was asked for."""

    checkpoint: Path
    tokenizer: Path | None


def fetch_official(
    name: str, notice: Notice, *, with_tokenizer: bool = True, patience: Patience = PATIENT
) -> OfficialFiles:
    """Download an official checkpoint, or take it from the Hub's cache on this machine.

    name: of the file, with `official:` in front or not; its suffix, case and punctuation are left aside, and a part of
    it will do where no other has it too.

    Raises ValueError, one line: no checkpoint of that name, or several (all are listed); not one tokenizer for it (all
    are listed); the Hub cannot be reached, or refuses.
    """

    def ask(question: Callable[[], T]) -> T:
        return patiently(question, REPOSITORY, patience, notice)

    info = ask(lambda: HfApi().model_info(REPOSITORY, timeout=patience.timeout_seconds))
    files = [sibling.rfilename for sibling in info.siblings or ()]
    checkpoint = find_checkpoint(name.removeprefix(OFFICIAL), files)
    wanted = [checkpoint, find_tokenizer_of(checkpoint, files)] if with_tokenizer else [checkpoint]
    found = [
        Path(ask(lambda file=file: hf_hub_download(REPOSITORY, file, revision=info.sha)))
        for file in wanted
    ]  # fmt: skip
    return OfficialFiles(found[0], found[1] if with_tokenizer else None)


def find_checkpoint(name: str, files: Sequence[str]) -> str:
    """The one checkpoint that a name means among a repository's files. Raises ValueError as `fetch_official` does."""
    titles = {file: _plain(PurePosixPath(file).stem) for file in files if file.endswith(CHECKPOINTS)}
    wanted = _plain(PurePosixPath(name).stem if name.endswith(CHECKPOINTS) else name)
    matches = [file for file, title in titles.items() if title == wanted]
    matches = matches or [file for file, title in titles.items() if wanted and wanted in title]
    if len(matches) != 1:
        which = "several checkpoints" if matches else "no checkpoint"
        there = ", ".join(PurePosixPath(file).stem for file in matches or titles) or "none"
        raise ValueError(f"official:{name}: {which} of that name; there are: {there}")
    return matches[0]


def find_tokenizer_of(checkpoint: str, files: Sequence[str]) -> str:
    """The SentencePiece model in the folder of a checkpoint's data set (C4_44M: C4). Raises ValueError if not one."""
    dataset, _, _ = _plain(PurePosixPath(checkpoint).stem).partition("-")
    models = [file for file in files if file.endswith(".model")]
    matches = [
        file for file in models if any(dataset == _plain(part).partition("-")[0] for part in PurePosixPath(file).parts)
    ]
    if len(matches) != 1:
        there = ", ".join(matches or models) or "none"
        raise ValueError(f"{checkpoint}: not one tokenizer for it; name one with --tokenizer; there are: {there}")
    return matches[0]


def _plain(name: str) -> str:
    """A name in small letters and digits, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))
