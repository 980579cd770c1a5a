"""Do text, tokenizer and model belong together? Looked at before anything is computed."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moeut.config import RunConfig
from moeut.data.tokenizer import encode
from moeut.data.tokens import PreparedData, open_prepared
from moeut.experiments.run_folder import model_folder
from moeut.model.folder import read_config
from moeut.model.language_model import ModelConfig
from moeut.model.tensor_files import read_json
from moeut.trees import differences, to_tree
from moeut.validation import Tree

TOKENIZER = "tokenizer.json"
FREE = ("hidden_dropout", "attention_dropout", "expert_dropout", "router_aux_loss_coef", "expert_backend",
        "initialisation")  # fmt: skip
"""Settings of a model that its weights do not depend on once they are there."""


def open_matching(data: str | Path, model: ModelConfig, tokenizer_folder: Path | None = None) -> PreparedData:
    """A prepared folder whose tokens a model knows.

    tokenizer_folder: of the model, where it has one. Raises ValueError if the folder is none, if its tokenizer has more
    tokens than the model, or is another one than the model's.
    """
    prepared = open_prepared(data)
    if prepared.manifest.vocab_size > model.vocab_size:
        raise ValueError(
            f"{data}: its tokenizer has {prepared.manifest.vocab_size:,} tokens, more than model.vocab_size "
            f"{model.vocab_size:,}; raise that, or prepare the text with --vocab-size {model.vocab_size}"
        )
    if (
        tokenizer_folder is not None
        and (tokenizer_folder / TOKENIZER).is_file()
        and not same_tokenizer(prepared.folder, tokenizer_folder)
    ):
        raise ValueError(
            f"{data}: its tokenizer is not the one that {tokenizer_folder} was trained with; prepare the text with "
            f"--tokenizer {tokenizer_folder}"
        )
    return prepared


def same_tokenizer(data_folder: Path, folder: Path) -> bool:
    """Whether a folder holds the tokenizer that a prepared one was made with."""
    file = folder / TOKENIZER
    return file.is_file() and read_json(file) == read_json(data_folder / TOKENIZER)


def model_tree(path: Path) -> Tree:
    """The configuration of the model in a model or run folder, as a tree. Raises ValueError where there is none."""
    return read_config(model_folder(path))["core"]


def refuse_another_model(path: Path, model: ModelConfig) -> None:
    """Refuse to begin with the weights of a model or run folder whose model is another one than `model`.

    Raises ValueError that says what differs; dropout and the like may.
    """
    changed = differences(_bound(model_tree(path)), _bound(to_tree(model)))
    if changed:
        raise ValueError(f"init_from: {path} is another model ({'; '.join(changed)})")


def longer_than_trained(prompt: str, tokenizer: Tokenizer, run: RunConfig) -> str | None:
    """What to say of a prompt with more tokens than the run has ever seen at a time, or None where it has fewer."""
    length, trained = len(encode(tokenizer, [prompt])[0]), run.training.context_length
    if length <= trained:
        return None
    return f"the prompt has {length:,} tokens, more than the model was trained on at a time ({trained:,})"


def _bound(tree: Tree) -> Tree:
    """A model's tree without what its weights do not depend on."""
    bound: Tree = {}
    for name, value in tree.items():
        if name not in FREE:
            inner: Any = _bound(value) if isinstance(value, dict) else value
            bound[name] = inner
    return bound
