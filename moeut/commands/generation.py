"""What do the verbs around generation do? `generate` and `serve`."""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

from moeut.commands.answers import exit_code


def generate(options: argparse.Namespace) -> int:
    """`moeut generate`: text to the terminal as it comes, after prompts of the command line, of stdin, or asked for."""
    from dataclasses import replace

    from moeut.experiments.matching import longer_than_trained
    from moeut.experiments.run_folder import model_folder, run_of
    from moeut.generation.generate import GenerationConfig, load
    from moeut.generation.generate import generate as write
    from moeut.generation.interactive import converse
    from moeut.training.distributed import pick_device
    from moeut.validation import validate

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    settings = validate(GenerationConfig, {name: getattr(options, name) for name in names})
    if options.interactive and options.prompt is not None:
        raise ValueError("--interactive asks for prompts: leave out PROMPT")
    folder = model_folder(Path(options.model))
    run = run_of(folder)
    model = load(folder, pick_device(options.device), options.repeats)

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    def continue_text(prompt: str, number: int) -> None:
        sampled = replace(settings, seed=(settings.seed + number) % 2**64)
        if options.json:
            print(json.dumps({"prompt": prompt, "text": write(model, prompt, sampled)}), flush=True)
            return
        show(prompt)
        write(model, prompt, sampled, show)
        print()

    def respond(prompt: str, number: int) -> None:
        if run is not None and (warning := longer_than_trained(prompt, model.tokenizer, run)):
            print(f"moeut: warning: {warning}", file=sys.stderr)
        for sample in range(options.num_return_sequences):
            if sample and not options.json:
                print()
            continue_text(prompt, number * options.num_return_sequences + sample)

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not options.json
    if options.interactive or (options.prompt is None and at_terminal):
        with suppress(ImportError):
            import readline  # noqa: F401 (lines can then be edited and recalled)
        converse(lambda: input("" if options.json else "> "), respond, print)
    else:
        respond(_stdin() if options.prompt == "-" else options.prompt or "", 0)
    return 0


def serve(options: argparse.Namespace) -> int:
    """`moeut serve`: a model behind OpenAI's API, until Ctrl-C or SIGTERM."""
    import logging

    from moeut.experiments.run_folder import model_folder
    from moeut.generation.serve import serve as run_server
    from moeut.training.distributed import pick_device
    from moeut.training.interruption import signal_of, sigterm_interrupts

    if options.quiet:
        logging.disable(logging.WARNING)
    try:
        with sigterm_interrupts():
            run_server(
                model_folder(Path(options.model)), options.host, options.port, pick_device(options.device),
                options.repeats, notice=lambda line: print(f"moeut: {line}", file=sys.stderr),
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        return exit_code(signal_of(interrupt), tell=False)
    return 0


def _stdin() -> str:
    """All of stdin, without the line end that `echo` puts at its end."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise ValueError("-: what comes from stdin is not UTF-8 text") from None
