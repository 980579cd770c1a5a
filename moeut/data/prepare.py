"""How does a recipe become a prepared folder?  Tokenizer, then passes over the sources, and one rename at the very end.

All is written in a hidden folder beside the final one, with a journal of how far it is: a preparation that ends early,
by whatever cause, goes on from there when it is asked for again, to the same bytes. What bears the final name is whole.
"""

import hashlib
import json
import math
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from moeut.data.ahead import ahead
from moeut.data.documents import BEGINNING, DOCUMENT_BYTES, Notice
from moeut.data.encoding import read
from moeut.data.journal import JOURNAL, Standing, read_journal, write_journal
from moeut.data.mixture import Lane, lanes, merge
from moeut.data.passes import HELD_OUT_HASHES, Ledger, passes, places, rules, run
from moeut.data.recipe import HeldOutDocuments, RecipeConfig, TokenEnd
from moeut.data.sources import HubSource, SourceConfig, is_compressed, resolve
from moeut.data.tokenizer import build_tokenizer, end_of_document_id, load_tokenizer, needs_text, save_tokenizer
from moeut.data.tokens import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    Progress,
    SourceRecord,
    file_record,
    open_prepared,
    read_manifest,
    write_manifest,
)
from moeut.data.workplace import clear, is_unsettled, publish, recover, workplace
from moeut.data.writer import NOTHING
from moeut.files import flush
from moeut.trees import differences, to_tree
from moeut.validation import Tree

QUICKLY_CHECKED_BYTES = 2**30
NO_HASHES = (2**64 - 1, 0)
UNPUBLISHED = (JOURNAL, HELD_OUT_HASHES)


class Outcome(NamedTuple):
    """The manifest of the folder, and whether it was written now or had been there just as asked for."""

    manifest: Manifest
    written: bool


