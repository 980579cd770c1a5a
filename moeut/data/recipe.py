"""What is a corpus made of, and how does one say it?  Sources, how they are mixed, the tokenizer, what is held out.

A recipe has a name (a file of `recipes/` beside this one), or is a YAML file of its own. Later wins: the recipe < the
command line.
"""

import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from moeut.data.sources import SourceConfig
from moeut.data.tokenizer import BpeTokenizer, TokenizerConfig
from moeut.settings import STRICT, NonNegativeInt, PositiveInt, refuse, suggestion
from moeut.trees import override, read_yaml, to_tree
from moeut.validation import Tree, validate

RECIPES = Path(__file__).with_name("recipes")
Share = Annotated[float, Field(gt=0, lt=1)]
Sources = tuple[Annotated[SourceConfig, Field(discriminator="kind")], ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeldOutDocuments:
    """Held out are the documents whose hash, as a number in [0, 1), is below `share`: a matter of their text alone."""

    kind: Literal["documents"] = "documents"
    share: Share = 0.05


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeldOutFiles:
    """Held out are the first max(⌊share · n⌋, 1) of each source's n files, by tokens, as many as asked for."""

    kind: Literal["files"] = "files"
    share: Share
    max_tokens: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeldOutSources:
    """Held out are other sources, mixed by tokens, as many as asked for."""

    kind: Literal["separate"] = "separate"
    sources: Sources
    max_tokens: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenEnd:
    """The tokenizer's special token stands before the first, between and after the documents."""

    kind: Literal["token"] = "token"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextEnd:
    """Some text is put behind each document before it becomes tokens, as the paper does."""

    kind: Literal["text"] = "text"
    separator: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoEnd:
    """Nothing says where a document ends."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerText:
    """How much of the training text a new tokenizer is made from: that of the first files, or the first bytes."""

    max_files: PositiveInt | None = None
    max_bytes: PositiveInt | None = 10**9


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecipeConfig:
    """Everything that decides what a prepared folder holds.

    sources: see `moeut.data.sources`. mixing: what comes next is the next document `in_order`; or by weight in
    `tokens`, always of the source that is furthest behind its share of the tokens for training; or the next of the
    `files`, one of each source in turn. permute_files: a seed by which the files of each source are put in another
    order first. max_tokens: only so many for training (the last document is kept whole). errors: what to do with text
    that cannot be read, `strict` stops, `replace` goes on.
    """

    sources: Sources
    mixing: Literal["in_order", "tokens", "files"] = "in_order"
    permute_files: NonNegativeInt | None = None
    max_tokens: PositiveInt | None = None
    tokenizer: Annotated[TokenizerConfig, Field(discriminator="kind")] = BpeTokenizer(vocab_size=4096)
    tokenizer_text: TokenizerText = TokenizerText()
    document_end: Annotated[TokenEnd | TextEnd | NoEnd, Field(discriminator="kind")] = TokenEnd()
    held_out: Annotated[HeldOutDocuments | HeldOutFiles | HeldOutSources, Field(discriminator="kind")] = (
        HeldOutDocuments()
    )
    errors: Literal["strict", "replace"] = "strict"

    def __post_init__(self) -> None:
        weighted = any(source.weight != 1 for source in self.sources)
        refuse(
            [
                (not self.sources, "sources: there are none; name at least one"),
                (
                    isinstance(self.held_out, HeldOutSources) and not self.held_out.sources,
                    "held_out.sources: there are none; name at least one",
                ),
                (weighted and self.mixing != "tokens", "mixing: a source has a weight, which only `tokens` looks at"),
                (
                    self.tokenizer_text.max_files is not None and self.mixing == "tokens",
                    "tokenizer_text.max_files: `mixing: tokens` has no order of files; give max_bytes instead",
                ),
            ]
        )

    def held_out_sources(self) -> Sources:
        """Sources that are read for the held-out part only."""
        return self.held_out.sources if isinstance(self.held_out, HeldOutSources) else ()


def recipe_names() -> list[str]:
    """The names of the recipes that come with this package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> Tree:
    """The recipe of this name, or in this YAML file, as a tree.

    Raises:
        ValueError: there is none, or it is not YAML.
    """
    if name in recipe_names():
        return read_yaml(RECIPES / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    hint = suggestion(name, recipe_names(), f"there are {', '.join(recipe_names())}, or a file NAME.yaml")
    raise ValueError(f"--recipe: {name!r} is unknown; {hint}")


def recipe_config(tree: Tree, overrides: Iterable[tuple[str, str]] = ()) -> RecipeConfig:
    """The recipe that a tree and dotted overrides make together.

    Raises:
        ValueError: a line for each mistake: unknown field (and the nearest right one), wrong type, impossible value.
    """
    recipe = _validated(tree)
    changed = to_tree(recipe)
    override(changed, overrides)
    return _validated(changed)


def _validated(tree: Tree) -> RecipeConfig:
    problems = [*_source_problems(tree, "sources"), *_source_problems(tree.get("held_out"), "held_out.sources")]
    if problems:
        raise ValueError("\n".join(problems))
    return validate(RecipeConfig, tree)


def _source_problems(tree: Any, where: str) -> Iterator[str]:
    """What is wrong with the elements of a list of sources: `validate` names fields, but not inside lists."""
    kinds = {typing.get_type_hints(part)["kind"]: part for part in typing.get_args(SourceConfig)}
    sources = cast(Tree, tree).get("sources") if isinstance(tree, dict) else None
    for number, source in enumerate(cast(list[Any], sources) if isinstance(sources, list) else ()):
        kind = kinds.get(Literal[source.get("kind")]) if isinstance(source, dict) else None
        if kind is None:
            known = ", ".join(typing.get_args(literal)[0] for literal in kinds)
            yield f"{where}.{number}.kind: say which there is of {known}"
            continue
        try:
            validate(kind, cast(Tree, source))
        except ValueError as error:
            place = f"{where}.{number}."
            lines = str(error).replace("did you mean ", f"did you mean {place}").splitlines()
            yield from (place + line for line in lines)
