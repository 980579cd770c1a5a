"""Which text do the runs of a study learn? That of a recipe, Python's standard library, or one of the user's own.

A corpus is named by what the user would say: `c4`, `stdlib`, a prepared folder, or files and folders of text.
"""

from pathlib import Path

from moeut.data.prepare import prepare
from moeut.data.recipe import HeldOutDocuments, RecipeConfig, read_recipe, recipe_config, recipe_names
from moeut.data.sources import FilesSource, StandardLibrarySource
from moeut.data.tokenizer import BpeTokenizer
from moeut.experiments.subjects import is_prepared
from moeut.training.progress import Progress

STANDARD_LIBRARY = "stdlib"
HELD_OUT_SHARE = 0.02


def short_name(corpus: str) -> str:
    """A corpus in names of runs and folders: `prose` for `texts/prose.jsonl.xz`."""
    return Path(corpus).name.split(".")[0]


def data_folder(corpus: str, out: Path) -> Path:
    """Where a corpus is, or will be, prepared."""
    return Path(corpus) if is_prepared(Path(corpus)) else out / "data" / short_name(corpus)


def prepare_text(corpus: str, folder: Path, *, vocab_size: int, library_tokens: int | None, progress: Progress) -> None:
    """Prepare a corpus in its folder, where that has not been done.

    vocab_size: of the byte-level BPE for a text that comes without a recipe; a fiftieth of its documents is held out.
    library_tokens: so much of the standard library; None: all of it. Raises ValueError where there is no such text.
    """
    if is_prepared(Path(corpus)):
        return
    if corpus in recipe_names():
        recipe = recipe_config(read_recipe(corpus))
    else:
        of_the_library = corpus == STANDARD_LIBRARY
        recipe = RecipeConfig(
            sources=(StandardLibrarySource() if of_the_library else FilesSource(paths=(corpus,)),),
            max_tokens=library_tokens if of_the_library else None,
            tokenizer=BpeTokenizer(vocab_size=vocab_size),
            held_out=HeldOutDocuments(share=HELD_OUT_SHARE),
        )
    prepare(folder, recipe, progress=progress, notice=progress.warn)
