"""How does text become a prepared folder?  Fingerprint, tokenizer, split, shards, and one rename at the very end.

The folder is written under a hidden name beside its own and renamed when complete, so that what bears the final name is
always whole. Which documents are held out depends on their text alone: the split stays when the corpus grows.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import Tokenizer

from moeut.data.sources import DOCUMENT_BYTES, SourceFile, is_compressed, read_documents
from moeut.data.tokenizer import encode, end_of_document_id, save_tokenizer, train_tokenizer
from moeut.data.tokens import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    SplitCounts,
    TokenWriter,
    file_record,
    open_prepared,
    write_manifest,
)
from moeut.data.workplace import publish, recover, workplace

BATCH_BYTES = 2**21
Progress = Callable[[str, int, int | None], None]
"""Told (stage, bytes of text done, bytes in all, or None where that is not known)."""


class Outcome(NamedTuple):
    """The manifest of the folder, and whether it was written now or had been there just as asked for."""

    manifest: Manifest
    written: bool


def prepare(
    folder: str | Path,
    files: Sequence[SourceFile],
    *,
    tokenizer: Tokenizer | int = 4096,
    held_out: float = 0.05,
    text_column: str = "text",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Turns text into `folder`: `moeut.data.tokens` says what it holds, `open_prepared` reads it.

    Args:
        folder: where to; left alone if it holds just what is asked for.
        files: from `find_files` or `standard_library`.
        tokenizer: one to use, or the size of the vocabulary to train on the training part.
        held_out: the share of documents that training never sees, chosen by their hash.
        text_column: the field of JSON lines that holds the text.
        overwrite: replace a prepared folder that holds something else.
        progress: is told how far it is.

    Raises:
        ValueError: the folder holds something else or is damaged; the text cannot be read; a part comes out empty.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the documents, between 0 and 1")
    folder = Path(folder).resolve()
    settings = _settings(tokenizer, held_out, text_column)
    listing = _listing(files)
    recover(folder)
    existing = _existing(folder, overwrite)
    if existing and (existing.settings, existing.listing) == (settings, listing):
        return Outcome(existing, written=False)
    fingerprint = _fingerprint(files, settings)
    if existing and existing.fingerprint == fingerprint:
        return Outcome(existing, written=False)
    if existing and not overwrite:
        raise ValueError(f"{folder}: {_difference(existing, settings)}; choose another folder, or overwrite this one")

    with workplace(folder) as partial:
        corpus = _Corpus(files, text_column, held_out, progress or (lambda stage, done, total: None))
        if isinstance(tokenizer, int):
            tokenizer = train_tokenizer(corpus.training_texts(), tokenizer)
        save_tokenizer(tokenizer, partial)
        dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
        splits = _write_tokens(corpus, tokenizer, partial, dtype)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=fingerprint,
            listing=listing,
            sources=tuple(dict.fromkeys(file.given for file in files)),
            settings=settings,
            vocab_size=tokenizer.get_vocab_size(),
            end_of_document_id=end_of_document_id(tokenizer),
            dtype=dtype,
            splits=splits,
            files={path.name: file_record(path) for path in sorted(partial.iterdir())},
        )
        write_manifest(manifest, partial)
        publish(partial, folder)
    return Outcome(manifest, written=True)


@dataclass(frozen=True)
class _Text:
    """A document's text, its size, and its place in [0, 1): those below the held-out share are held out."""

    text: str
    num_bytes: int
    place: float


@dataclass
class _Corpus:
    """The documents of the sources, read anew for each pass over them; the first pass counts their bytes."""

    files: Sequence[SourceFile]
    text_column: str
    held_out: float
    progress: Progress
    total: int | None = None

    def __post_init__(self) -> None:
        if not any(is_compressed(file.path) for file in self.files):
            self.total = sum(file.path.stat().st_size for file in self.files)

    def texts(self, stage: str) -> Iterator[_Text]:
        done = told = 0
        for document in read_documents(self.files, self.text_column):
            encoded = document.text.encode()
            yield _Text(document.text, len(encoded), _place(encoded))
            done += len(encoded)
            if done - told >= BATCH_BYTES:
                told = done
                self.progress(stage, done, self.total)
        self.total = done
        self.progress(stage, done, done)

    def training_texts(self) -> Iterator[str]:
        return (text.text for text in self.texts("tokenizer") if text.place >= self.held_out)


def _place(text: bytes) -> float:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


def _write_tokens(corpus: _Corpus, tokenizer: Tokenizer, folder: Path, dtype: str) -> dict[str, SplitCounts]:
    end = end_of_document_id(tokenizer)
    lowest, highest = math.inf, -math.inf
    with ExitStack() as stack:
        writers = {split: stack.enter_context(TokenWriter(folder, split, dtype, end)) for split in SPLITS}
        for batch in _batches(corpus.texts("tokens")):
            for text, ids in zip(batch, encode(tokenizer, [text.text for text in batch]), strict=True):
                writers["held_out" if text.place < corpus.held_out else "train"].append(ids, text.num_bytes)
                lowest, highest = min(lowest, text.place), max(highest, text.place)
        splits = {split: writer.finish() for split, writer in writers.items()}
    if not all(counts.documents for counts in splits.values()):
        raise ValueError(_empty_part(splits, corpus.held_out, lowest, highest))
    return splits


def _batches(texts: Iterator[_Text]) -> Iterator[list[_Text]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += text.num_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _empty_part(splits: dict[str, SplitCounts], held_out: float, lowest: float, highest: float) -> str:
    documents = sum(counts.documents for counts in splits.values())
    if not documents:
        return "there is no text in these files"
    if lowest == highest:
        return "the text is a single document, and it takes two to hold one out; give more text"
    if splits["train"].documents:
        share = math.ceil(lowest * 100) / 100
        part, advice = "held-out", f"ask for a held_out of at least {share if share <= highest else highest:.4g}"
    else:
        share = math.floor(highest * 100) / 100
        part, advice = "training", f"ask for a held_out of at most {share if share > lowest else highest:.4g}"
    return f"the {part} part is empty: {documents} documents, held_out {held_out}; {advice}, or give more text"


def _settings(tokenizer: Tokenizer | int, held_out: float, text_column: str) -> dict[str, str | int | float]:
    if isinstance(tokenizer, int):
        name = f"byte-level BPE of {tokenizer} tokens"
    else:
        name = f"sha256:{hashlib.sha256(tokenizer.to_str().encode()).hexdigest()}"
    return {
        "tokenizer": name,
        "held_out": held_out,
        "text_column": text_column,
        "document_bytes": DOCUMENT_BYTES,
        "tokenizers": tokenizers.__version__,
    }


def _listing(files: Sequence[SourceFile]) -> str:
    entries = ((file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.path.stat(),))
    return _digest(list(entries))


def _fingerprint(files: Sequence[SourceFile], settings: dict[str, str | int | float]) -> str:
    # The name without its folder: the suffix decides how a file is read, the place it lies at decides nothing.
    contents = [(file.path.name, file_record(file.path).sha256) for file in files]
    return _digest([FORMAT_VERSION, settings, contents])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _existing(folder: Path, overwrite: bool) -> Manifest | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: holds something other than prepared data; choose another folder")
    try:
        return open_prepared(folder).manifest
    except ValueError:
        if overwrite:
            return None
        raise


def _difference(existing: Manifest, settings: dict[str, str | int | float]) -> str:
    changed = [
        f"{name} {existing.settings.get(name)!r} there, {value!r} asked for"
        for name, value in settings.items()
        if existing.settings.get(name) != value
    ]
    return f"made differently ({', '.join(changed)})" if changed else "made from other contents of the sources"
