"""What do the verbs around training do? `train` and `demo`."""

import argparse
from pathlib import Path

from moeut.commands.answers import DEFAULT_PRESET, exit_code, resolved_run, show


def train(options: argparse.Namespace) -> int:
    """`moeut train`: a run folder with checkpoints, metrics and the resolved configuration."""
    from moeut.experiments.run import train as train_run
    from moeut.training.distributed import is_main_process
    from moeut.trees import to_yaml

    config = resolved_run(options)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    how = {name: getattr(options, name) for name in ("device", "parallel", "replicas", "quiet")}
    how["compile"] = "inductor" if options.compile else None
    if options.dry_run:
        from moeut.experiments.dry_run import dry_run, report

        facts = dry_run(config, **how)
        if facts is not None:
            show(facts, report(facts), as_json=options.json)
        return 0
    folder = Path(options.run or f"runs/{options.preset or DEFAULT_PRESET}")
    result = train_run(
        config, folder, resume=options.resume, tensorboard=options.tensorboard, wandb=options.wandb,
        license=options.license, **how,
    )  # fmt: skip
    if not is_main_process():
        return exit_code(result.interrupted_by, tell=False)
    held_out = result.held_out
    lines = [f"{folder}: {result.step:,} of {config.training.num_steps:,} steps"]
    if held_out is not None:
        lines.append(f"  held out: perplexity {held_out.perplexity:.3f}, bits per byte {held_out.bits_per_byte:.4f}")
    facts = {"run": str(folder), "step": result.step, "held_out": held_out and vars(held_out)}
    show(facts, lines, as_json=options.json)
    return exit_code(result.interrupted_by)


def demo(options: argparse.Namespace) -> int:
    """`moeut demo`: see `moeut.experiments.demo`."""
    from moeut.experiments.demo import demo as run_demo
    from moeut.experiments.demo import report

    result = run_demo(Path(options.out), quiet=options.quiet)
    if result.facts is not None:
        show(result.facts, report(result.facts), as_json=options.json)
    return exit_code(result.interrupted_by)
