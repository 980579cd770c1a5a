"""What can one type? The verbs and their options; what they do is in `moeut.commands`.

Results go to stdout (`--json` for machines), progress and notes to stderr. What the user got wrong is one line a
mistake and exit code 2; Ctrl-C ends with 130.
"""

import argparse
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import moeut
from moeut.commands import (
    DEFAULT_DATA,
    DEFAULT_PRESET,
    analyse,
    convert,
    demo,
    describe,
    evaluate,
    generate,
    match,
    prepare,
    reproduce,
    serve,
    train,
)

NAMED_MODEL = "a preset, a YAML file, a model folder or a run folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for the user's mistakes, 130 and 143 when interrupted."""
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else arguments
    options, rest = parser.parse_known_args(list(_attached(words)))
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

    def repeats(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--repeats", type=int, metavar="N", help="run shared layers N times (default: as in training)")

    sub = verb("prepare", prepare, "Turn text into a folder of tokens to train on; goes on where it was interrupted.")
    sub.set_defaults(takes_overrides=True)
    sub.add_argument(
        "paths", nargs="*", metavar="PATH",
        help="text files, .jsonl, Parquet or folders of them, each a source; without any, and without a recipe, the "
        "source code of Python's standard library",
    )  # fmt: skip
    sub.add_argument("--recipe", metavar="NAME", help="a named corpus, such as c4, or a YAML file that describes one")
    sub.add_argument("--out", metavar="DIR", help=f"folder to write (default data/NAME, or {DEFAULT_DATA})")
    sub.add_argument("--vocab-size", type=int, metavar="N", help="size of the new tokenizer (default 4096)")
    sub.add_argument(
        "--tokenizer", metavar="NAME",
        help="bpe or unigram to train one, bytes for none, or an existing one: a folder, a file, a name on the Hub",
    )  # fmt: skip
    sub.add_argument("--held-out", type=float, metavar="SHARE", help="share never trained on (default 0.05)")
    sub.add_argument("--max-tokens", type=_count, metavar="N", help="stop at so many tokens, such as 1e9")
    sub.add_argument("--mixing", metavar="HOW", help="several sources: in_order (default), by weight in tokens, files")
    sub.add_argument("--text-column", metavar="NAME", help="field of JSON lines, column of Parquet (default text)")
    sub.add_argument("--errors", metavar="strict|replace", help="replace: go on over what is not text")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder that holds something else")
    sub.add_argument("--print-recipe", action="store_true", help="print the resolved recipe as YAML and stop")
    sub.add_argument("--inspect", type=Path, metavar="DIR", help="show what a prepared folder, or that of a run, holds")
    sub.epilog = (
        "Any setting of a recipe can be given by its dotted name, such as --held_out.share 0.1 or --sources.0.weight 2."
    )

    sub = verb("train", train, "Train a model on a prepared folder; goes on where an interrupted run stopped.")
    _configuration_options(sub)
    sub.add_argument("--data", metavar="DIR", help=f"prepared folder (default {DEFAULT_DATA})")
    sub.add_argument(
        "--run", "--run-folder", dest="run", metavar="DIR",
        help="run folder (default runs/PRESET); torchrun takes --run for its own, so there say --run-folder",
    )  # fmt: skip
    sub.add_argument(
        "--resume", default="auto", metavar="auto|never",
        help="auto: go on from the newest complete checkpoint; never: refuse a folder that has one (%(default)s)",
    )  # fmt: skip
    sub.add_argument("--init-from", metavar="MODEL", help="begin with the weights of this model or run folder")
    device(sub)
    sub.add_argument(
        "--parallel", default="auto", metavar="auto|ddp|fsdp",
        help="under torchrun: every process holds the whole model (ddp), or a part of it (fsdp) (%(default)s: ddp)",
    )  # fmt: skip
    sub.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="with fsdp: so many whole models (%(default)s)"
    )
    sub.add_argument("--compile", action="store_true", help="compile the layers with torch.compile")
    sub.add_argument("--tensorboard", action="store_true", help="curves for TensorBoard in RUN/tensorboard")
    sub.add_argument(
        "--wandb", nargs="?", const="moeut", metavar="PROJECT", help="curves on Weights & Biases (project %(const)s)"
    )
    sub.add_argument("--license", metavar="NAME", help="licence that the model card states, such as mit (default none)")
    sub.add_argument(
        "--dry-run", action="store_true", help="print sizes, memory and the time it will take, write nothing, and stop"
    )
    sub.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML and stop")

    sub = verb("evaluate", evaluate, "Models on held-out text, or on the paper's zero-shot tasks; two item by item.")
    sub.add_argument(
        "models", metavar="MODEL", nargs="*",
        help="a model folder or a run folder, ours or of transformers, or OWNER/NAME on the Hub; several for one table",
    )  # fmt: skip
    sub.add_argument(
        "--data", metavar="PATH", action="append",
        help="a prepared folder or text files, may be repeated (default: what the run was trained on, held out)",
    )  # fmt: skip
    sub.add_argument("--by-source", action="store_true", help="each source of a prepared folder apart")
    sub.add_argument(
        "--context-length", type=_positive, metavar="N",
        help="tokens a block, and of the longest input of a task (default: as in training)",
    )  # fmt: skip
    sub.add_argument("--stride", type=_positive, metavar="N", help="slide a window, N tokens a time, instead of blocks")
    sub.add_argument("--tasks", metavar="NAMES", help="of lambada,blimp,cbt,hellaswag,piqa,arc_easy, with commas")
    sub.add_argument("--task-data", type=Path, metavar="DIR", help="where their items lie (default: on the Hub)")
    sub.add_argument("--scoring", default="both", metavar="NAME", help="of tasks: lm-eval, paper or both (%(default)s)")
    sub.add_argument("--limit", type=_positive, metavar="N", help="only the first N items of each set of a task")
    sub.add_argument("--samples", type=Path, metavar="FILE", help="write what came of each item, a line of JSON each")
    sub.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="say which of two models is better, from such files"
    )
    sub.add_argument("--batch-size", type=_positive, default=8, metavar="N",
        help="blocks at a time; of tasks: so many times 256 tokens (%(default)s)",
    )  # fmt: skip
    sub.add_argument("--dtype", metavar="NAME", help="of the weights (default: as saved, but at least float32)")
    sub.add_argument(
        "--format", default="markdown", choices=["markdown", "csv", "json"], help="of the table (%(default)s)"
    )
    sub.add_argument("--output", type=Path, metavar="DIR", help="where records go (default: MODEL/evaluation)")
    repeats(sub)
    device(sub)

    sub = verb("analyse", analyse, "Look inside a model, or two side by side: which experts, when, for which token.")
    sub.add_argument("models", metavar="MODEL", nargs="+", help="one or two model folders or run folders")
    sub.add_argument(
        "--data", metavar="PATH", action="append",
        help="a prepared folder or text files, may be repeated (default: what the first run was trained on, held out)",
    )  # fmt: skip
    sub.add_argument("--by-source", action="store_true", help="each source of a prepared folder, and each file, apart")
    sub.add_argument(
        "--tokens", type=_positive, default=1_000_000, metavar="N", help="read at most so many (%(default)s)"
    )
    sub.add_argument("--context-length", type=_positive, metavar="N", help="tokens a block (default: as in training)")
    sub.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="blocks at a time (%(default)s)")
    sub.add_argument("--out", type=Path, default=Path("analysis"), metavar="DIR", help="folder to write (%(default)s)")
    repeats(sub)
    device(sub)

    sub = verb("generate", generate, "Continue a prompt.")
    sub.add_argument("model", metavar="MODEL", help="a model folder or a run folder")
    sub.add_argument(
        "prompt", metavar="PROMPT", nargs="?",
        help="text to continue, - for what comes from stdin; without it, at a terminal, you are asked for prompts, and "
        "elsewhere a document begins",
    )  # fmt: skip
    sub.add_argument("--interactive", action="store_true", help="ask for prompts; Ctrl-C stops a text, Ctrl-D all")
    sub.add_argument("--num-return-sequences", type=_positive, default=1, metavar="N", help="texts (%(default)s)")
    sub.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="(%(default)s)")
    sub.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (%(default)s)")
    sub.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    sub.add_argument(
        "--top-p", type=float, metavar="P", help="choose among the likeliest that hold P of the probability"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text (%(default)s)")
    repeats(sub)
    device(sub)

    sub = verb("serve", serve, "Answer over HTTP, as OpenAI's API does (needs the extra [serve]).")
    sub.add_argument("model", metavar="MODEL", help="a model folder or a run folder")
    sub.add_argument("--host", default="127.0.0.1", metavar="NAME", help="where to listen (%(default)s)")
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="(%(default)s)")
    repeats(sub)
    device(sub)

    sub = verb("describe", describe, "What models are: parameters, multiply-adds, bytes, layers; several side by side.")
    sub.add_argument("models", metavar="MODEL", nargs="*", help=f"{NAMED_MODEL} (default: --preset and --config)")
    _configuration_options(sub)
    _context_option(sub)
    sub.add_argument("--dtype", default="float32", metavar="NAME", help="of weights and activations (%(default)s)")

    sub = verb("match", match, "Give a variant as many experts, or as wide an MLP, as makes it cost what another does.")
    sub.set_defaults(takes_overrides=True)
    sub.add_argument("variant", metavar="VARIANT", help=f"what to adapt: {NAMED_MODEL}")
    sub.add_argument("--to", metavar="MODEL", help="the model to be met")
    sub.add_argument(
        "--by", default="parameters", choices=["parameters", "macs", "both"],
        help="what of it to meet: its parameters (default), its multiply-adds a token, or both",
    )  # fmt: skip
    sub.add_argument("--parameters", type=_count, metavar="N", help="so many parameters, such as 44e6")
    sub.add_argument("--macs", type=_count, metavar="N", help="so many multiply-adds a token")
    _context_option(sub)
    sub.add_argument("--output", type=Path, metavar="FILE", help="write the configuration as YAML")

    sub = verb("convert", convert, "Make a model folder of an official checkpoint, or official weights of a model.")
    sub.set_defaults(takes_overrides=True)
    sub.add_argument(
        "source", metavar="SOURCE",
        help="a checkpoint of the official training code (.ckpt, .pth), or official:NAME to fetch one; a state dict of "
        "the official release (.pt, .pth, .safetensors); with --to official: a model folder or a run folder",
    )  # fmt: skip
    sub.add_argument("out", metavar="OUT", help="folder to write; with --to official: a .pt or .safetensors file")
    sub.add_argument("--tokenizer", metavar="NAME", help="a SentencePiece .model, another file, a folder, a Hub name")
    sub.add_argument("--config", metavar="MODEL", help=f"whose weights a state dict holds: {NAMED_MODEL}")
    sub.add_argument("--to", default="moeut", choices=["moeut", "official"], help="what to make (%(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace a model that is there")

    sub = verb("reproduce", reproduce, "The paper's figures and tables as runs, at any scale, and what came of them.")
    sub.add_argument("study", metavar="NAME", nargs="?", help="of a figure or table, such as scaling; see --list")
    sub.add_argument("--list", action="store_true", help="say which figures and tables there are")
    sub.add_argument(
        "--scale", default="tiny", metavar="NAME",
        help="tiny: minutes on two cores; small: hours; paper: its models and its training (%(default)s)",
    )  # fmt: skip
    sub.add_argument("--out", metavar="DIR", help="folder of text, runs and reports (default reproduce/SCALE)")
    sub.add_argument(
        "--data", metavar="TEXT",
        help="learn this in place of the scale's own text: a prepared folder, files, a recipe's name (default: the "
        "source code of Python's standard library; for paper: C4 and the others, from the Hub)",
    )  # fmt: skip
    sub.add_argument("--seeds", type=_positive, default=1, metavar="N", help="runs of each model (%(default)s)")
    sub.add_argument(
        "--learning-rates", type=_rate, nargs="+", metavar="RATE",
        help="try each of these for every model, and give the further seeds the best (default: the scale's own)",
    )  # fmt: skip
    sub.add_argument("--only", nargs="+", metavar="RUN", help="only runs of these names; * stands for anything")
    sub.add_argument("--dry-run", action="store_true", help="print sizes and the time it will take, and stop")
    sub.add_argument("--commands", action="store_true", help="print a command for each run, for a job array, and stop")
    sub.add_argument(
        "--takeover", action="store_true", help="go on with runs whose process has died here without giving them back"
    )
    sub.add_argument("--task-data", type=Path, metavar="DIR", help="where items of tasks lie (default: on the Hub)")
    sub.add_argument("--processes", type=_positive, default=1, metavar="N", help="that train each run (%(default)s)")
    device(sub)

    sub = verb("demo", demo, "The whole path on Python's standard library: prepare, train, evaluate, compare, sample.")
    sub.add_argument("--out", default="demo", metavar="DIR", help="folder to write (%(default)s)")
    return parser


