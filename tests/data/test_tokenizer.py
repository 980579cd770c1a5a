"""Tokenizers lose nothing, keep text as text, and mean the same to transformers."""

import sysconfig
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from moeut.data.sources import read_documents, standard_library
from moeut.data.tokenizer import (
    END_OF_DOCUMENT,
    BpeTokenizer,
    BytesTokenizer,
    ExistingTokenizer,
    PaperTokenizer,
    TokenizerConfig,
    UnigramTokenizer,
    build_tokenizer,
    byte_tokenizer,
    decode,
    encode,
    end_of_document_id,
    load_tokenizer,
    needs_text,
    save_tokenizer,
    train_tokenizer,
    train_unigram_tokenizer,
)

LIBRARY = Path(sysconfig.get_path("stdlib"))
TEXTS = [(LIBRARY / name).read_text(encoding="utf-8") for name in ("argparse.py", "ast.py", "json/decoder.py")]
TRAINED = train_tokenizer(TEXTS, 1000)
UNIGRAM = train_unigram_tokenizer(TEXTS, 600)
BYTES = byte_tokenizer()
EACH = pytest.mark.parametrize("tokenizer", [TRAINED, UNIGRAM, BYTES], ids=["bpe", "unigram", "bytes"])
AWKWARD = [
    "",
    " ",
    "  leading and trailing  ",
    "a\tb\r\nc\n\n\n        d\r",
    "def f(x):\n    return {'a': [1234, 5.6e-7]}\n\n\nclass C:\n\tpass\n",
    "naïve Ångström e\u0301 👩‍👩‍👧 😀 漢字 ﬁ ㎏ \u00a0\u2028\ufeff\x00\x7f",
    f"text {END_OF_DOCUMENT} text{END_OF_DOCUMENT}",
    "x" * 1000 + " " * 1000 + "\n" * 1000 + "=" * 1000,
]
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab _.\n\r\t 09():é<|>endoftx")


@EACH
def test_lossless(tokenizer: Tokenizer) -> None:
    @settings(deadline=None)
    @given(TEXT)
    @example("\r\n \r\n\t")
    def round_trip(text: str) -> None:
        (ids,) = encode(tokenizer, [text])
        assert decode(tokenizer, ids) == text
        assert 0 not in ids

    round_trip()
    for text, ids in zip(AWKWARD, encode(tokenizer, AWKWARD), strict=True):
        assert decode(tokenizer, ids) == text
        assert 0 not in ids


def test_the_vocabulary() -> None:
    assert TRAINED.get_vocab_size() == 1000
    assert end_of_document_id(TRAINED) == 0
    assert TRAINED.id_to_token(0) == END_OF_DOCUMENT
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(TRAINED.get_vocab())
    again = train_tokenizer(TEXTS, 1000)
    assert again.to_str() == TRAINED.to_str()


def test_the_vocabulary_of_a_unigram_model() -> None:
    assert UNIGRAM.get_vocab_size() == 600
    assert end_of_document_id(UNIGRAM) == 0
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(UNIGRAM.get_vocab())
    for _ in range(3):  # the library's trainer itself comes to other scores, and another order, each time
        assert train_unigram_tokenizer(TEXTS, 600).to_str() == UNIGRAM.to_str()


@pytest.mark.parametrize("texts", [[], [""], ["a"]])
def test_hardly_any_text(texts: list[str]) -> None:
    for tokenizer in (train_tokenizer(texts, 300), train_unigram_tokenizer(texts, 300)):
        assert tokenizer.get_vocab_size() == 257
        assert [decode(tokenizer, ids) for ids in encode(tokenizer, AWKWARD)] == AWKWARD


def test_no_word_is_long() -> None:
    """Training takes time quadratic in the longest word."""
    text = "a" * 2**16 + " " * 2**16 + "=" * 2**16 + "\n" * 2**16 + "é" * 2**16
    for tokenizer in (TRAINED, UNIGRAM):
        words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert max(stop - start for _, (start, stop) in words) < 600


