"""What are a tokenizer's special tokens for, and how is text kept from making them?

Their uses are recorded in the tokenizer itself, so that `tokenizer.json` alone says how a document ends.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, pre_tokenizers, processors

USES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
"""What a special token can be for, in transformers' words; `eos_token` is the end of a document."""

# What tokenizers call the end of a document, the likeliest first; asked only where nothing says what is for what.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")


def assign_uses(tokenizer: Tokenizer, uses: Mapping[str, str]) -> None:
    """Record in the tokenizer what each of its special tokens, by name, is for: {"eos_token": "</s>", …}.

    They become part of its post-processor: nothing is added to a single text (prepared text holds nothing but ends of
    documents, so a model would meet anything else for the first time), and an end of a document stands between a pair.
    For the same reason a text begins with an end, whatever began it elsewhere; padding is an end unless told otherwise.
    """
    ids = {use: (name, tokenizer.token_to_id(name)) for use, name in uses.items()}
    known = {use: (name, id) for use, (name, id) in ids.items() if id is not None}
    if end := known.get("eos_token"):
        known = {"pad_token": end, **known, "bos_token": end}
    tokenizer.add_special_tokens(list(dict.fromkeys(name for name, _ in known.values())))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A",
        pair="$A eos_token $B:1" if end else "$A $B:1",
        special_tokens=[{"id": use, "ids": [id], "tokens": [name]} for use, (name, id) in known.items()],
    )


def special_uses(tokenizer: Tokenizer) -> dict[str, str]:
    """The name of the special token of each use, as `assign_uses` recorded it; if it did not, a guess at the end's."""
    if isinstance(tokenizer.post_processor, processors.TemplateProcessing):
        recorded = json.loads(tokenizer.post_processor.__getstate__())["special_tokens"]
        if uses := {use: recorded[use]["tokens"][0] for use in USES if use in recorded}:
            return uses
    special = special_ids(tokenizer)
    return next(({"eos_token": name} for name in ENDS if name in special), {})


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens of a tokenizer, by name."""
    return {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def keep_text_as_text(tokenizer: Tokenizer) -> None:
    """See to it that no text makes a special token, not even one that spells its name.

    `encode_special_tokens` is not enough where the vocabulary itself may put such a name together, as in most Unigram
    models: there words are cut after the first character of the name.

    Raises:
        ValueError: a special token still comes out of its own name.
    """
    tokenizer.encode_special_tokens = True
    if made := _made_by_text(tokenizer):
        cut_inside(tokenizer, made)
        if made := _made_by_text(tokenizer):
            raise ValueError(f"the tokenizer makes special tokens of ordinary text: {', '.join(made)}; use another")


def cut_inside(tokenizer: Tokenizer, names: Iterable[str]) -> None:
    """Cut words after the first character of each of these names, so that no token spells one of them."""
    rests = defaultdict(list)
    for name in names:
        rests[name[0]].append(_escaped(name[1:]))
    pattern = "|".join(f"{_escaped(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([before, cut]) if before else cut


def _made_by_text(tokenizer: Tokenizer) -> list[str]:
    unknown = special_uses(tokenizer).get("unk_token")
    return [
        name
        for name, id in special_ids(tokenizer).items()
        if name != unknown
        and any(id in tokenizer.encode(text, add_special_tokens=False).ids for text in (name, f"a {name}a"))
    ]


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)
