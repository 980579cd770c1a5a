"""What is in a prepared folder?  Amounts, lengths, repetitions, sources and a few documents, to look at first.

The lengths of all documents are always counted. Contents are read of all documents where a split has no more than
`MAX_TOKENS`; else of those of every k-th length (in tokens and bytes), so that equal documents are still seen together.
Letters: n documents of a split.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moeut.data.tokenizer import decode
from moeut.data.tokens import SPLITS, Manifest, PreparedData, TokenStream

MAX_TOKENS = 2**29
SEEK_TOKENS = 2**8
"""As many tokens could be read in the time that it takes to find one document."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
EXAMPLES = 3
EXAMPLE_TOKENS = 100
BAR_WIDTH = 40


@dataclass(frozen=True)
class Bin:
    """How many documents have from `low` to `high` tokens, both included."""

    low: int
    high: int
    documents: int


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds. Tokens are those of documents, without their ends.

    tokens_per_document: by quantile, from the shortest ("0%") to the longest ("100%"). examined_documents: those whose
    contents were read. duplicates: how many of them have the same tokens as an earlier one. used_vocabulary: how many
    tokens occur in them.
    """

    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    tokens_per_document: dict[str, int]
    histogram: list[Bin]
    examined_documents: int
    duplicates: int
    used_vocabulary: int


@dataclass(frozen=True)
class SourceShare:
    """What came of a source: `share` of all tokens, ends of documents included."""

    name: str
    documents: int
    tokens: int
    share: float


@dataclass(frozen=True)
class Example:
    """How a document begins, and how many tokens it has in all."""

    split: str
    document: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Summary:
    """What a prepared folder holds; plain values throughout, for `dataclasses.asdict` and JSON."""

    folder: str
    vocab_size: int
    splits: dict[str, SplitSummary]
    sources: list[SourceShare]
    examples: list[Example]


def summary(data: PreparedData, max_tokens: int = MAX_TOKENS) -> Summary:
    """What a prepared folder holds. It takes seconds, and some 50 bytes of memory a document.

    max_tokens: how many tokens of a split to read; each document counts for `SEEK_TOKENS` more.
    """
    manifest, tokenizer = data.manifest, data.tokenizer()
    streams = dict(zip(SPLITS, (data.train, data.held_out), strict=True))
    return Summary(
        folder=str(data.folder),
        vocab_size=manifest.vocab_size,
        splits={name: _split(stream, manifest.vocab_size, max_tokens) for name, stream in streams.items()},
        sources=_sources(manifest),
        examples=[example for name, stream in streams.items() for example in _examples(name, stream, tokenizer)],
    )


def lines(summary: Summary) -> list[str]:
    """A summary as text: a table, a histogram for each split, the sources and the examples."""
    text = [
        summary.folder,
        f"  {'':<9}{'documents':>12}{'tokens':>16}{'bytes':>16}{'bytes/token':>13}{'duplicates':>12}",
    ]
    for name, split in summary.splits.items():
        share = split.duplicates / max(split.examined_documents, 1)
        text.append(
            f"  {name:<9}{split.documents:>12,}{split.tokens:>16,}{split.bytes:>16,}{split.bytes_per_token:>13.3f}"
            f"{share:>12.2%}"
        )
    text += [
        _partly(name, split) for name, split in summary.splits.items() if split.examined_documents < split.documents
    ]
    used = summary.splits["train"].used_vocabulary
    text.append(f"  {used:,} of {summary.vocab_size:,} tokens of the vocabulary occur in train")
    for name, split in summary.splits.items():
        quantiles = ", ".join(f"{share} {value:,}" for share, value in split.tokens_per_document.items())
        text += ["", f"Tokens a document, {name}: {quantiles}", *_bars(split.histogram)]
    text += ["", "Sources:"]
    text += [f"  {source.share:>7.2%} {source.documents:>12,} documents  {source.name}" for source in summary.sources]
    for example in summary.examples:
        shown = min(example.tokens, EXAMPLE_TOKENS)
        text += ["", f"Document {example.document:,} of {example.split}, {shown:,} of {example.tokens:,} tokens:"]
        text += [f"  │ {_printable(line)}" for line in example.text.splitlines()]
    return text


def _split(stream: TokenStream, vocab_size: int, max_tokens: int) -> SplitSummary:
    lengths = _lengths(stream)
    tokens, examined = int(lengths.sum()), _examined(lengths, stream.documents[:, 1], max_tokens)
    hashes, used = np.empty(len(examined), np.uint64), np.zeros(vocab_size, bool)
    for place, (start, length) in enumerate(zip(stream.documents[examined, 0], lengths[examined], strict=True)):
        document = stream.read(int(start), int(start + length))
        digest = hashlib.blake2b(document.tobytes(), digest_size=hashes.itemsize).digest()
        hashes[place] = int.from_bytes(digest, "little")
        used[document] = True
    hashes.sort()
    quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist() if len(lengths) else []
    return SplitSummary(
        documents=len(lengths),
        tokens=tokens,
        bytes=stream.num_bytes,
        bytes_per_token=stream.num_bytes / max(tokens, 1),
        tokens_per_document={f"{share:.0%}": int(value) for share, value in zip(QUANTILES, quantiles, strict=False)},
        histogram=_histogram(lengths),
        examined_documents=len(examined),
        duplicates=int((hashes[1:] == hashes[:-1]).sum()),
        used_vocabulary=int(used.sum()),
    )


def _lengths(stream: TokenStream) -> NDArray[np.int64]:
    """Tokens of each document, without its end: [n]."""
    return np.diff(stream.documents[:, 0], append=len(stream)) - stream.has_ends


def _examined(lengths: NDArray[np.int64], num_bytes: NDArray[np.int64], max_tokens: int) -> NDArray[np.int64]:
    """The documents to read: all, or every k-th by a hash of length and size, which equal documents have in common."""
    k = -(-int(lengths.sum() + SEEK_TOKENS * len(lengths)) // max_tokens)
    if k <= 1:
        return np.arange(len(lengths))
    keys = lengths.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + num_bytes.astype(np.uint64)
    mixed = (keys ^ (keys >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.flatnonzero((mixed >> np.uint64(32)) % np.uint64(k) == 0)


def _histogram(lengths: NDArray[np.int64]) -> list[Bin]:
    """Documents of 0, 1, 2 to 3, 4 to 7 … tokens, from the first to the last of these that occur."""
    _, exponents = np.frexp(lengths.astype(np.float64))
    counts = np.bincount(exponents).tolist()
    bins = [Bin(2**exponent // 2, 2**exponent - 1, count) for exponent, count in enumerate(counts)]
    return list(dropwhile(lambda bin: not bin.documents, bins))


def _sources(manifest: Manifest) -> list[SourceShare]:
    totals = [
        (record.name, sum(c.documents for c in record.splits.values()), sum(c.tokens for c in record.splits.values()))
        for record in manifest.sources
    ]
    everything = max(sum(tokens for _, _, tokens in totals), 1)
    return [SourceShare(name, documents, tokens, tokens / everything) for name, documents, tokens in totals]


def _examples(split: str, stream: TokenStream, tokenizer: Tokenizer) -> Iterator[Example]:
    """Documents spread evenly over the split."""
    count = len(stream.documents)
    for number in sorted({count * (2 * place + 1) // (2 * EXAMPLES) for place in range(EXAMPLES)}):
        tokens = stream.document_tokens(number)
        yield Example(split, number, len(tokens), decode(tokenizer, tokens[:EXAMPLE_TOKENS].tolist()))


def _partly(name: str, split: SplitSummary) -> str:
    return (
        f"  duplicates and vocabulary of {name}: judged by {split.examined_documents:,} of its documents, all those of "
        "some lengths"
    )


def _bars(histogram: list[Bin]) -> list[str]:
    most = max((bin.documents for bin in histogram), default=1)
    bars = []
    for bin in histogram:
        lengths, bar = f"{bin.low:,} – {bin.high:,}", "█" * -(-BAR_WIDTH * bin.documents // most)
        bars.append(f"  {lengths:>23} {bin.documents:>12,} {bar}".rstrip())
    return bars


def _printable(line: str) -> str:
    """A line that cannot command a terminal."""
    return "".join(c if c.isprintable() else " " if c == "\t" else repr(c)[1:-1] for c in line)
