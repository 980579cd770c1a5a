"""How is a tokenizer read that was made elsewhere? From a folder, a file, or the Hugging Face Hub.

What is kept is how it cuts text and what its special tokens are for. What it adds to every text is not: prepared text
holds documents and their ends only.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moeut.data.sentencepiece_model import read_sentencepiece
from moeut.data.special_tokens import USES, assign_uses, keep_text_as_text, special_uses

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HUB_FILES = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "config.json",
]


def find_tokenizer(path: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer at `path`: a folder, a `tokenizer.json`, a SentencePiece `.model`, or else a name on the Hub.

    Raises:
        ValueError: there is none, it cannot be fetched, or it is no tokenizer.
    """
    place = Path(path)
    if not place.exists():
        if not HUB_NAME.fullmatch(path):
            raise ValueError(f"{path}: no such file or folder")
        place = _fetch(path, revision)
    if place.suffix == ".model" and place.is_file():
        return read_sentencepiece(place)
    if place.is_dir() and not (place / "tokenizer.json").is_file():
        return _convert(place, path)
    return read_tokenizer(place)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, given by name or by its folder.

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
    return _adopt(tokenizer, _declared_uses(file.parent))


def _adopt(tokenizer: Tokenizer, uses: dict[str, str]) -> Tokenizer:
    # A foreign file may ask for both, which would cut documents short or lengthen them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if max(tokenizer.get_vocab().values(), default=-1) >= tokenizer.get_vocab_size():
        raise ValueError("the tokenizer's ids have gaps, so that some exceed the size of its vocabulary; use another")
    assign_uses(tokenizer, _unknown(tokenizer) | special_uses(tokenizer) | uses)
    keep_text_as_text(tokenizer)
    return tokenizer


def _unknown(tokenizer: Tokenizer) -> dict[str, str]:
    model = json.loads(tokenizer.to_str())["model"]
    id = model.get("unk_id")
    name = model.get("unk_token") if id is None else tokenizer.id_to_token(id)
    return {"unk_token": name} if name else {}


def _declared_uses(folder: Path) -> dict[str, str]:
    """What the files beside a `tokenizer.json` say its special tokens are for."""
    declared: dict[str, Any] = {}
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if file.is_file():
            declared |= _json_object(file)
    tokens = {use: declared.get(use) for use in USES}
    names = {use: token.get("content") if isinstance(token, dict) else token for use, token in tokens.items()}
    return {use: name for use, name in names.items() if isinstance(name, str)}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def _convert(folder: Path, name: str) -> Tokenizer:
    """The tokenizer of a folder without a `tokenizer.json`, as transformers makes one of the files that are there."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a loader among hundreds raises
        raise ValueError(f"{name}: no tokenizer that transformers can read ({_one_line(error)})") from error
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{name}: transformers has no fast form of this tokenizer ({type(theirs).__name__})")
    return _adopt(backend, {use: str(token) for use, token in theirs.special_tokens_map.items() if use in USES})


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"{name}: no such file or folder here, and not to be had from the Hub ({_one_line(error)})"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
