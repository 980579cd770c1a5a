"""Text → tokens → blocks → batches: from files to what training and evaluation read."""

from moeut.data.prepare import Outcome, prepare
from moeut.data.sampler import IGNORED_TARGET, Batches, Blocks, evaluation_batches
from moeut.data.sources import Document, SourceFile, find_files, read_documents, standard_library
from moeut.data.tokenizer import (
    byte_tokenizer,
    decode,
    encode,
    end_of_document_id,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from moeut.data.tokens import Manifest, PreparedData, TokenStream, open_prepared

__all__ = [
    "IGNORED_TARGET",
    "Batches",
    "Blocks",
    "Document",
    "Manifest",
    "Outcome",
    "PreparedData",
    "SourceFile",
    "TokenStream",
    "byte_tokenizer",
    "decode",
    "encode",
    "end_of_document_id",
    "evaluation_batches",
    "find_files",
    "load_tokenizer",
    "open_prepared",
    "prepare",
    "read_documents",
    "save_tokenizer",
    "standard_library",
    "train_tokenizer",
]
