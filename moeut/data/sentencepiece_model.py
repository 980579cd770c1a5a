"""How is a SentencePiece `.model` file read, so that the same text gives the same ids without SentencePiece?

The file is a protocol buffer: pieces with scores, how the model was trained, and how it normalises text. Its few fields
become a tokenizer of the `tokenizers` library. Kudo and Richardson, "SentencePiece", 2018.
`docs/data.md` says where the two differ: nowhere in ordinary text, and in few rare sequences of combining characters.
"""

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from moeut.data.protocol_buffer import last, read_message
from moeut.data.special_tokens import assign_uses, cut_inside, keep_text_as_text
from moeut.settings import refuse

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""

UNIGRAM, BPE = 1, 2
# The field that names the piece of each use, and the name where the file is silent.
USES = {"unk_token": (45, b"<unk>"), "bos_token": (46, b"<s>"), "eos_token": (47, b"</s>"), "pad_token": (48, b"<pad>")}


class Kind(IntEnum):
    """What a piece is for, by its number in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """An entry of the vocabulary; its id is its place in the file."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class _Model:
    """What a `.model` file says.

    uses: the name of the piece of each use; it may not exist. rules: the name of the normalisation in `charsmap`.
    """

    pieces: list[Piece]
    algorithm: int
    byte_fallback: bool
    space_as_suffix: bool
    uses: dict[str, str]
    rules: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    def named(self, *kinds: Kind) -> list[str]:
        """The pieces of some kinds."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer that a `.model` file describes.

    Raises:
        ValueError: the file is no such model, or is of a kind that cannot be read to the same ids.
    """
    try:
        return from_sentencepiece(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The paper's tokenizer, fitted to `texts`: BPE, digits alone, everything else as SentencePiece has it by default.

    Texts of more than 4,192 bytes are passed over, as there.

    Raises:
        ValueError: SentencePiece is not installed, or the texts are too few for the vocabulary.
    """
    try:
        import sentencepiece
    except ImportError:
        raise ValueError("the paper's tokenizer is trained by SentencePiece: pip install sentencepiece") from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            split_digits=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece cannot train {vocab_size} pieces on this text: {error}") from error
    return from_sentencepiece(model.getvalue())


def from_sentencepiece(data: bytes) -> Tokenizer:
    """The tokenizer that the content of a `.model` file describes.

    Raises:
        ValueError: it is no such model, or is of a kind that cannot be read to the same ids.
    """
    try:
        model = _model(data)
    except (KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("not a SentencePiece model") from error
    refuse(
        [
            (model.algorithm not in (UNIGRAM, BPE), "a SentencePiece model of words or characters cannot be read"),
            (model.space_as_suffix or not model.escape_whitespaces, "its treatment of spaces cannot be imitated"),
            (bool(model.named(Kind.UNUSED)), "its unused pieces cannot be imitated"),
            (
                bool(model.named(Kind.USER_DEFINED)) and (model.add_dummy_prefix or model.remove_extra_whitespaces),
                "its user-defined pieces cannot be imitated; bring its tokenizer.json instead",
            ),
        ]
    )
    tokenizer = Tokenizer(_bpe(model) if model.algorithm == BPE else _unigram(model))
    tokenizer.normalizer = _normalizer(model)
    if not any(SPACE in piece.text[1:] for piece in model.pieces):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    if model.algorithm == UNIGRAM:
        # The library's Unigram finds every entry of the vocabulary in text, these too.
        cut_inside(tokenizer, model.named(Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE))
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = model.named(Kind.UNKNOWN, Kind.CONTROL)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in model.named(Kind.USER_DEFINED)])
    assign_uses(tokenizer, {use: name for use, name in model.uses.items() if name in special})
    keep_text_as_text(tokenizer)
    return tokenizer


def _model(data: bytes) -> _Model:
    """Reads the file's fields by their numbers; those it leaves out have SentencePiece's own defaults."""
    file = read_message(data)
    training, normalisation = read_message(file[2][-1]), read_message(file[3][-1])
    model = _Model(
        pieces=[_piece(value) for value in file[1]],
        algorithm=last(training, 3, UNIGRAM),
        byte_fallback=bool(last(training, 35, 0)),
        space_as_suffix=bool(last(training, 24, 0)),
        uses={use: last(training, field, name).decode() for use, (field, name) in USES.items()},
        rules=last(normalisation, 1, b"").decode(),
        charsmap=last(normalisation, 2, b""),
        add_dummy_prefix=bool(last(normalisation, 3, 1)),
        remove_extra_whitespaces=bool(last(normalisation, 4, 1)),
        escape_whitespaces=bool(last(normalisation, 5, 1)),
    )
    if len(model.named(Kind.UNKNOWN)) != 1:
        raise ValueError("it has no piece for what is unknown")
    return model


def _bpe(model: _Model) -> models.BPE:
    vocabulary = {piece.text: id for id, piece in enumerate(model.pieces)}
    (unknown,) = model.named(Kind.UNKNOWN)
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(model.pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: _Model) -> models.Unigram:
    scores = [(piece.text, piece.score) for piece in model.pieces]
    unknown = next(id for id, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN)
    return models.Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback)


def _normalizer(model: _Model) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        # The library looks up single characters and short clusters only: what NFC composes must come composed.
        steps += [normalizers.NFC()] if "nfkc" in model.rules else []
        steps += [normalizers.Precompiled(model.charsmap)]
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps += [normalizers.Prepend(" ")]
    steps += [normalizers.Replace(" ", SPACE)]
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"{SPACE}+\z"), "")]
    return normalizers.Sequence(steps)


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """The pairs that BPE may merge, the first ones first.

    SentencePiece merges any two neighbours that together are a piece, the piece of the highest score first. So every
    cut of a piece in two other pieces is a merge, and all cuts of one piece follow each other.
    """
    usable = {piece.text for piece in pieces if piece.kind in (Kind.NORMAL, Kind.USER_DEFINED)}
    ordered = sorted((piece for piece in pieces if piece.kind == Kind.NORMAL), key=lambda piece: -piece.score)
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in ordered
        for cut in range(len(piece.text) - 1, 0, -1)
        if piece.text[:cut] in usable and piece.text[cut:] in usable
    ]


def _piece(data: bytes) -> Piece:
    fields = read_message(data)
    (score,) = struct.unpack("<f", last(fields, 2, b"\0\0\0\0"))
    return Piece(last(fields, 1, b"").decode(), score, Kind(last(fields, 3, Kind.NORMAL)))
