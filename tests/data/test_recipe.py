"""Recipes say what they should, every mistake in them is a line that names it, and the named ones are the paper's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeut.data.hub import HubFile
from moeut.data.mixture import Lane, lanes
from moeut.data.recipe import (
    HeldOutDocuments,
    HeldOutSources,
    NoEnd,
    RecipeConfig,
    TextEnd,
    TokenEnd,
    read_recipe,
    recipe_config,
    recipe_names,
)
from moeut.data.sources import FilesSource, HubSource, StandardLibrarySource
from moeut.data.tokenizer import BpeTokenizer, PaperTokenizer
from moeut.trees import read_yaml, to_tree, to_yaml

CORPORA = ["c4", "pes2o", "slimpajama", "the-stack"]
TRAINING_TOKENS = 1024 * 64 * (100_000 + 100)
C4_COMMIT = "1ddc917116b730e1859edef32896ec5c16be51d0"
SLIMPAJAMA_TRAIN = dict(enumerate([5912, 5911, 5919, 5917, 5933, 5915, 5906, 5921, 5920, 5912], 1))
SLIMPAJAMA_VALIDATION = dict(enumerate([6279, 6278, 6286, 6284, 6301], 1))
LANGUAGES = {
    "assembly": 3, "c++": 214, "haskell": 7, "html": 802, "javascript": 499, "python": 206, "rust": 40, "scala": 17,
}  # fmt: skip


def listing() -> dict[str, list[str]]:
    """The files that the corpora have on the Hub, by their data sets, in the order in which the Hub lists them."""
    c4 = [
        f"en/c4-{split}.{i:05d}-of-{n:05d}.json.gz"
        for split, n in (("train", 1024), ("validation", 8))
        for i in range(n)
    ]
    pes2o = [
        f"data/{version}/{split}-{i:05d}-of-{n:05d}.json.gz"
        for version in ("v1", "v2") for split, n in (("train", 20), ("validation", 2)) for i in range(n)
    ]  # fmt: skip
    slimpajama = [
        *(f"train/chunk{chunk}/example_train_{i}.jsonl.zst" for chunk, n in SLIMPAJAMA_TRAIN.items() for i in range(n)),
        *(
            f"{split}/chunk{chunk}/example_holdout_{i}.jsonl.zst"
            for split in ("test", "validation") for chunk, n in SLIMPAJAMA_VALIDATION.items() for i in range(n)
        ),
    ]  # fmt: skip
    stack = [
        f"data/{language}/train-{i:05d}-of-{n:05d}.parquet"
        for language, n in {**LANGUAGES, "ada": 2}.items() for i in range(n)
    ]  # fmt: skip
    corpora = {
        "allenai/c4": c4,
        "allenai/peS2o": pes2o,
        "cerebras/SlimPajama-627B": slimpajama,
        "bigcode/the-stack": stack,
    }
    return {name: sorted(paths) for name, paths in corpora.items()}


LISTING = listing()


def found_for(recipe: RecipeConfig) -> list[list[HubFile]]:
    """The files of each source, matched against the real names."""
    found = []
    for source in (*recipe.sources, *recipe.held_out_sources()):
        assert isinstance(source, HubSource)
        assert source.files is not None
        matching = [path for glob in source.files for path in LISTING[source.dataset] if Path(path).match(glob)]
        found.append([HubFile(source.dataset, "0" * 40, path, 1, path, source.dataset) for path in matching])
    return found


def paths(some: list[Lane]) -> list[list[str]]:
    return [[file.file.name.split("/", 2)[2] for file in lane.files] for lane in some]


def named(name: str) -> tuple[RecipeConfig, list[Lane], list[Lane]]:
    recipe = recipe_config(read_recipe(name))
    return recipe, *lanes(recipe, found_for(recipe))


def test_there_are_the_papers_and_the_corrected_ones() -> None:
    assert recipe_names() == sorted([*CORPORA, *(f"{name}-paper" for name in CORPORA)])


@pytest.mark.parametrize("name", CORPORA)
def test_the_corrected_ones_lose_nothing(name: str) -> None:
    corrected, paper = (recipe_config(read_recipe(f"{name}{suffix}")) for suffix in ("", "-paper"))
    assert corrected.tokenizer == BpeTokenizer(vocab_size=8000)
    assert corrected.document_end == TokenEnd()
    assert paper.tokenizer == PaperTokenizer(vocab_size=8000)
    assert paper.document_end == (NoEnd() if name == "the-stack" else TextEnd(separator="<STORY_SEP>"))
    assert corrected.max_tokens == paper.max_tokens == TRAINING_TOKENS
    assert (corrected.sources, corrected.held_out) == (paper.sources, paper.held_out)
    assert corrected.permute_files == paper.permute_files


@pytest.mark.parametrize(
    ("name", "blocks", "tokenizer_files"),
    [("c4", 1008, 10), ("slimpajama", 1008, 200), ("pes2o", 4111, 1), ("the-stack", 1008, 20)],
)
def test_token_counts_are_the_papers(name: str, blocks: int, tokenizer_files: int) -> None:
    recipe = recipe_config(read_recipe(f"{name}-paper"))
    assert not isinstance(recipe.held_out, HeldOutDocuments)
    assert recipe.held_out.max_tokens == blocks * 1024 + 1
    assert (recipe.tokenizer_text.max_files, recipe.tokenizer_text.max_bytes) == (tokenizer_files, None)


def test_c4_is_in_order() -> None:
    recipe, training, held_out = named("c4-paper")
    assert all(isinstance(source, HubSource) and source.revision == C4_COMMIT for source in recipe.sources)
    assert paths(training) == [[f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(1024)]]
    assert paths(held_out) == [[f"en/c4-validation.{i:05d}-of-00008.json.gz" for i in range(8)]]


def test_pes2o_is_its_second_version_in_order() -> None:
    _, training, held_out = named("pes2o-paper")
    assert paths(training) == [[f"data/v2/train-{i:05d}-of-00020.json.gz" for i in range(20)]]
    assert paths(held_out) == [[f"data/v2/validation-{i:05d}-of-00002.json.gz" for i in range(2)]]


def test_slimpajama_is_permuted() -> None:
    def permuted(counts: dict[int, int], form: str) -> list[str]:
        ordered = [form.format(chunk, i) for chunk, count in counts.items() for i in range(count)]
        return [ordered[i] for i in np.random.default_rng(123).permutation(len(ordered))]

    _, training, held_out = named("slimpajama-paper")
    assert paths(training) == [permuted(SLIMPAJAMA_TRAIN, "train/chunk{}/example_train_{}.jsonl.zst")]
    assert paths(held_out) == [permuted(SLIMPAJAMA_VALIDATION, "validation/chunk{}/example_holdout_{}.jsonl.zst")]


def stack_files() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The files of each language for training and validation, as the paper's code draws them."""
    generator = np.random.default_rng(123)
    training, validation = {}, {}
    for language, count in sorted(LANGUAGES.items()):
        order = [f"data/{language}/train-{i:05d}-of-{count:05d}.parquet" for i in generator.permutation(count)]
        cut = max(int(0.1 * count), 1)
        training[language], validation[language] = order[cut:], order[:cut]
    return training, validation


