"""What does each verb of the command line do? One function a verb; each imports what it needs when it runs.

Each takes the options that `moeut.cli` has read, prints its result to stdout, and returns the exit code.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_DATA = "data/stdlib"
DEFAULT_PRESET = "tiny"


def prepare(options: argparse.Namespace) -> int:
    """`moeut prepare`: text → tokenizer, token shards, held-out part."""
    from moeut.data.prepare import prepare as prepare_folder
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

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        with Progress(quiet=options.quiet) as progress:
            manifest, written = prepare_folder(
                folder, recipe, overwrite=options.overwrite, progress=progress, notice=progress.warn
            )
    except KeyboardInterrupt as interrupt:
        return _exit_code(interrupt.args[0] if interrupt.args else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, former)
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
    _print(facts, lines, as_json=options.json)
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
    _print(asdict(found), lines(found), as_json=options.json)
    return 0


def train(options: argparse.Namespace) -> int:
    """`moeut train`: a run folder with checkpoints, metrics and the resolved configuration."""
    from moeut.experiments.run import train as train_run
    from moeut.training.distributed import is_main_process
    from moeut.trees import to_yaml

    config = _resolve(options)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    how = {name: getattr(options, name) for name in ("device", "parallel", "replicas", "quiet")}
    how["compile"] = "inductor" if options.compile else None
    if options.dry_run:
        from moeut.experiments.dry_run import dry_run, report

        facts = dry_run(config, **how)
        if facts is not None:
            _print(facts, report(facts), as_json=options.json)
        return 0
    folder = Path(options.run or f"runs/{options.preset or DEFAULT_PRESET}")
    result = train_run(
        config, folder, resume=options.resume, tensorboard=options.tensorboard, wandb=options.wandb, **how
    )
    if not is_main_process():
        return _exit_code(result.interrupted_by, tell=False)
    held_out = result.held_out
    lines = [f"{folder}: {result.step:,} of {config.training.num_steps:,} steps"]
    if held_out is not None:
        lines.append(f"  held out: perplexity {held_out.perplexity:.3f}, bits per byte {held_out.bits_per_byte:.4f}")
    facts = {"run": str(folder), "step": result.step, "held_out": held_out and vars(held_out)}
    _print(facts, lines, as_json=options.json)
    return _exit_code(result.interrupted_by)


def evaluate(options: argparse.Namespace) -> int:
    """`moeut evaluate`: models on texts or on tasks, or two of them item by item."""
    from moeut.evaluation.outcomes import write_outcomes
    from moeut.evaluation.tables import comma_separated, markdown, together
    from moeut.experiments.evaluation import compare_files, measure, plan_of, text_facts, text_lines, write_record
    from moeut.training.progress import Progress

    if options.compare:
        found = compare_files(options.compare)
        facts: dict[str, Any] = {"comparisons": [vars(one) for one in found]}
        _print(facts, [one.in_words() for one in found], as_json=options.json)
        return 0
    if not options.models:
        raise ValueError("name a model to evaluate, or two files of items with --compare")
    if options.samples is not None and not options.samples.absolute().parent.is_dir():
        raise ValueError(f"--samples: there is no folder {options.samples.parent}")
    with Progress(quiet=options.quiet) as progress:
        measured = measure(options.models, plan_of(options), progress)
    form = "json" if options.json else options.format
    rows = together([row for one in measured for row in one.rows])
    records = [one.record for one in measured]
    facts, lines = records[0] if len(records) == 1 else {"models": records}, markdown(rows)
    if form == "csv":
        lines = comma_separated(rows)
    elif len(measured) == len(measured[0].texts) == 1 and not options.tasks:
        facts, lines = text_facts(measured[0]), text_lines(measured[0])
    _print(facts, lines, as_json=form == "json")
    if options.samples is not None:
        write_outcomes(options.samples, [outcome for one in measured for outcome in one.outcomes])
    for one in measured:
        write_record(one, options.output)
    return 0


def generate(options: argparse.Namespace) -> int:
    """`moeut generate`: text to the terminal as it comes."""
    from moeut.experiments.run_folder import model_folder
    from moeut.generation.generate import GenerationConfig, load
    from moeut.generation.generate import generate as write
    from moeut.training.distributed import pick_device
    from moeut.validation import validate

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = validate(GenerationConfig, {name: getattr(options, name) for name in names})
    model = load(model_folder(Path(options.model)), pick_device(options.device), options.repeats)
    if options.json:
        print(json.dumps({"prompt": options.prompt, "text": write(model, options.prompt, settings)}))
        return 0

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    show(options.prompt)
    write(model, options.prompt, settings, show)
    print()
    return 0


def describe(options: argparse.Namespace) -> int:
    """`moeut describe`: sizes, computation and bytes of models from their configurations alone."""
    from moeut.experiments.describe import description, dtype_named, lines, table

    if options.models and (options.preset or options.config):
        raise ValueError(f"{options.models[0]}: name models, or one with --preset and --config; not both")
    models = {name: _named(name, options).model for name in options.models} or {"": _resolve(options).model}
    dtype = dtype_named(options.dtype)
    described = {name: description(model, options.context_length, dtype) for name, model in models.items()}
    if len(described) > 1:
        _print(described, table(described), as_json=options.json)
        return 0
    [facts] = described.values()
    _print(facts, lines(facts), as_json=options.json)
    return 0


def match(options: argparse.Namespace) -> int:
    """`moeut match`: the dimensions with which a variant costs as much as another model, or so much."""
    from dataclasses import replace

    from moeut.experiments.budget import facts, goals, report
    from moeut.experiments.budget import match as find
    from moeut.trees import write_yaml

    run = _named(options.variant, options)
    target = None if options.to is None else _named(options.to, options).model
    found = find(
        run.model, goals(target, options.by, options.parameters, options.macs, options.context_length),
        options.context_length,
    )  # fmt: skip
    lines = report(options.variant, found, options.context_length)
    if options.output is not None:
        write_yaml(options.output, replace(run, model=found.config))
        lines.append(f"written to {options.output}")
    _print({"variant": options.variant, **facts(found)}, lines, as_json=options.json)
    return 0


def convert(options: argparse.Namespace) -> int:
    """`moeut convert`: an official checkpoint → a model folder, or a model → weights of the official release."""
    from dataclasses import asdict

    from moeut.hf.conversion import convert as make_folder
    from moeut.hf.conversion import report
    from moeut.training.progress import Progress

    if options.to == "official":
        return _export(options)
    if options.overrides and options.config is None:
        raise ValueError(f"--{options.overrides[0][0]}: changes the model that --config names, and none is named")
    config = None if options.config is None else _named(options.config, options).model
    with Progress(quiet=options.quiet) as progress:
        made = make_folder(
            options.source, Path(options.out), config=config, tokenizer=options.tokenizer, overwrite=options.overwrite,
            notice=progress.warn,
        )  # fmt: skip
    _print({"folder": options.out, **asdict(made)}, [f"{options.out}: {report(made)}"], as_json=options.json)
    return 0


def _export(options: argparse.Namespace) -> int:
    """`moeut convert --to official`: the weights of a model as the official release names them."""
    from moeut.experiments.run_folder import model_folder
    from moeut.hf.conversion import export_official

    if options.tokenizer or options.config or options.overrides:
        raise ValueError("--to official: takes a model as it is, without --tokenizer, --config or other settings")
    arguments = export_official(model_folder(Path(options.source)), Path(options.out), overwrite=options.overwrite)
    call = ", ".join(f"{name}={value}" for name, value in arguments.items())
    facts = {"file": options.out, "arguments": arguments}
    _print(facts, [f"{options.out}: weights of moeut.MoEUTLM({call})"], as_json=options.json)
    return 0


def demo(options: argparse.Namespace) -> int:
    """`moeut demo`: see `moeut.experiments.demo`."""
    from moeut.experiments.demo import demo as run_demo
    from moeut.experiments.demo import report

    result = run_demo(Path(options.out), quiet=options.quiet)
    if result.facts is not None:
        _print(result.facts, report(result.facts), as_json=options.json)
    return _exit_code(result.interrupted_by)


def _resolve(options: argparse.Namespace) -> Any:
    from moeut.config import run_config
    from moeut.presets import run_preset
    from moeut.trees import to_tree

    base = to_tree(run_preset(options.preset or DEFAULT_PRESET, data=DEFAULT_DATA))
    named = {name: value for name in ("data", "init_from") if (value := getattr(options, name, None))}
    if "init_from" in named and options.preset is None:
        from moeut.experiments.matching import model_tree

        base["model"] = model_tree(Path(named["init_from"]))
    return run_config(
        base, options.config, [*options.overrides, *((name, json.dumps(value)) for name, value in named.items())]
    )


def _named(name: str, options: argparse.Namespace) -> Any:
    """The configuration that a model's name means, with the overrides of the command line."""
    from moeut.experiments.named_models import named_run
    from moeut.presets import run_preset

    return named_run(name, run_preset(DEFAULT_PRESET, data=DEFAULT_DATA), options.overrides)


def _print(result: dict[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def _exit_code(interrupted_by: int | None, *, tell: bool = True) -> int:
    """0, or 128 + the signal that ended a run early, as shells count it."""
    if interrupted_by is None:
        return 0
    if tell:
        print("moeut: interrupted and saved; the same command goes on from here", file=sys.stderr)
    return 128 + interrupted_by


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