def prepare(
    folder: str | Path,
    recipe: RecipeConfig,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Outcome:
    """Makes what a recipe says into `folder`, or goes on where an earlier call was cut short.

    Args:
        folder: where to; left alone if it holds just what is asked for. `moeut.data.tokens` says what it holds.
        recipe: see `moeut.data.recipe`.
        overwrite: replace a prepared folder that holds something else.
        progress: is told how far it is.
        notice: is told, in one line each, what one should know though it goes on.

    Raises:
        ValueError: the folder holds something else or is damaged; the text cannot be read; a part comes out empty, or
            smaller than asked for; the disk is full; another process is at it.
    """
    folder = Path(folder).resolve()
    preparation = _Preparation(recipe, progress or (lambda stage, done, total: None), notice or (lambda text: None))
    existing = None if is_unsettled(folder) else preparation.find(folder, overwrite)
    if existing is None:
        with workplace(folder) as partial, _told_of_the_disk(folder):
            recover(folder)
            existing = preparation.find(folder, overwrite)  # another process may have made it since
            if existing is None:
                manifest = preparation.make(partial)
                publish(partial, folder)
                return Outcome(manifest, written=True)
    return Outcome(existing, written=False)


class _Preparation:
    """A recipe and what it names: its sources' files, found when they are needed, and its tokenizer."""

    def __init__(self, recipe: RecipeConfig, progress: Progress, notice: Notice):
        self.recipe, self.progress, self.notice = recipe, progress, notice
        self.sources: tuple[SourceConfig, ...] = (*recipe.sources, *recipe.held_out_sources())
        self.files = cache(lambda number: resolve(self.sources[number], notice))
        self.tokenizer = None if needs_text(recipe.tokenizer) else build_tokenizer(recipe.tokenizer, ())
        self.settings = _settings(recipe, self.tokenizer)
        self.total: int | None = None

    def find(self, folder: Path, overwrite: bool) -> Manifest | None:
        """The manifest of the folder if it holds just what is asked for; None if it is to be made."""
        existing = _existing(folder, overwrite)
        if existing is None:
            return None
        if existing.settings == self.settings and existing.listing == self.listing():
            return existing
        if existing.fingerprint == self.fingerprint():
            return existing
        if overwrite:
            return None
        changed = differences(existing.settings, self.settings)
        what = f"made differently ({'; '.join(changed)})" if changed else "made from other contents of the sources"
        raise ValueError(f"{folder}: {what}; choose another folder, or overwrite this one")

    def listing(self) -> str:
        """Stands for the sources' names, sizes and times. A commit of the Hub stands for itself, without asking."""
        return _digest(
            [
                to_tree(source)
                if isinstance(source, HubSource) and _is_commit(source.revision)
                else [(file.name, file.stamp()) for file in self.files(number)]
                for number, source in enumerate(self.sources)
            ]
        )

    @cached_property
    def contents(self) -> list[list[tuple[str, str]]]:
        """What each file of each source holds."""
        # The name without its folder: the suffix decides how a file is read, the place it lies at decides nothing.
        sources = [self.files(number) for number in range(len(self.sources))]
        return [[(PurePath(file.name).name, file.identity()) for file in files] for files in sources]

    def fingerprint(self, **changes: Any) -> str:
        """Stands for the sources' contents and the settings, some of which may be others."""
        return _digest([FORMAT_VERSION, {**self.settings, **changes}, self.contents])

    def make(self, partial: Path) -> Manifest:
        """Makes all files in a workplace, or those that are missing."""
        if (finished := _finished(partial, self.fingerprint())) is not None:
            return finished
        recipe, files = self.recipe, [self.files(number) for number in range(len(self.sources))]
        if not any(is_compressed(file.name) for found in files for file in found):
            self.total = sum(file.size for found in files for file in found)
        training, held_out = lanes(recipe, files)
        start = read_journal(partial, self.fingerprint(max_tokens=None), recipe.max_tokens)
        if start is None:
            start = self._begin(partial, training)
        tokenizer = load_tokenizer(partial)
        end, dtype = end_of_document_id(tokenizer), "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
        has_ends = isinstance(recipe.document_end, TokenEnd)
        with Ledger(recipe, partial, dtype, end if has_ends else None, start) as ledger:
            for todo in passes(recipe, training, held_out)[ledger.stage :]:
                run(ledger, todo, tokenizer, self.progress, self.notice, self.total)
            if not all(counts.documents for counts in ledger.splits.values()):
                clear(partial)
                raise ValueError(_empty_part(ledger))
            ledger.finish()
        records = [
            SourceRecord(", ".join(dict.fromkeys(file.given for file in found)), len(found), splits)
            for found, splits in zip(files, ledger.sources, strict=True)
        ]
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=self.fingerprint(),
            listing=self.listing(),
            sources=tuple(records),
            settings=self.settings,
            vocab_size=tokenizer.get_vocab_size(),
            end_of_document_id=end,
            has_ends=has_ends,
            dtype=dtype,
            splits=ledger.splits,
            files={path.name: file_record(path) for path in sorted(partial.iterdir()) if path.name not in UNPUBLISHED},
        )
        write_manifest(manifest, partial)
        _tidy(partial)
        return manifest

    def _begin(self, partial: Path, training: Sequence[Lane]) -> Standing:
        """Makes the tokenizer, and the journal of a preparation of which nothing else is done."""
        clear(partial)
        tokenizer = self.tokenizer
        if tokenizer is None:
            with closing(self._tokenizer_texts(training)) as texts:
                tokenizer = build_tokenizer(self.recipe.tokenizer, texts)
        save_tokenizer(tokenizer, partial)
        for file in partial.iterdir():
            flush(file)
        start = Standing(
            fingerprint=self.fingerprint(max_tokens=None),
            max_tokens=self.recipe.max_tokens,
            stage=0,
            lanes=(),
            splits=dict.fromkeys(SPLITS, NOTHING),
            sources=tuple({} for _ in self.sources),
            hashes=NO_HASHES,
        )
        write_journal(start, partial)
        return start

    def _tokenizer_texts(self, training: Sequence[Lane]) -> Generator[str]:
        """The beginning of the training text, as much of it as a tokenizer is to be made from."""
        recipe, limit = self.recipe, self.recipe.tokenizer_text
        chosen = [replace(lane, files=lane.files[: limit.max_files]) for lane in training]
        rule = rules(recipe, "train")
        done = used = 0
        with ExitStack() as stack:
            streams = [
                stack.enter_context(closing(ahead(read(lane, BEGINNING, rule, recipe.errors, self.notice))))
                for lane in chosen
            ]
            for _, batch in merge(streams, [lane.weight for lane in chosen], [0] * len(chosen), lambda lane: None):
                for document, held_out in zip(batch.documents, batch.held_out.tolist(), strict=True):
                    if not held_out:
                        yield document.text + rule.end_text
                        used += document.num_bytes
                    if limit.max_bytes is not None and used >= limit.max_bytes:
                        return
                done += int(batch.num_bytes.sum())
                self.progress("tokenizer", done, self.total)
        if done != self.total:
            self.progress("tokenizer", done, done)
        if chosen == list(training) and isinstance(recipe.held_out, HeldOutDocuments):
            self.total = done  # all there is, as the pass will count it