def test_the_stack_takes_files_in_turn() -> None:
    training, validation = stack_files()
    most = max(map(len, training.values()))
    turns = [files[i] for i in range(most) for files in training.values() if i < len(files)]
    _, found, held_out = named("the-stack-paper")
    assert paths(found) == [turns]
    assert paths(held_out) == list(validation.values())
    assert {file.text_column for lane in found for file in lane.files} == {"content"}


def test_the_stack_by_tokens() -> None:
    training, validation = stack_files()
    recipe, found, held_out = named("the-stack")
    assert recipe.mixing == "tokens"
    assert paths(found) == list(training.values())
    assert paths(held_out) == list(validation.values())
    assert {lane.weight for lane in found} == {1}
    by_files = recipe_config(read_recipe("the-stack"), [("mixing", "files")])
    assert paths(lanes(by_files, found_for(by_files))[0]) == paths(named("the-stack-paper")[1])


@pytest.mark.parametrize("name", [*CORPORA, "the-stack-paper"])
def test_a_recipe_reads_back(name: str, tmp_path: Path) -> None:
    recipe = recipe_config(read_recipe(name))
    (tmp_path / "mine.yaml").write_text(to_yaml(recipe))
    assert recipe_config(read_recipe(str(tmp_path / "mine.yaml"))) == recipe
    assert recipe_config(read_yaml(tmp_path / "mine.yaml"), [("held_out.max_tokens", "5")]) != recipe


