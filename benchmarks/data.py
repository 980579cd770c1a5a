"""How fast does text become tokens, and tokens batches?  Against the bare `tokenizers` library, and in tokens a second.

    python benchmarks/data.py [CORPUS.jsonl.xz] [--repetitions 3] [--vocab-size 8000] > results.md

CORPUS is a file of JSON lines with the column `text`, packed or not; without one, it is the source code of Python's
standard library. The bare library reads the same documents in the plainest way, each once, keeps them all in memory,
trains the same kind of tokenizer on as much of them, and encodes all of them in batches. `prepare` does that, and what
a corpus needs beside: hashes, a held-out part, shards on the disk, checksums, in little memory. Both take turns;
medians are reported. No speed is reported unless both make the same tokens of the same text.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import tokenizers
from measure.machine import hardware, seconds
from tokenizers import Tokenizer

from moeut.data.formats import unpack
from moeut.data.local import standard_library
from moeut.data.prepare import prepare
from moeut.data.recipe import RecipeConfig
from moeut.data.sampler import Batches, Blocks
from moeut.data.sources import FilesSource, StandardLibrarySource, read_documents, resolve
from moeut.data.tokenizer import BpeTokenizer, train_tokenizer
from moeut.data.tokens import PreparedData, open_prepared

TRAINING_SHARE = 0.95
BATCH_TEXTS = 1000
APPETITE = 400_000
"""Tokens a second that the 44M model is taken to train on with an H100."""


def texts_of(corpus: Path | None) -> Iterator[str]:
    """The documents, read in the plainest way."""
    if corpus is None:
        yield from (file.path.read_text(encoding="utf-8") for file in standard_library())
        return
    with corpus.open("rb") as stored, unpack(stored, corpus.name) as lines:
        yield from (json.loads(line)["text"] for line in lines)


def bare(corpus: Path | None, vocab_size: int) -> int:
    """Training and encoding with the bare library: the number of tokens."""
    texts = list(texts_of(corpus))
    tokenizer = train_tokenizer(texts[: round(TRAINING_SHARE * len(texts))], vocab_size)
    return encoded_by(tokenizer, texts)


def encoded_by(tokenizer: Tokenizer, texts: list[str]) -> int:
    """How many tokens the bare library makes of texts."""
    batches = (texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS))
    return sum(
        len(encoding) for batch in batches for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    )


def recipe_of(corpus: Path | None, vocab_size: int) -> RecipeConfig:
    """The same as a recipe."""
    source = StandardLibrarySource() if corpus is None else FilesSource(paths=(str(corpus),))
    return RecipeConfig(sources=(source,), tokenizer=BpeTokenizer(vocab_size=vocab_size))


def rate_of_batches(data: PreparedData, batch_size: int, context_length: int, repetitions: int) -> float:
    """Tokens a second of batches from all over the corpus, read in one thread."""
    batches = Batches(Blocks(data.train, context_length), batch_size)
    count = max(2**22 // (batch_size * context_length), 1)
    steps = np.random.default_rng(0).integers(0, 10**6, (repetitions, count)).tolist()
    return count * batch_size * context_length / median(
        seconds(lambda some=some: [batches.batch(step) for step in some]) for some in steps
    )  # fmt: skip


def report(corpus: Path | None, vocab_size: int, repetitions: int) -> Iterator[str]:
    """The results as lines of Markdown, as they come."""
    recipe = recipe_of(corpus, vocab_size)
    yield "# Text to tokens, tokens to batches"
    yield ""
    yield (
        f"{hardware()}, Python {platform.python_version()}, tokenizers {tokenizers.__version__}, "
        f"numpy {np.__version__}, {datetime.now(UTC):%Y-%m-%d}; medians of {repetitions}."
    )
    yield f"Command: `{' '.join(['python benchmarks/data.py', *([corpus.name] if corpus else [])])}`."
    yield ""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "data")
        times: dict[str, list[float]] = {"bare": [], "prepare": []}
        for _ in range(repetitions):
            times["bare"].append(seconds(lambda: bare(corpus, vocab_size)))
            times["prepare"].append(seconds(lambda: prepare(folder, recipe, overwrite=True)))
            if len(times["bare"]) < repetitions:
                for file in folder.iterdir():
                    file.unlink()
        data = open_prepared(folder)
        if not same_tokens(data, corpus):
            raise SystemExit("WRONG: prepare and the bare library make different tokens of the same text")
        num_bytes = data.train.num_bytes + data.held_out.num_bytes
        ours, theirs = median(times["prepare"]), median(times["bare"])
        reading = median(seconds(lambda: sum(1 for _ in read_documents(resolve(recipe.sources[0])))) for _ in range(3))
        checking = median(seconds(lambda: open_prepared(folder)) for _ in range(3))
        size = sum(record.bytes for record in data.manifest.files.values())
        command = [sys.executable, "-m", "moeut", "prepare", "--out", str(folder), "--vocab-size", str(vocab_size)]
        again = median(seconds(lambda: subprocess.run([*command, *([str(corpus)] if corpus else [])], check=True,
                                                      capture_output=True)) for _ in range(3))  # fmt: skip
        rows = [
            (f"bare `tokenizers`: read, train {vocab_size:,}, encode", theirs, num_bytes),
            ("`prepare`: the same, and all the rest", ours, num_bytes),
            ("reading the documents alone", reading, num_bytes),
            (f"opening the folder, checksums of {size / 1e6:.0f} MB", checking, size),
        ]
        yield "| what | seconds | MB/s |"
        yield "| --- | --- | --- |"
        yield from (f"| {what} | {taken:.2f} | {amount / taken / 1e6:.1f} |" for what, taken, amount in rows)
        yield f"| `moeut prepare` again, with nothing to do | {again:.2f} | |"
        yield ""
        yield f"`prepare` has {theirs / ours:.2f} times the speed of the bare library (aim: 0.85)."
        yield ""
        yield f"| batches, shuffled, one thread | tokens/s | of {APPETITE:,} tokens/s |"
        yield "| --- | --- | --- |"
        for batch_size, context_length in ((64, 1024), (8, 128)):
            rate = rate_of_batches(data, batch_size, context_length, max(repetitions, 5))
            yield f"| {batch_size} × {context_length:,} | {rate / 1e6:.1f}M | {rate / APPETITE:.0f} × |"


def same_tokens(data: PreparedData, corpus: Path | None) -> bool:
    """Whether the bare library makes as many tokens of the documents as the folder holds, and the same of the first."""
    tokenizer = data.tokenizer()
    texts = [document.text for document in read_documents(resolve(recipe_of(corpus, 300).sources[0]))]
    ends = len(data.train.documents) + len(data.held_out.documents) + 2
    known = {tuple(stream.document_tokens(0).tolist()) for stream in (data.train, data.held_out)}
    found = {tuple(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts[:200], add_special_tokens=False)}
    return encoded_by(tokenizer, texts) + ends == len(data.train) + len(data.held_out) and bool(known & found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path, metavar="CORPUS")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8000)
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_file():
        raise SystemExit(f"skipped: {arguments.corpus} is not there")
    for line in report(arguments.corpus, arguments.vocab_size, arguments.repetitions):
        print(line, flush=True)
