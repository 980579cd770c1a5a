"""What do the verbs around models do? `describe`, `match` and `convert`."""

import argparse
from pathlib import Path

from moeut.commands.answers import named_model, resolved_run, show


def describe(options: argparse.Namespace) -> int:
    """`moeut describe`: sizes, computation and bytes of models from their configurations alone."""
    from moeut.experiments.describe import description, dtype_named, lines, table

    if options.models and (options.preset or options.config):
        raise ValueError(f"{options.models[0]}: name models, or one with --preset and --config; not both")
    models = {name: named_model(name, options).model for name in options.models} or {"": resolved_run(options).model}
    dtype = dtype_named(options.dtype)
    described = {name: description(model, options.context_length, dtype) for name, model in models.items()}
    if len(described) > 1:
        show(described, table(described), as_json=options.json)
        return 0
    [facts] = described.values()
    show(facts, lines(facts), as_json=options.json)
    return 0


def match(options: argparse.Namespace) -> int:
    """`moeut match`: the dimensions with which a variant costs as much as another model, or so much."""
    from dataclasses import replace

    from moeut.experiments.budget import facts, goals, report
    from moeut.experiments.budget import match as find
    from moeut.trees import write_yaml

    run = named_model(options.variant, options)
    target = None if options.to is None else named_model(options.to, options).model
    found = find(
        run.model, goals(target, options.by, options.parameters, options.macs, options.context_length),
        options.context_length,
    )  # fmt: skip
    lines = report(options.variant, found, options.context_length)
    if options.output is not None:
        write_yaml(options.output, replace(run, model=found.config))
        lines.append(f"written to {options.output}")
    show({"variant": options.variant, **facts(found)}, lines, as_json=options.json)
    return 0


def convert(options: argparse.Namespace) -> int:
    """`moeut convert`: an official checkpoint → a model folder, or a model → weights of the official release."""
    from dataclasses import asdict

    from moeut.experiments.conversion import convert as make_folder
    from moeut.experiments.conversion import report
    from moeut.training.progress import Progress

    if options.to == "official":
        return _export(options)
    if options.overrides and options.config is None:
        raise ValueError(f"--{options.overrides[0][0]}: changes the model that --config names, and none is named")
    config = None if options.config is None else named_model(options.config, options).model
    with Progress(quiet=options.quiet) as progress:
        made = make_folder(
            options.source, Path(options.out), config=config, tokenizer=options.tokenizer, overwrite=options.overwrite,
            notice=progress.warn,
        )  # fmt: skip
    show({"folder": options.out, **asdict(made)}, [f"{options.out}: {report(made)}"], as_json=options.json)
    return 0


def _export(options: argparse.Namespace) -> int:
    """`moeut convert --to official`: the weights of a model as the official release names them."""
    from moeut.experiments.conversion import export_official
    from moeut.experiments.run_folder import model_folder

    if options.tokenizer or options.config or options.overrides:
        raise ValueError("--to official: takes a model as it is, without --tokenizer, --config or other settings")
    arguments = export_official(model_folder(Path(options.source)), Path(options.out), overwrite=options.overwrite)
    call = ", ".join(f"{name}={value}" for name, value in arguments.items())
    facts = {"file": options.out, "arguments": arguments}
    show(facts, [f"{options.out}: weights of moeut.MoEUTLM({call})"], as_json=options.json)
    return 0
