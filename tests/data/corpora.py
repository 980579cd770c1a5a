"""Small corpora and their recipes, for tests."""

import json
import random
from pathlib import Path
from typing import Any

from moeut.data.recipe import HeldOutDocuments, RecipeConfig
from moeut.data.sources import FilesSource
from moeut.data.tokenizer import BpeTokenizer, BytesTokenizer, TokenizerConfig, decode
from moeut.data.tokens import PreparedData, TokenStream

BYTES = BytesTokenizer()


def write_lines(path: Path, texts: list[str]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of the same 300 words."""
    words = ["".join(random.Random(number).choices("abcdefgh", k=5)) for number in range(300)]
    choice = random.Random(seed)
    return [" ".join(choice.choices(words, k=40)) + f"\n{i}" for i in range(count)]


def recipe_of(
    *paths: Path | str, tokenizer: TokenizerConfig | int = BYTES, share: float = 0.3, **fields: Any
) -> RecipeConfig:
    """A recipe of files, each a source of its own. A number makes a BPE tokenizer of so many tokens."""
    fields.setdefault("held_out", HeldOutDocuments(share=share))
    fields.setdefault("sources", tuple(FilesSource(paths=(str(path),)) for path in paths))
    trained = BpeTokenizer(vocab_size=tokenizer) if isinstance(tokenizer, int) else tokenizer
    return RecipeConfig(tokenizer=trained, **fields)


def texts_in(data: PreparedData, stream: TokenStream) -> list[str]:
    """The documents of a split, decoded."""
    tokenizer = data.tokenizer()
    return [decode(tokenizer, stream.document_tokens(i).tolist()) for i in range(len(stream.documents))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
