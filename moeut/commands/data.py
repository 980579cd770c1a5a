"""What do the verbs around data do? `prepare`, and what is in a prepared folder."""

import argparse
from pathlib import Path
from typing import Any

from moeut.commands.answers import DEFAULT_DATA, exit_code, show


def prepare(options: argparse.Namespace) -> int:
    """`moeut prepare`: text → tokenizer, token shards, held-out part."""
    from moeut.data.prepare import prepare as prepare_folder
    from moeut.training.interruption import signal_of, sigterm_interrupts
    from moeut.training.progress import Progress
    from moeut.trees import to_yaml

    if options.inspect is not None:
        return _inspect(options)
    recipe = _recipe(options)
    if options.print_recipe:
        print(to_yaml(recipe), end="")
        return 0
    given = [*options.paths, *([options.recipe] if options.recipe else [])]
    folder = Path(options.out or (f"data/{Path(given[0]).name.split('.')[0]}" if given else DEFAULT_DATA))

    try:
        with sigterm_interrupts(), Progress(quiet=options.quiet) as progress:
            manifest, written = prepare_folder(
                folder, recipe, overwrite=options.overwrite, progress=progress, notice=progress.warn
            )
    except KeyboardInterrupt as interrupt:
        return exit_code(signal_of(interrupt))
    splits = {name: vars(counts) for name, counts in manifest.splits.items()}
    sources = {source.name: vars(source.splits["train"]) for source in manifest.sources if "train" in source.splits}
    lines = [f"{folder}: {'written' if written else 'already holds just this; nothing to do'}"]
    lines += [
        f"  {name:<9}{counts['documents']:>9,} documents {counts['bytes']:>14,} bytes {counts['tokens']:>12,} tokens"
        for name, counts in splits.items()
    ]
    if len(sources) > 1:
        lines += [
            f"  {counts['tokens'] / splits['train']['tokens']:>7.1%} of the tokens for training: {name}"
            for name, counts in sources.items()
        ]
    lines.append(f"  vocabulary {manifest.vocab_size:,}")
    facts = {"folder": str(folder), "written": written, "vocab_size": manifest.vocab_size, **splits, "sources": sources}
    show(facts, lines, as_json=options.json)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    """`moeut prepare --inspect`: what is in a prepared folder, or in that of a run."""
    from dataclasses import asdict

    from moeut.data.summary import lines, summary
    from moeut.data.tokens import MANIFEST, open_prepared
    from moeut.training.progress import Progress

    folder = options.inspect
    if not (folder / MANIFEST).is_file():
        from moeut.experiments.run_folder import run_of

        run = run_of(folder / "final")
        folder = folder if run is None else Path(run.data)
    with Progress(quiet=options.quiet) as progress:
        found = summary(open_prepared(folder, progress=progress))
    show(asdict(found), lines(found), as_json=options.json)
    return 0


def _recipe(options: argparse.Namespace) -> Any:
    """The recipe that the options of `prepare` make: a named one or one of their own, and what is laid over it."""
    from moeut.data.recipe import read_recipe, recipe_config

    if options.recipe and options.paths:
        raise ValueError(f"{options.paths[0]}: name paths or a recipe, not both; a recipe has sources of its own")
    if options.recipe:
        tree: dict[str, Any] = read_recipe(options.recipe)
    elif options.paths:
        tree = {"sources": [{"kind": "files", "paths": [path]} for path in options.paths]}
    else:
        tree = {"sources": [{"kind": "standard_library"}]}
    if options.tokenizer in ("bpe", "unigram", "bytes", "paper"):
        tree["tokenizer"] = {"kind": options.tokenizer}
    elif options.tokenizer:
        tree["tokenizer"] = {"kind": "existing", "path": options.tokenizer}
    if options.vocab_size is not None:
        tree.setdefault("tokenizer", {"kind": "bpe"})["vocab_size"] = options.vocab_size
    if options.held_out is not None:
        tree["held_out"] = {"kind": "documents", "share": options.held_out}
    for name in ("max_tokens", "mixing", "errors"):
        if getattr(options, name) is not None:
            tree[name] = getattr(options, name)
    if options.text_column is not None:
        for source in tree["sources"]:
            source["text_column"] = options.text_column
    return recipe_config(tree, options.overrides)