def test_unknown_recipes_are_named() -> None:
    with pytest.raises(ValueError, match="--recipe: 'slimpyjama' is unknown; did you mean slimpajama"):
        read_recipe("slimpyjama")
    with pytest.raises(ValueError, match=r"'x' is unknown; there are c4, c4-paper, .* or a file NAME\.yaml"):
        read_recipe("x")


FILES: dict[str, Any] = {"kind": "files", "paths": ["a"]}
SPLIT: dict[str, Any] = {"kind": "separate", "sources": [FILES]}


@pytest.mark.parametrize(
    ("tree", "complaints"),
    [
        ({}, ["sources: missing"]),
        ({"sources": []}, ["sources: there are none; name at least one"]),
        ({"sources": [{"kind": "fils"}]}, ["sources.0.kind: say which there is of files, hub, standard_library"]),
        ({"sources": [{**FILES, "pahts": 1}]}, ["sources.0.pahts: unknown; did you mean sources.0.paths?"]),
        ({"sources": [FILES, {"kind": "files"}]}, ["sources.1.paths: missing"]),
        ({"sources": [{**FILES, "weight": 0}]}, ["sources.0.weight: input should be greater than 0, not 0"]),
        ({"sources": [{**FILES, "weight": 2}]}, ["mixing: a source has a weight, which only `tokens` looks at"]),
        ({"sources": [FILES], "mixng": "files"}, ["mixng: unknown; did you mean mixing?"]),
        ({"sources": [FILES], "mixing": "bytes"}, ["mixing: input should be"]),
        ({"sources": [FILES], "errors": "ignore"}, ["errors: input should be"]),
        ({"sources": [FILES], "max_tokens": 0}, ["max_tokens: input should be greater than 0, not 0"]),
        (
            {"sources": [FILES], "held_out": {"kind": "documents", "share": 1.0}},
            ["held_out.share: input should be less"],
        ),
        (
            {"sources": [FILES], "held_out": {"kind": "documents", "shore": 0.1}},
            ["held_out.shore: unknown; did you mean"],
        ),
        ({"sources": [FILES], "held_out": {**SPLIT, "sources": []}}, ["held_out.sources: there are none"]),
        (
            {"sources": [FILES], "held_out": {**SPLIT, "sources": [FILES, {**FILES, "path": ""}]}},
            ["held_out.sources.1.path: unknown; did you mean"],
        ),
        ({"sources": [FILES], "tokenizer": {"vocab_size": 8}}, ["tokenizer.kind: missing"]),
        ({"sources": [FILES], "document_end": {"kind": "text"}}, ["document_end.separator: missing"]),
        (
            {"sources": [FILES], "mixing": "tokens", "tokenizer_text": {"max_files": 1}},
            ["tokenizer_text.max_files: `mixing: tokens` has no order of files; give max_bytes instead"],
        ),
        ({"sources": [{"kind": "x"}, {"kind": "files", "a": 1}]}, ["sources.0.kind", "sources.1.paths", "sources.1.a"]),
    ],
)
def test_every_mistake_is_a_line(tree: dict[str, Any], complaints: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^\w+") as caught:
        recipe_config(tree)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(complaints)
    for complaint in complaints:
        assert any(line.startswith(complaint) for line in lines), lines


def test_a_recipe_is_said_by_little() -> None:
    recipe = recipe_config({"sources": [FILES, {"kind": "standard_library"}]}, [("held_out.share", "0.1")])
    assert recipe.sources == (FilesSource(paths=("a",)), StandardLibrarySource())
    assert recipe.held_out == HeldOutDocuments(share=0.1)
    other = recipe_config(to_tree(recipe), [("held_out", f"{SPLIT}"), ("sources.0.text_column", "body")])
    assert isinstance(other.held_out, HeldOutSources)
    assert other.held_out_sources() == (FilesSource(paths=("a",)),)
    assert other.sources[0] == FilesSource(paths=("a",), text_column="body")