def test_bytes_are_bytes() -> None:
    assert BYTES.get_vocab_size() == 257
    assert end_of_document_id(BYTES) == 0
    text = "".join(map(chr, range(0x250))) + "😀"
    assert encode(BYTES, [text]) == [[byte + 1 for byte in text.encode()]]
    assert set(BYTES.get_vocab()) == {END_OF_DOCUMENT, *pre_tokenizers.ByteLevel.alphabet()}


def test_code_takes_few_tokens() -> None:
    ids = encode(TRAINED, ["        self.value = value\n        return"])[0]
    pieces = [decode(TRAINED, [token]) for token in ids]
    assert "\n        " in pieces
    assert all(len(piece) == 1 for piece in (decode(TRAINED, [token]) for token in encode(TRAINED, ["12345"])[0]))


@pytest.mark.slow
def test_the_split_into_words_beats_the_usual_one_on_code() -> None:
    texts = [document.text for document in read_documents(standard_library())]
    training, unseen = [text for i, text in enumerate(texts) if i % 20], texts[::20]
    usual = Tokenizer(models.BPE())
    usual.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    usual.train_from_iterator(training, trainers.BpeTrainer(vocab_size=4096, show_progress=False))
    ours = train_tokenizer(training, 4096)
    assert sum(map(len, encode(ours, unseen))) < 0.95 * sum(map(len, encode(usual, unseen)))


def test_a_vocabulary_without_room_for_bytes() -> None:
    with pytest.raises(ValueError, match="vocab_size is 256; a byte-level vocabulary needs 257 or more"):
        train_tokenizer(["a"], 256)
    with pytest.raises(ValueError, match="vocab_size is 257; a Unigram vocabulary needs 258 or more"):
        train_unigram_tokenizer(["a"], 257)


def test_each_kind_is_built(tmp_path: Path) -> None:
    save_tokenizer(TRAINED, tmp_path)
    configs: list[tuple[TokenizerConfig, str]] = [
        (BpeTokenizer(vocab_size=1000), TRAINED.to_str()),
        (UnigramTokenizer(vocab_size=600), UNIGRAM.to_str()),
        (BytesTokenizer(), BYTES.to_str()),
        (ExistingTokenizer(path=str(tmp_path)), TRAINED.to_str()),
    ]
    for config, expected in configs:
        unread = iter(TEXTS)
        assert build_tokenizer(config, unread).to_str() == expected
        assert needs_text(config) == (len(list(unread)) < len(TEXTS))
    assert needs_text(PaperTokenizer())
    assert {type(config) for config, _ in configs} | {PaperTokenizer} == set(get_args(TokenizerConfig))


def test_the_paper_s_tokenizer_is_sentencepiece_s() -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = build_tokenizer(PaperTokenizer(vocab_size=400), (line for text in TEXTS for line in text.splitlines()))
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.id_to_token(end_of_document_id(tokenizer)) == "</s>"


@pytest.mark.parametrize("kind", [BpeTokenizer, UnigramTokenizer, PaperTokenizer])
def test_impossible_sizes(kind: type[BpeTokenizer]) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        kind(vocab_size=3)


@EACH
def test_saved_and_loaded_by_us_and_by_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert encode(loaded, AWKWARD) == encode(tokenizer, AWKWARD)
    assert encode(load_tokenizer(tmp_path / "tokenizer.json"), AWKWARD) == encode(tokenizer, AWKWARD)

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == 0
    assert len(theirs) == tokenizer.get_vocab_size()
    theirs.save_pretrained(tmp_path / "again")
    for reader in (theirs, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert reader(AWKWARD)["input_ids"] == encode(tokenizer, AWKWARD)
        assert reader("a", "b")["input_ids"] == [*encode(tokenizer, ["a"])[0], 0, *encode(tokenizer, ["b"])[0]]
        for text, ids in zip(AWKWARD, encode(tokenizer, AWKWARD), strict=True):
            assert reader.decode(ids, skip_special_tokens=False) == text
            assert reader.decode([0, *ids, 0], skip_special_tokens=True) == text


def test_no_tokenizer_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no token for the end of a document \(its special tokens: none\)"):
        end_of_document_id(Tokenizer(models.BPE()))
