"""SentencePiece models give the ids that SentencePiece gives."""

import io
import json
import lzma
import math
import sys
import sysconfig
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moeut.data.sentencepiece_model import from_sentencepiece, read_sentencepiece, train_sentencepiece
from moeut.data.sources import read_documents, standard_library
from moeut.data.special_tokens import special_ids, special_uses
from moeut.data.tokenizer import decode, encode, end_of_document_id, save_tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="SentencePiece itself is needed to compare with")

LIBRARY = Path(sysconfig.get_path("stdlib"))
FILES = ("argparse.py", "ast.py", "this.py", "antigravity.py", "textwrap.py", "json/decoder.py", "html/entities.py")
SPEECH = "Tiếng Việt được nói, naïve Ångström café; かがぎぐ パピプ; 한국어 위키; हिन्दी क़ानून; ﬁnd ① ㎏ ½ Ⅷ … “x” 😀\n"
TEXTS = [(LIBRARY / name).read_text(encoding="utf-8") for name in FILES] + [SPEECH]

PAPER = {"model_type": "bpe", "split_digits": True}
BYTES = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "bpe of bytes": {"model_type": "bpe", **BYTES},
    "bpe with symbols": {
        "model_type": "bpe", **BYTES, "add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "def", "\n\n"],
    },
    "bpe across spaces": {"model_type": "bpe", "split_by_whitespace": False},
    "bpe with padding": {"model_type": "bpe", "pad_id": 3, "pad_piece": "[PAD]", "eos_piece": "[END]"},
    "unigram": {"model_type": "unigram", "max_sentence_length": 10**6},
    "unigram of bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nfkc"},
}  # fmt: skip
# Characters that may stand in one cluster with the one before them: there the libraries differ, see docs/data.md.
JOINING = "\u200c\u200d\uff9e\uff9f"
TEXT = st.text(st.characters(exclude_categories=["Cs", "M"], exclude_characters=JOINING)) | st.text(
    "ab =-<>/s_ \t\n▁é09[]"
)
BPE_MODELS = [name for name in MODELS if not name.startswith("unigram")]
UNIGRAM_MODELS = [name for name in MODELS if name.startswith("unigram")]
AWKWARD = ["<s></s><unk>[PAD][END]<0x0A> <s> a</s>", "", "  ▁ a ▁ ", "=" * 100 + "-" * 99]
LINES = [line for text in TEXTS for line in text.splitlines()]


@cache
def trained(name: str) -> tuple[Any, Tokenizer, bytes]:
    """SentencePiece's own processor of a model, ours, and the model."""
    model = io.BytesIO()
    lines = [line for text in TEXTS for line in text.splitlines(keepends=True)] * 2
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=900, minloglevel=2, hard_vocab_limit=False,
        character_coverage=1.0, **MODELS[name],
    )  # fmt: skip
    content = model.getvalue()
    return sentencepiece.SentencePieceProcessor(model_proto=content), from_sentencepiece(content), content


@pytest.mark.parametrize("name", BPE_MODELS)
def test_bpe_gives_the_same_ids(name: str) -> None:
    theirs, ours, _ = trained(name)

    @settings(deadline=None)
    @given(TEXT)
    def agree(text: str) -> None:
        assert encode(ours, [text]) == [theirs.encode(text)]

    agree()
    for texts in (AWKWARD, LINES, TEXTS):
        assert encode(ours, texts) == theirs.encode(texts)


@pytest.mark.parametrize("name", UNIGRAM_MODELS)
def test_unigram_gives_the_same_ids_or_likelier_ones(name: str) -> None:
    """SentencePiece adds up scores in 32 bits, so of nearly equal ways to cut a text it may not take the best."""
    theirs, ours, _ = trained(name)

    def score(ids: list[int]) -> float:
        return math.fsum(theirs.get_score(id) for id in ids)

    def as_good(text: str) -> bool:
        (ids,), expected = encode(ours, [text]), theirs.encode(text)
        same_text = theirs.decode(ids) == theirs.decode(expected)
        return ids == expected or (same_text and len(ids) == len(expected) and score(ids) >= score(expected) - 1e-9)

    @settings(deadline=None)
    @given(TEXT)
    def agree(text: str) -> None:
        assert as_good(text)

    agree()
    assert all(as_good(text) for text in (*AWKWARD, *LINES, *TEXTS))
    differ = sum(ids != expected for ids, expected in zip(encode(ours, LINES), theirs.encode(LINES), strict=True))
    assert differ < 0.01 * len(LINES)


