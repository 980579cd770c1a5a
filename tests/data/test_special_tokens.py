"""Special tokens: what they are for stays in the tokenizer, and no text makes one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from moeut.data.special_tokens import assign_uses, cut_inside, keep_text_as_text, special_ids, special_uses

CHARACTERS = "▁<s/>[EOS]ax"


def unigram() -> Tokenizer:
    """As T5 and many others: the names of special tokens are entries of the vocabulary, of the best score there is."""
    names = ["<unk>", "</s>", "[EOS]"]
    scores = [*((name, 0.0) for name in names), *((character, -5.0) for character in dict.fromkeys(CHARACTERS))]
    tokenizer = Tokenizer(models.Unigram([*scores, ("</", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(names)
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[EOS]", "[UNK]"])
    return tokenizer


def test_uses_are_kept_in_the_tokenizer() -> None:
    tokenizer = unigram()
    assert special_uses(tokenizer) == {"eos_token": "</s>"}  # a guess by its name
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert special_uses(tokenizer) == {"eos_token": "</s>"}
    uses = {"eos_token": "[EOS]", "unk_token": "<unk>", "pad_token": "</s>"}
    assign_uses(tokenizer, {**uses, "mask_token": "<mask>"})
    uses["bos_token"] = "[EOS]"  # what a document begins after
    assert special_uses(tokenizer) == uses
    assert special_uses(Tokenizer.from_str(tokenizer.to_str())) == uses
    assert "[EOS]" not in tokenizer.encode("a").tokens
    assert tokenizer.encode("a", "x").tokens == ["▁", "a", "[EOS]", "▁", "x"]


def test_a_named_token_becomes_special() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
    assert special_uses(tokenizer) == special_ids(tokenizer) == {}
    assign_uses(tokenizer, {"eos_token": "end"})
    assert special_ids(tokenizer) == {"end": 1}


@pytest.mark.parametrize("tokenizer", [unigram(), word_level()], ids=["unigram", "word level"])
def test_no_text_makes_a_special_token(tokenizer: Tokenizer) -> None:
    tokenizer.encode_special_tokens = True
    text = "a [EOS] </s>"
    assert {1, 2} & set(tokenizer.encode("a [EOS] </s>").ids)  # the library alone does not see to it
    assign_uses(tokenizer, {"unk_token": tokenizer.id_to_token(0) or ""})
    keep_text_as_text(tokenizer)
    loaded = Tokenizer.from_str(tokenizer.to_str())
    loaded.encode_special_tokens = True
    special = {id for id in special_ids(tokenizer).values() if id != 0}

    @settings(deadline=None)
    @given(st.lists(st.sampled_from([*CHARACTERS, " ", "</s>", "[EOS]"])).map("".join))
    def never(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert not special & set(ids)
        assert loaded.encode(text).ids == ids

    never()
    assert not special & set(tokenizer.encode(text).ids)


def test_only_the_names_are_cut() -> None:
    tokenizer = unigram()
    assign_uses(tokenizer, {"unk_token": "<unk>"})
    tokenizer.encode_special_tokens = True
    before = [tokenizer.encode(text).tokens for text in ("a</a", "<x>", "[E]OS]")]
    keep_text_as_text(tokenizer)
    assert [tokenizer.encode(text).tokens for text in ("a</a", "<x>", "[E]OS]")] == before
    assert tokenizer.encode("x</s>").tokens == ["▁", "x", "<", "/", "s", ">"]


def test_names_are_taken_literally() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    cut_inside(tokenizer, ["a.b", "|(x", "<s>"])
    cuts = tokenizer.pre_tokenizer.pre_tokenize_str("a.b acb |(x <s>")
    assert [text for text, _ in cuts] == ["a", ".b acb |", "(x <", "s>"]


def test_where_it_cannot_be_helped() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "$": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["$"])
    with pytest.raises(ValueError, match=r"makes special tokens of ordinary text: \$; use another"):
        keep_text_as_text(tokenizer)
