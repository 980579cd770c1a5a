"""What can one type? One verb, one function; each imports what it needs when it runs.

Results go to stdout (`--json` for machines), progress and notes to stderr. What the user got wrong is one line a
mistake and exit code 2; Ctrl-C ends with 130.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import moeut

DEFAULT_DATA = "data/stdlib"
DEFAULT_PRESET = "tiny"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for the user's mistakes, 130 and 143 when interrupted."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        options.overrides = _overrides(rest, accepted=getattr(options, "takes_overrides", False))
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"moeut: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moeut: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb and option."""
    parser = argparse.ArgumentParser(
        prog="moeut", description="Train, evaluate, run and describe Mixture-of-Experts Universal Transformers."
    )
    parser.add_argument("--version", action="version", version=f"moeut {moeut.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, command: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        sub.add_argument("--quiet", action="store_true", help="no progress, only the result")
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    def device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps; auto: a GPU if there is one")

    sub = verb("prepare", prepare, "Turn text into a folder of tokens to train on.")
    sub.add_argument(
        "paths", nargs="*", metavar="PATH",
        help="text files, .jsonl files or folders of them; without any, the source code of Python's standard library",
    )  # fmt: skip
    sub.add_argument("--out", metavar="DIR", help=f"folder to write (default data/NAME, or {DEFAULT_DATA})")
    sub.add_argument(
        "--vocab-size", type=int, default=4096, metavar="N", help="size of the new tokenizer (%(default)s)"
    )
    sub.add_argument(
        "--tokenizer", metavar="DIR", help="use this tokenizer instead of training one; `bytes` needs no file"
    )
    sub.add_argument(
        "--held-out", type=float, default=0.05, metavar="SHARE", help="share never trained on (%(default)s)"
    )
    sub.add_argument("--text-column", default="text", metavar="NAME", help="field of JSON lines (%(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder that holds something else")

    sub = verb("train", train, "Train a model on a prepared folder; goes on where an interrupted run stopped.")
    _configuration_options(sub)
    sub.add_argument("--data", metavar="DIR", help=f"prepared folder (default {DEFAULT_DATA})")
    sub.add_argument("--run", metavar="DIR", help="run folder (default runs/PRESET)")
    sub.add_argument(
        "--resume", default="auto", metavar="auto|never",
        help="auto: go on from the newest complete checkpoint; never: refuse a folder that has one (%(default)s)",
    )  # fmt: skip
    device(sub)
    sub.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML and stop")

    sub = verb("evaluate", evaluate, "Cross entropy, perplexity and bits per byte on held-out text.")
    sub.add_argument("model", metavar="MODEL", help="a model folder or a run folder")
    sub.add_argument("--data", metavar="DIR", help="prepared folder (default: the one the run was trained on)")
    sub.add_argument("--context-length", type=int, metavar="N", help="tokens a block (default: as in training)")
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="blocks at a time (%(default)s)")
    device(sub)

    sub = verb("generate", generate, "Continue a prompt.")
    sub.add_argument("model", metavar="MODEL", help="a model folder or a run folder")
    sub.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="", help="text to continue (default: a new document)"
    )
    sub.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="(%(default)s)")
    sub.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (%(default)s)")
    sub.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    sub.add_argument(
        "--top-p", type=float, metavar="P", help="choose among the likeliest that hold P of the probability"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text (%(default)s)")
    device(sub)

    sub = verb("describe", describe, "What a configuration is: parameters, multiply-adds, the order of its layers.")
    _configuration_options(sub)
    sub.add_argument("--context-length", type=int, default=1024, metavar="N", help="for multiply-adds (%(default)s)")

    sub = verb("demo", demo, "The whole path on Python's standard library: prepare, train, evaluate, compare, sample.")
    sub.add_argument("--out", default="demo", metavar="DIR", help="folder to write (%(default)s)")
    return parser


def _configuration_options(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(takes_overrides=True)
    sub.add_argument("--preset", metavar="NAME", help=f"named model and training (default {DEFAULT_PRESET})")
    sub.add_argument("--config", type=Path, metavar="FILE", help="YAML laid over the preset")
    sub.epilog = (
        "Any setting can be given by its dotted name, such as --model.group_size 2 or --training.num_steps 100."
    )


def _overrides(rest: Sequence[str], *, accepted: bool) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` pairs; raises ValueError for anything else that is left over."""
    pairs: list[tuple[str, str]] = []
    words = iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not accepted or not word.startswith("--") or "." not in key:
            raise ValueError(f"{word}: unknown argument; see --help")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise ValueError(f"{word}: a value is missing") from None
        pairs.append((key, value))
    return pairs


def _resolve(options: argparse.Namespace) -> Any:
    from moeut.config import run_config, to_tree
    from moeut.presets import run_preset

    base = to_tree(run_preset(options.preset or DEFAULT_PRESET, data=DEFAULT_DATA))
    data = getattr(options, "data", None)
    return run_config(base, options.config, [*options.overrides, *([("data", data)] if data else [])])


def _print(result: dict[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def _exit_code(interrupted_by: int | None) -> int:
    """0, or 128 + the signal that ended a run early, as shells count it."""
    if interrupted_by is None:
        return 0
    print("moeut: interrupted and saved; the same command goes on from here", file=sys.stderr)
    return 128 + interrupted_by


def prepare(options: argparse.Namespace) -> int:
    """`moeut prepare`: text → tokenizer, token shards, held-out part."""
    from moeut.data.prepare import prepare as prepare_folder
    from moeut.data.sources import find_files, standard_library
    from moeut.data.tokenizer import byte_tokenizer, load_tokenizer
    from moeut.training.progress import Progress

    files = find_files(options.paths) if options.paths else standard_library()
    name = Path(options.paths[0]).name.split(".")[0] if options.paths else ""
    folder = Path(options.out or (f"data/{name}" if name else DEFAULT_DATA))
    match options.tokenizer:
        case None:
            tokenizer = options.vocab_size
        case "bytes":
            tokenizer = byte_tokenizer()
        case path:
            tokenizer = load_tokenizer(Path(path))
    with Progress(quiet=options.quiet) as progress:
        manifest, written = prepare_folder(
            folder, files, tokenizer=tokenizer, held_out=options.held_out, text_column=options.text_column,
            overwrite=options.overwrite, progress=progress,
        )  # fmt: skip
    splits = {name: vars(counts) for name, counts in manifest.splits.items()}
    lines = [f"{folder}: {'written' if written else 'already holds just this; nothing to do'}"]
    lines += [
        f"  {name:<9}{counts['documents']:>9,} documents {counts['bytes']:>14,} bytes {counts['tokens']:>12,} tokens"
        for name, counts in splits.items()
    ]
    lines.append(f"  vocabulary {manifest.vocab_size:,}")
    _print(
        {"folder": str(folder), "written": written, "vocab_size": manifest.vocab_size, **splits},
        lines,
        as_json=options.json,
    )
    return 0


def train(options: argparse.Namespace) -> int:
    """`moeut train`: a run folder with checkpoints, metrics and the resolved configuration."""
    from moeut.config import to_yaml
    from moeut.experiments.run import train as train_run

    config = _resolve(options)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    folder = Path(options.run or f"runs/{options.preset or DEFAULT_PRESET}")
    result = train_run(config, folder, resume=options.resume, device=options.device, quiet=options.quiet)
    held_out = result.held_out
    lines = [f"{folder}: {result.step:,} of {config.training.num_steps:,} steps"]
    if held_out is not None:
        lines.append(f"  held out: perplexity {held_out.perplexity:.3f}, bits per byte {held_out.bits_per_byte:.4f}")
    facts = {"run": str(folder), "step": result.step, "held_out": held_out and vars(held_out)}
    _print(facts, lines, as_json=options.json)
    return _exit_code(result.interrupted_by)


def evaluate(options: argparse.Namespace) -> int:
    """`moeut evaluate`: one model on the held-out part of a prepared folder."""
    from moeut.data.tokens import open_prepared
    from moeut.evaluation.perplexity import evaluate as score
    from moeut.experiments.run import model_folder, pick_device, run_of
    from moeut.model.folder import load_model
    from moeut.training.progress import Progress

    folder = model_folder(Path(options.model))
    run = run_of(folder)
    folder_of_data = options.data or (run and run.data)
    if folder_of_data is None:
        raise ValueError(f"{folder}: not part of a run, so name the text to evaluate on with --data DIR")
    context_length = options.context_length or (run.training.context_length if run else 1024)
    model = load_model(folder, pick_device(options.device))
    data = open_prepared(folder_of_data)
    if data.manifest.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder_of_data}: its tokenizer is larger than the vocabulary of {folder}")
    with Progress(quiet=options.quiet) as progress:
        result = score(model, data.held_out, context_length, options.batch_size, progress)
    lines = [
        f"cross entropy   {result.cross_entropy:8.4f} ± {result.standard_error:.4f} nats a token",
        f"perplexity      {result.perplexity:8.3f}",
        f"bits per byte   {result.bits_per_byte:8.4f}",
        f"scored {result.tokens:,} tokens, {result.bytes:,} bytes of {folder_of_data} (held out), "
        f"in blocks of {context_length:,}",
    ]
    facts = {**vars(result), "model": str(folder), "data": str(folder_of_data), "context_length": context_length}
    _print(facts, lines, as_json=options.json)
    return 0


def generate(options: argparse.Namespace) -> int:
    """`moeut generate`: text to the terminal as it comes."""
    from moeut.experiments.run import model_folder, pick_device
    from moeut.generation.generate import GenerationConfig, load
    from moeut.generation.generate import generate as write
    from moeut.validation import validate

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = validate(GenerationConfig, {name: getattr(options, name) for name in names})
    model = load(model_folder(Path(options.model)), pick_device(options.device))
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
    """`moeut describe`: costs and layer order from the configuration alone."""
    from moeut.config import to_tree
    from moeut.model.cost import cost

    config = _resolve(options).model
    costs = cost(config, options.context_length)
    facts = {**vars(costs), "schedule": config.schedule, "model": to_tree(config)}
    lines = [
        f"parameters         {costs.parameters:>15,}   of which embedding and head {costs.embedding_parameters:,}",
        f"active parameters  {costs.active_parameters:>15,}   met by one token in one pass through each layer",
        f"multiply-adds      {costs.macs_per_token:>15,}   a token, forward, context {options.context_length:,}",
        f"layers             {config.num_hidden_layers:>15,}   executed: {' '.join(map(str, config.schedule))}",
        f"attention          {config.attention.kind:>15}",
        f"feed-forward       {config.feed_forward.kind:>15}",
        f"layer norm         {config.norm:>15}",
    ]
    _print(facts, lines, as_json=options.json)
    return 0


def demo(options: argparse.Namespace) -> int:
    """`moeut demo`: see `moeut.experiments.demo`."""
    from moeut.experiments.demo import demo as run_demo
    from moeut.experiments.demo import report

    result = run_demo(Path(options.out), quiet=options.quiet)
    if result.facts is not None:
        _print(result.facts, report(result.facts), as_json=options.json)
    return _exit_code(result.interrupted_by)