@contextmanager
def _told_of_the_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{folder}: cannot be written ({reason}); what is done is kept, and the same command goes on"
        ) from error


def _finished(partial: Path, fingerprint: str) -> Manifest | None:
    """The manifest of a workplace in which everything is done, or None."""
    if not (partial / MANIFEST).exists():
        return None
    manifest = read_manifest(partial)
    if manifest.fingerprint != fingerprint:
        return None
    _tidy(partial)
    return manifest


def _tidy(partial: Path) -> None:
    for name in UNPUBLISHED:
        (partial / name).unlink(missing_ok=True)


def _existing(folder: Path, overwrite: bool) -> Manifest | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: holds something other than prepared data; choose another folder")
    try:
        manifest = read_manifest(folder)
        # Who is about to train has all of it checked; here that would take longer than "nothing to do" may.
        small = sum(record.bytes for record in manifest.files.values()) < QUICKLY_CHECKED_BYTES
        return open_prepared(folder, verify=small or overwrite).manifest
    except ValueError:
        if overwrite:
            return None
        raise


def _settings(recipe: RecipeConfig, tokenizer: Tokenizer | None) -> Tree:
    """What decides the content beside the contents of the sources; not where these lie."""
    tree = to_tree(recipe)
    if tokenizer is not None:
        checksum = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        tree["tokenizer"] = {"kind": recipe.tokenizer.kind, "sha256": checksum}
    for node in (tree, tree["held_out"]):
        for source in node.get("sources", ()):
            for name in source.keys() - {"text_column", "weight"}:
                del source[name]
    return {**tree, "document_bytes": DOCUMENT_BYTES, "tokenizers": tokenizers.__version__}


def _empty_part(ledger: Ledger) -> str:
    splits, held_out = ledger.splits, ledger.recipe.held_out
    documents, limit = sum(counts.documents for counts in splits.values()), ledger.recipe.max_tokens
    part = "training" if splits["held_out"].documents else "held-out"
    if limit is not None:
        return f"the {part} part is empty: {documents:,} documents make up max_tokens {limit:,}; ask for more"
    if not documents:
        return "there is no text in these files"
    if not isinstance(held_out, HeldOutDocuments):
        return f"the {part} part is empty: {documents:,} documents; give more text"
    lowest, highest = places(np.array(ledger.hashes, np.uint64)).tolist()
    if lowest == highest:
        return "the text is a single document, and it takes two to hold one out; give more text"
    if part == "held-out":
        share = math.ceil(lowest * 100) / 100
        advice = f"at least {share if share <= highest else highest:.4g}"
    else:
        share = math.floor(highest * 100) / 100
        advice = f"at most {share if share > lowest else highest:.4g}"
    return (
        f"the {part} part is empty: {documents:,} documents, held_out.share {held_out.share}; ask for a held_out.share "
        f"of {advice}, or give more text"
    )


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
