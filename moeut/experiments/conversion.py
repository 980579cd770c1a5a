"""How does an official file become a model folder, and a model folder an official file? Whole, or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from moeut.data.foreign_tokenizer import find_tokenizer
from moeut.data.tokenizer import end_of_document_id, save_tokenizer
from moeut.data.workplace import clear, publish, recover, workplace
from moeut.experiments.card import CARD, converted_card
from moeut.files import flush, replacing
from moeut.model.folder import CONFIG, load_model, save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.tensor_files import write_tensors
from moeut.official.loading import load_official
from moeut.official.names import to_official
from moeut.official.release import release_arguments
from moeut.official.repository import OFFICIAL, REPOSITORY, fetch_official


@dataclass(frozen=True)
class Conversion:
    """What a model folder was made of: an official file, the model in it, a tokenizer or none.

    notes: what a user should know of how the file described its model.
    """

    file: str
    config: ModelConfig
    parameters: int
    dtype: str
    tokenizer: str | None
    notes: tuple[str, ...]


def convert(
    source: str | Path, folder: Path, *, config: ModelConfig | None = None, tokenizer: str | None = None,
    overwrite: bool = False, notice: Callable[[str], None] = print,
) -> Conversion:  # fmt: skip
    """Make a model folder of an official file (`moeut.official.loading.load_official`).

    source: the file, or `official:NAME` to fetch one (`moeut.official.repository.fetch_official`), which brings its
    own tokenizer. config: which model it is, where the file does not say. tokenizer: a SentencePiece `.model`, a
    `tokenizer.json`, a folder with one or a name on the Hub; without one, the folder holds none, and token 0 stands for
    the end of a text. overwrite: a model folder may be replaced. notice: gets a line for each failure that passes. The
    folder appears when it is whole, with a model card (`moeut.experiments.card`).

    Raises ValueError, a line for each mistake: what those functions raise, a folder in the way, no such tokenizer, one
    that is not the model's.
    """
    _refuse_what_is_in_the_way(folder, overwrite)
    file = Path(source)
    published = str(source).startswith(OFFICIAL)
    if published:
        file, theirs = fetch_official(str(source), notice, with_tokenizer=tokenizer is None)
        tokenizer = tokenizer or str(theirs)
    words = None if tokenizer is None else find_tokenizer(tokenizer)
    model, notes, arguments = load_official(file, config)
    if words is not None:
        # The training code's vocabulary is just its tokenizer's; other trainers pad theirs.
        _refuse_another_vocabulary(str(tokenizer), words, model.config.vocab_size, exact=config is None)
    where = f"`{file.name}`" + (f" in the Hub's repository `{REPOSITORY}`" if published else "")
    card = converted_card(model, where, arguments, notes, name=folder.name, has_tokenizer=words is not None)
    _write(model, words, card, folder)
    return Conversion(
        file=str(file),
        config=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.embedding.weight.dtype).removeprefix("torch."),
        tokenizer=tokenizer,
        notes=notes,
    )


def report(made: Conversion) -> str:
    """What was made, in a few lines."""
    model = made.config
    lines = [
        f"{made.parameters:,} parameters in {made.dtype}, from {made.file}",
        f"{model.attention.kind}, {model.feed_forward.kind}, {model.norm}-layernorm; {model.group_size} × "
        f"{model.num_repeats} layers of {model.hidden_size:,} channels; {model.vocab_size:,} tokens",
        f"tokenizer: {made.tokenizer or 'none, so it takes no text; give one with --tokenizer'}",
        *(f"note: {note}" for note in made.notes),
    ]
    return "\n  ".join(lines)


def export_official(folder: Path, file: Path, *, overwrite: bool = False) -> dict[str, int | float]:
    """Write a model folder's weights as a state dict of the clean release: safetensors by its name, else `torch.save`.

    Returns the arguments of the release's `MoEUTLM` that these weights fit. Raises ValueError, a line for each mistake:
    no model folder, a model that the release cannot be, a file in the way.
    """
    if file.is_dir():
        raise ValueError(f"{file}: a folder is in the way; choose another name")
    if file.exists() and not overwrite:
        raise ValueError(f"{file}: is there already; choose another name, or --overwrite")
    model = load_model(folder)
    try:
        arguments = release_arguments(model.config)
    except ValueError as error:
        raise ValueError("\n".join(f"{folder}: {line}" for line in str(error).splitlines())) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_state_dict(file, to_official(model.state_dict()))
    return arguments


def _refuse_what_is_in_the_way(folder: Path, overwrite: bool) -> None:
    recover(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: something else than a model is in the way; choose another folder")
    if not overwrite:
        raise ValueError(f"{folder}: a model is there already; choose another folder, or --overwrite")


def _refuse_another_vocabulary(name: str, tokenizer: Tokenizer, rows: int, *, exact: bool) -> None:
    tokens = tokenizer.get_vocab_size()
    if tokens > rows or (exact and tokens != rows):
        raise ValueError(f"{name}: not the tokenizer of this model: it has {tokens:,} tokens, the model {rows:,}")


def _write(model: LanguageModel, tokenizer: Tokenizer | None, card: str, folder: Path) -> None:
    with workplace(folder) as partial:
        clear(partial)
        end = 0 if tokenizer is None else end_of_document_id(tokenizer)
        save_model(model, partial, end_of_document_id=end)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        for written in partial.iterdir():
            flush(written)
        publish(partial, folder)


def _write_state_dict(file: Path, weights: Mapping[str, Tensor]) -> None:
    if file.suffix == ".safetensors":
        write_tensors(file, weights)
        return
    with replacing(file) as partial:
        torch.save({name: tensor.clone() for name, tensor in weights.items()}, partial)
