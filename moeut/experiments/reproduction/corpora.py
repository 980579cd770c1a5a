"""Which text do the runs of a study learn? That of a recipe, Python's standard library, or one of the user's own.

A corpus is named by what the user would say: `c4`, `stdlib`, a prepared folder, or files and folders of text.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutDocuments, RecipeConfig, read_recipe, recipe_config, recipe_names
from moeut.data.sources import FilesSource, StandardLibrarySource
from moeut.data.tokenizer import BpeTokenizer
from moeut.experiments.reproduction.claims import TakenError, claimed
from moeut.experiments.subjects import is_prepared
from moeut.training.progress import Progress

STANDARD_LIBRARY = "stdlib"
WAIT_SECONDS = 2.0


def short_name(corpus: str) -> str:
    """A corpus in names of runs and folders: `prose` for `texts/prose.jsonl.xz`."""
    return Path(corpus).name.split(".")[0]


def data_folder(corpus: str, out: Path) -> Path:
    """Where a corpus is, or will be, prepared."""
    return Path(corpus) if is_prepared(Path(corpus)) else out / "data" / short_name(corpus)


def recipe_of(corpus: str, *, vocab_size: int, held_out_share: float, library_tokens: int | None) -> RecipeConfig:
    """How a corpus is prepared: as its own recipe says, otherwise with a new byte-level BPE.

    vocab_size: of that. held_out_share: of the documents. library_tokens: so much of the standard library; None: all.
    """
    if corpus in recipe_names():
        return recipe_config(read_recipe(corpus))
    of_the_library = corpus == STANDARD_LIBRARY
    return RecipeConfig(
        sources=(StandardLibrarySource() if of_the_library else FilesSource(paths=(corpus,)),),
        max_tokens=library_tokens if of_the_library else None,
        tokenizer=BpeTokenizer(vocab_size=vocab_size),
        held_out=HeldOutDocuments(share=held_out_share),
    )


def prepare_texts(recipes: Mapping[str, RecipeConfig], out: Path, progress: Progress) -> None:
    """Prepare corpora, or wait for whoever is at it; prepared folders stay as they are.

    Raises ValueError where there is no such text.
    """
    for corpus, recipe in recipes.items():
        if is_prepared(Path(corpus)):
            continue
        folder, told = data_folder(corpus, out), False
        while True:
            try:
                # A preparation that was killed goes on by itself, whoever asks.
                with claimed(out / "claims" / f"data-{folder.name}", takeover=True):
                    prepare(folder, recipe, progress=progress, notice=progress.warn)
                break
            except TakenError as taken:
                if not told:
                    progress.warn(f"{taken}; waiting")
                told = True
                time.sleep(WAIT_SECONDS)
