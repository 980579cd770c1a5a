"""Which text is a model's perplexity measured on? Prepared folders, their sources, or files, as a stream of its tokens.

A stream is `end doc₁ end doc₂ end …`, ends scored, as in prepared folders (`moeut.data.tokens`).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moeut.data.documents import Document
from moeut.data.local import LocalFile, find_files
from moeut.data.sources import read_documents
from moeut.data.tokenizer import decode
from moeut.data.tokens import PreparedData, TokenStream
from moeut.evaluation.subject import Subject


def file_streams(paths: Iterable[str | Path], subject: Subject, text_column: str = "text") -> dict[str, TokenStream]:
    """The text of each file by its name: text, JSON lines, Parquet, packed or not, and the files of folders.

    Raises ValueError where a path is missing, or a file holds no text.
    """
    return {file.name: _of_file(file, subject, text_column) for file in find_files(paths)}


def reencoded(data: PreparedData, stream: TokenStream, subject: Subject) -> TokenStream:
    """A prepared stream in the tokens of a model that has another tokenizer.

    Raises ValueError where the folder's tokenizer has lost some of the text, so that there is nothing to score a rival
    on.
    """
    tokenizer = data.tokenizer()
    texts = [decode(tokenizer, stream.document_tokens(number).tolist()) for number in range(len(stream.documents))]
    if [len(text.encode()) for text in texts] != stream.documents[:, 1].tolist():
        raise ValueError(
            f"{data.folder}: its tokenizer loses some of the text, so {subject.name}, which has another one, cannot be "
            "scored on it; name the text files instead"
        )
    return stream_of(texts, subject)


def source_streams(data: PreparedData) -> dict[str, TokenStream]:
    """The held-out text of each source of a prepared folder, as a stream of its own.

    Raises ValueError where the sources do not follow each other, so that no document can be traced to its own.
    """
    manifest, stream = data.manifest, data.held_out
    counts = {source.name: source.splits.get("held_out") for source in manifest.sources}
    present = {name: split.documents for name, split in counts.items() if split is not None and split.documents}
    kinds = (manifest.settings["mixing"], manifest.settings["held_out"]["kind"])
    if len(present) > 1 and kinds != ("in_order", "documents"):
        raise ValueError(f"{data.folder}: its sources are mixed; name the text files of each with --data instead")
    streams, first = {}, 0
    for name, documents in present.items():
        streams[name] = part(stream, first, first + documents)
        first += documents
    return streams


def part(stream: TokenStream, first: int, last: int) -> TokenStream:
    """The documents from `first` up to `last` of a stream, as a stream that begins with an end where there are ends."""
    start = int(stream.documents[first, 0]) - stream.has_ends
    stop = len(stream) if last == len(stream.documents) else int(stream.documents[last, 0])
    documents = np.array(stream.documents[first:last])
    documents[:, 0] -= start
    return TokenStream([stream.read(start, stop)], documents, stream.has_ends)


def stream_of(texts: Iterable[str], subject: Subject) -> TokenStream:
    """Documents in the tokens of a model."""
    texts = list(texts)
    ids, starts = [subject.end_id], []
    for encoded in subject.encode(texts):
        starts.append(len(ids))
        ids += [*encoded, subject.end_id]
    sizes = [len(text.encode()) for text in texts]
    return TokenStream([np.array(ids, np.int64)], np.array([starts, sizes], np.int64).T)


def _of_file(file: LocalFile, subject: Subject, text_column: str) -> TokenStream:
    documents = list(read_documents([file], text_column))
    if not documents:
        raise ValueError(f"{file.name}: holds no text")
    return stream_of(_whole(documents), subject)


def _whole(documents: Iterable[Document]) -> list[str]:
    """Texts that were read in parts, put together again."""
    texts: list[str] = []
    for document in documents:
        if document.position.part:
            texts[-1] += document.text
        else:
            texts.append(document.text)
    return texts
