"""How does text become numbers and back?  Byte-level tokenizers that lose nothing, or any that one brings along.

The tokenizers made here have the 256 bytes in their vocabulary and one special token, `<|endoftext|>` with id 0, which
ends (and begins) a document. Text never makes a special token, in these or in others: a document that contains the
characters `<|endoftext|>` is encoded as these characters.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from moeut.data.foreign_tokenizer import find_tokenizer, read_tokenizer
from moeut.data.sentencepiece_model import train_sentencepiece
from moeut.data.special_tokens import assign_uses, keep_text_as_text, special_ids, special_uses
from moeut.settings import STRICT

END_OF_DOCUMENT = "<|endoftext|>"
BYTE_VOCABULARY_SIZE = 257
# One digit at a time; a word with the one sign or space before it (`_name`, `.append`, ` the`); signs together with the
# line's end and the indentation after them (`):\n        `); line ends with the indentation after them; other white
# space, leaving the last space to the word that follows. Prose and code both do well: see docs/data.md.
WORDS = (
    r"[^\s\p{L}\p{N}\p{M}]?[\p{L}\p{M}]{1,256}"
    r"| [\p{L}\p{M}]{1,256}"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}\p{M}]{1,256}(?:[\r\n]\s{0,256})?"
    r"|[\r\n]\s{0,256}"
    r"|\s{1,256}(?!\S)"
    r"|\s{1,256}"
)

ByteVocabularySize = Annotated[int, Field(ge=BYTE_VOCABULARY_SIZE)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BpeTokenizer:
    """Byte-level BPE, trained: pairs merged by how often they occur. It loses nothing."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: ByteVocabularySize = 4096


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UnigramTokenizer:
    """A byte-level Unigram model, trained: the likeliest of all ways to cut a word (Kudo, 2018). It loses nothing."""

    kind: Literal["unigram"] = "unigram"
    vocab_size: Annotated[int, Field(gt=BYTE_VOCABULARY_SIZE)] = 4096


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BytesTokenizer:
    """The 256 bytes, which need no training."""

    kind: Literal["bytes"] = "bytes"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExistingTokenizer:
    """One that exists.

    path: a folder, a tokenizer.json, a SentencePiece `.model`, or a name on the Hub, where `revision` says which state.
    """

    kind: Literal["existing"] = "existing"
    path: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PaperTokenizer:
    """The paper's: SentencePiece's BPE with single digits and its defaults otherwise. Line ends, tabs and indentation
    become single spaces, and characters rarer than one in 2,000 `<unk>`: it loses much of source code.
    """

    kind: Literal["paper"] = "paper"
    vocab_size: Annotated[int, Field(gt=3)] = 8000


TokenizerConfig = BpeTokenizer | UnigramTokenizer | BytesTokenizer | ExistingTokenizer | PaperTokenizer


def needs_text(config: TokenizerConfig) -> bool:
    """Whether a tokenizer is made from text."""
    return isinstance(config, BpeTokenizer | UnigramTokenizer | PaperTokenizer)


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a configuration asks for; `texts` are read only where it `needs_text`.

    Raises:
        ValueError: the texts are too few for the vocabulary, or there is no such tokenizer.
    """
    match config:
        case BpeTokenizer():
            return train_tokenizer(texts, config.vocab_size)
        case UnigramTokenizer():
            return train_unigram_tokenizer(texts, config.vocab_size)
        case BytesTokenizer():
            return byte_tokenizer()
        case ExistingTokenizer():
            return find_tokenizer(config.path, config.revision)
        case PaperTokenizer():
            return train_sentencepiece(texts, config.vocab_size)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer fitted to `texts`; it may stay smaller than `vocab_size` where no pair occurs twice.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the end of a document.
    """
    if vocab_size < BYTE_VOCABULARY_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs {BYTE_VOCABULARY_SIZE} or more")
    tokenizer = _byte_level(models.BPE(), words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_end(tokenizer)


def train_unigram_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level Unigram tokenizer fitted to `texts`; it may stay smaller than `vocab_size` where they are few.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes, the end of a document and one more.
    """
    if vocab_size <= BYTE_VOCABULARY_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; a Unigram vocabulary needs {BYTE_VOCABULARY_SIZE + 1} or more")
    tokenizer = _byte_level(models.Unigram(), words=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.model = models.Unigram(_same_each_time(json.loads(tokenizer.to_str())["model"]["vocab"]))
    return _with_end(tokenizer)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer that needs no training: byte b is the token b + 1, and 0 ends a document."""
    vocabulary = {END_OF_DOCUMENT: 0} | {character: byte + 1 for byte, character in enumerate(_byte_characters())}
    return _with_end(_byte_level(models.BPE(vocab=vocabulary, merges=[]), words=False))


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without any token that marks its beginning or end; many texts in parallel."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some token ids; special tokens are shown by their names."""
    return tokenizer.decode(ids, skip_special_tokens=False)


def end_of_document_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document.

    Raises:
        ValueError: none of the tokenizer's special tokens is known for this use.
    """
    special = special_ids(tokenizer)
    end = special_uses(tokenizer).get("eos_token")
    if end is None:
        known = ", ".join(special) or "none"
        raise ValueError(f"the tokenizer has no token for the end of a document (its special tokens: {known})")
    return special[end]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads to the same ids."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_uses(tokenizer),
        "split_special_tokens": True,  # tokenizer.json cannot say that text makes no special tokens; this can
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder (ours, or any with a `tokenizer.json`) or in such a file itself.

    Raises:
        ValueError: there is no such file, or it is no tokenizer.
    """
    return read_tokenizer(path)


def _byte_level(model: models.Model, *, words: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if words else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_end(tokenizer: Tokenizer) -> Tokenizer:
    assign_uses(tokenizer, {"eos_token": END_OF_DOCUMENT})
    keep_text_as_text(tokenizer)
    return tokenizer


def _same_each_time(vocabulary: list[tuple[str, float | None]]) -> list[tuple[str, float]]:
    """A trained Unigram vocabulary without what chance put into it.

    The trainer sums in an order that differs each time, which changes the last digits, and gives the characters that it
    had no use for scores in that order: those are all given the lowest score of the others.
    """
    end, *rest = ((token, round(score or 0.0, 9)) for token, score in vocabulary)
    lowest = min((score for token, score in rest if len(token) > 1), default=0.0)
    return [end, *sorted(((token, max(score, lowest)) for token, score in rest), key=lambda pair: (-pair[1], pair[0]))]


def _byte_characters() -> list[str]:
    """The character by which ByteLevel writes each byte: itself if printable, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
