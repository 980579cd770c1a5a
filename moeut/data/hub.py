"""Which files does a data set of the Hugging Face Hub consist of?  Listed at one commit, with what identifies each."""

import glob
import io
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from fsspec.utils import glob_translate
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from moeut.data.documents import Notice
from moeut.data.download import PATIENT, Patience, RemoteStream, patiently
from moeut.data.formats import READABLE_SUFFIXES, form
from moeut.data.sources import HubSource

T = TypeVar("T")
BUFFER_BYTES = 2**20
PATHS_A_REQUEST = 200


@dataclass(frozen=True)
class HubFile:
    """A file of a data set at a commit: `size` in bytes, and `content`, which the Hub names its content by."""

    dataset: str
    commit: str
    path: str
    size: int
    content: str
    given: str
    patience: Patience = PATIENT

    @property
    def name(self) -> str:
        """As results show it."""
        return f"{self.dataset}/{self.path}"

    def stamp(self) -> str:
        """Changes when the file does, and costs nothing to ask for."""
        return self.content

    def identity(self) -> str:
        """Stands for the content: its checksum, or the name that git gives it."""
        return self.content

    def open(self, notice: Notice) -> IO[bytes]:
        """The content, over the network; failures that pass are told, and do not show in it."""
        url = hf_hub_url(self.dataset, self.path, repo_type="dataset", revision=self.commit)
        stream = RemoteStream(url, build_hf_headers(), self.size, self.name, self.patience, notice)
        return io.BufferedReader(stream, BUFFER_BYTES)


def find_hub_files(source: HubSource, notice: Notice, patience: Patience = PATIENT) -> list[HubFile]:
    """The files of a source at the commit that its revision is now, in the order in which they are read.

    Raises:
        ValueError: there is no such data set, configuration, split or file; its files hold no text that can be read
            here; it needs a script of its own; or the Hub refuses or cannot be reached.
    """
    api, what = HfApi(), f"the data set {source.dataset}"

    def ask(question: Callable[[], T]) -> T:
        return patiently(question, what, patience, notice)

    info = ask(lambda: api.dataset_info(source.dataset, revision=source.revision, timeout=patience.timeout_seconds))
    dataset, commit = info.id, str(info.sha)
    if source.files is None:
        paths = ask(lambda: _files_of_split(source, commit))
        batches = (paths[start : start + PATHS_A_REQUEST] for start in range(0, len(paths), PATHS_A_REQUEST))
        entries = [entry for batch in batches for entry in ask(lambda batch=batch: _infos(api, dataset, commit, batch))]
    else:
        entries = [
            entry for glob in source.files for entry in ask(lambda glob=glob: _matches(api, dataset, commit, glob))
        ]
    given = " ".join(filter(None, (source.dataset, source.name, None if source.files else source.split)))
    return [
        HubFile(dataset, commit, entry.path, entry.size, _content(entry), given, patience)
        for entry in entries
        if entry.size
    ]


def _files_of_split(source: HubSource, commit: str) -> list[str]:
    """The paths of the files that `datasets` would read."""
    from datasets import load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    what = f"the data set {source.dataset}"
    if Path(source.dataset).exists():
        raise ValueError(f"{what}: there is a folder of that name here, which would be read instead; name its path")
    try:
        config = load_dataset_builder(source.dataset, source.name, revision=commit).config
    except (DatasetsError, EmptyDatasetError, RuntimeError, ValueError) as error:
        # RuntimeError: the data set needs a script of its own, which `datasets` refuses to run, and so do we.
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from error
    splits = config.data_files or {}
    if source.split not in splits:
        raise ValueError(f"{what}: no split {source.split!r}; the splits there are: {', '.join(map(repr, splits))}")
    paths = [str(file).partition(f"@{commit}/")[2] for file in splits[source.split]]
    unknown = {form(path) for path in paths} - READABLE_SUFFIXES
    if unknown:
        kinds = ", ".join(sorted(unknown))
        raise ValueError(f"{what}: its files hold {kinds}, not text, JSON lines, Parquet or Arrow")
    return paths


def _infos(api: HfApi, dataset: str, commit: str, paths: list[str]) -> list[RepoFile]:
    """What the Hub says of files, in the order of their paths."""
    answer = api.get_paths_info(dataset, paths, revision=commit, repo_type="dataset")
    entries = {entry.path: entry for entry in answer if isinstance(entry, RepoFile)}
    return [entries[path] for path in paths]


def _matches(api: HfApi, dataset: str, commit: str, pattern: str) -> list[RepoFile]:
    """The files that match a glob, sorted. Only the folder in front of its first wild card is listed."""
    parts = PurePosixPath(pattern).parts
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
    recursive = len(parts) > len(fixed) + 1 or "**" in pattern
    folder, matches = "/".join(fixed) or None, re.compile(glob_translate(pattern)).match
    try:
        entries = list(api.list_repo_tree(dataset, folder, recursive=recursive, revision=commit, repo_type="dataset"))
    except EntryNotFoundError:
        entries = []
    found = [entry for entry in entries if isinstance(entry, RepoFile) and matches(entry.path)]
    if not found:
        raise ValueError(f"the data set {dataset}: no file matches {pattern!r} at the commit {commit}")
    return sorted(found, key=lambda entry: entry.path)


def _content(entry: RepoFile) -> str:
    return f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