@pytest.mark.parametrize("name", ["paper", "unigram of bytes"])
def test_composed_or_not(name: str) -> None:
    theirs, ours, _ = trained(name)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        text = unicodedata.normalize(form, SPEECH)
        assert encode(ours, [text]) == [theirs.encode(text)]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_text(name: str) -> None:
    theirs, ours, _ = trained(name)
    for text in ("if x == 1:\n    return {'a': 2}", "naïve café", "two  spaces, a\ttab "):
        ids = theirs.encode(text)
        assert decode(ours, ids) == theirs.decode(ids).replace(" ⁇ ", "<unk>")


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens(name: str) -> None:
    theirs, ours, _ = trained(name)
    assert ours.get_vocab_size() == theirs.get_piece_size()
    assert all(ours.id_to_token(id) == theirs.id_to_piece(id) for id in range(theirs.get_piece_size()))
    assert special_ids(ours) == {
        theirs.id_to_piece(id): id for id in range(9) if theirs.is_control(id) or theirs.is_unknown(id)
    }
    padding = theirs.pad_id() if theirs.pad_id() >= 0 else theirs.eos_id()
    uses = {
        "unk_token": theirs.unk_id(), "bos_token": theirs.eos_id(), "eos_token": theirs.eos_id(), "pad_token": padding,
    }  # fmt: skip
    assert special_uses(ours) == {use: theirs.id_to_piece(id) for use, id in uses.items()}
    assert end_of_document_id(ours) == theirs.eos_id() == 2


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours, _ = trained(name)
    save_tokenizer(ours, tmp_path)
    reader = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["<s>x</s>", "  a\tb  c\n", "def f(x):\n    return 1\n", ""]
    assert reader(texts)["input_ids"] == encode(ours, texts) == theirs.encode(texts)
    assert reader.eos_token_id == 2


def test_the_paper_s_training(tmp_path: Path) -> None:
    texts = [line for text in TEXTS for line in text.splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=500, minloglevel=2, **PAPER
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = train_sentencepiece(iter(texts), 500)
    assert ours.get_vocab_size() == 500
    assert encode(ours, texts) == theirs.encode(texts)
    assert (
        decode(ours, encode(ours, ["def f(x):\n    return 12"])[0]) == "def f(x): return 12"
    )  # as lossy as the paper's
    (tmp_path / "some.model").write_bytes(model.getvalue())
    assert read_sentencepiece(tmp_path / "some.model").to_str() == ours.to_str()


def test_training_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^SentencePiece cannot train 5000 pieces on this text: [^\n]+$"):
        train_sentencepiece(["a few words"], 5000)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="trained by SentencePiece: pip install sentencepiece"):
        train_sentencepiece(["a few words"], 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word"}, "words or characters cannot be read"),
        ({"model_type": "char"}, "words or characters cannot be read"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "treatment of spaces cannot be imitated"),
        ({"model_type": "bpe", "user_defined_symbols": ["def"]}, r"bring its tokenizer\.json instead"),
    ],
    ids=["word", "char", "suffix", "symbols"],
)
def test_models_that_are_not_read(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].splitlines()), model_writer=model, vocab_size=300, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    (tmp_path / "some.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=rf"some\.model: [^\n]*{message}"):
        read_sentencepiece(tmp_path / "some.model")


def test_damaged_models() -> None:
    _, _, content = trained("paper")
    for cut in range(0, len(content) - 1, len(content) // 50):
        with pytest.raises(ValueError, match=r"^not a SentencePiece model$"):
            from_sentencepiece(content[:cut])
    for other in (b'{"version": "1.0"}', b"some text", bytes(100)):
        with pytest.raises(ValueError, match=r"^not a SentencePiece model$"):
            from_sentencepiece(other)


@pytest.mark.slow
def test_all_of_the_standard_library() -> None:
    theirs, ours, _ = trained("paper")
    for document in read_documents(standard_library()):
        assert encode(ours, [document.text]) == [theirs.encode(document.text)]


@pytest.mark.slow
def test_all_of_the_prose(shared: Path) -> None:
    with lzma.open(shared / "data" / "prose.jsonl.xz") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    model = io.BytesIO()
    short = (text[start : start + 3000] for text in texts[:1000] for start in range(0, len(text), 3000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=short, model_writer=model, vocab_size=8000, minloglevel=2, **PAPER
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = from_sentencepiece(model.getvalue())
    assert sum(len(text) for text in texts) > 60_000_000
    for text in texts:
        assert encode(ours, [text]) == [theirs.encode(text)]
