"""How does text become numbers and back?  Byte-level tokenizers that lose nothing.

Every tokenizer here has the 256 bytes in its vocabulary and one special token, `<|endoftext|>` with id 0, which ends
(and begins) a document. Text never makes a special token: a document that contains the characters `<|endoftext|>` is
encoded as these characters.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = "<|endoftext|>"
BYTE_VOCABULARY_SIZE = 257
# What other tokenizers call their end of a document, the likeliest first.
FOREIGN_ENDS = ("<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")
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


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer fitted to `texts`; it may stay smaller than `vocab_size` where no pair occurs twice.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the end of a document.
    """
    if vocab_size < BYTE_VOCABULARY_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs {BYTE_VOCABULARY_SIZE} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _keep_text_as_text(tokenizer)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer that needs no training: byte b is the token b + 1, and 0 ends a document."""
    vocabulary = {END_OF_DOCUMENT: 0} | {character: byte + 1 for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_DOCUMENT])
    return _keep_text_as_text(tokenizer)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without any token that marks its beginning or end."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of some token ids; special tokens are shown by their names."""
    return tokenizer.decode(ids, skip_special_tokens=False)


def end_of_document_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document.

    Raises:
        ValueError: none of the tokenizer's special tokens is known for this use.
    """
    special = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for name in (END_OF_DOCUMENT, *FOREIGN_ENDS):
        if name in special:
            return special[name]
    known = ", ".join(special) or "none"
    raise ValueError(f"the tokenizer has no token for the end of a document (its special tokens: {known})")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads to the same ids."""
    end = tokenizer.id_to_token(end_of_document_id(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
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
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a tokenizer is a tokenizer.json or a folder with one")
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file}: not a tokenizer ({error})") from error
    # A foreign file may ask for both, which would cut documents short or lengthen them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _keep_text_as_text(tokenizer)


def _keep_text_as_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_characters() -> list[str]:
    """The character by which ByteLevel writes each byte: itself if printable, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