def _context_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--context-length", "--context", type=_positive, default=1024, metavar="N",
        help="tokens of context, for multiply-adds (%(default)s)",
    )  # fmt: skip


def _configuration_options(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(takes_overrides=True)
    sub.add_argument("--preset", metavar="NAME", help=f"named model and training (default {DEFAULT_PRESET})")
    sub.add_argument("--config", type=Path, metavar="FILE", help="YAML laid over the preset")
    sub.epilog = (
        "Any setting can be given by its dotted name, such as --model.group_size 2 or --training.num_steps 100."
    )


def _attached(words: Sequence[str]) -> Iterator[str]:
    """The same words, `--a.b value` as `--a.b=value`: argparse, which does not know --a.b, takes `value` for a path."""
    left = deque(words)
    while left:
        word = left.popleft()
        if re.fullmatch(r"--[^=.]+\.[^=]*", word) and left and not left[0].startswith("--"):
            word = f"{word}={left.popleft()}"
        yield word


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


def _positive(text: str) -> int:
    """A whole number above 0."""
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("0 is not above 0")
    return number


def _rate(text: str) -> float:
    """A number above 0."""
    try:
        if 0 < (number := float(text)) < float("inf"):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, such as 1e-3")


def _count(text: str) -> int:
    """A whole number, which may be written as 1e9."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d+)?e\d+", text) and float(text).is_integer():
        return int(float(text))
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, such as 1000000000 or 1e9")
