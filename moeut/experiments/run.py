"""How does a configuration become a run? Its parts are built and handed to the loop.

RUN/config.yaml     the resolved configuration
RUN/metrics.jsonl   see `moeut.training.report`
RUN/checkpoints/    see `moeut.training.checkpoint`
RUN/final           → the last checkpoint
"""

from pathlib import Path

import torch

from moeut.config import RunConfig, differences, read_yaml, to_tree, to_yaml
from moeut.data.sampler import Batches, Blocks
from moeut.data.tokens import PreparedData, open_prepared
from moeut.evaluation.perplexity import Perplexity, evaluate
from moeut.experts import resolve_backend
from moeut.files import held_by_one_process, replacing
from moeut.model.folder import CONFIG
from moeut.model.language_model import LanguageModel
from moeut.training import loop
from moeut.training.checkpoint import Checkpointer, checkpoints
from moeut.training.loop import TrainingResult
from moeut.training.optimizer import build_optimizer
from moeut.training.progress import Progress
from moeut.training.random_state import seed_all
from moeut.training.report import Reporter
from moeut.validation import validate

RUN_CONFIG = "config.yaml"


def train(
    config: RunConfig, run: Path, *, resume: str = "auto", device: str = "auto", quiet: bool = False
) -> TrainingResult:
    """Train in the folder `run`, or go on there after an interruption.

    resume: `auto` goes on from the newest complete checkpoint of this run if there is one; `never` refuses a folder
    that has one. device: see `pick_device`. A finished run is evaluated again and left as it is.

    Raises ValueError, one line a mistake, where the data is missing, damaged or too short, its tokenizer is larger than
    the model's vocabulary, the folder belongs to another configuration, or another process trains in it.
    """
    chosen = pick_device(device)
    data = open_for(config)
    blocks = Blocks(data.train, config.training.context_length)
    claim(run, config, resume)
    seed_all(config.training.seed)
    model = LanguageModel(config.model).to(chosen)
    optimizer = build_optimizer(model, config.training.optimizer)
    training = config.training
    with (
        held_by_one_process(run),
        Progress(quiet=quiet) as progress,
        Reporter(
            run, progress, num_steps=training.num_steps, every=training.report_every_steps,
            tokens_per_step=training.batch_size * training.context_length,
        ) as reporter,
    ):  # fmt: skip
        parameters = sum(parameter.numel() for parameter in model.parameters())
        backend = resolve_backend(config.model.expert_backend, chosen)
        progress.say(f"{run}: {parameters:,} parameters on {chosen}, expert backend {backend}")
        checkpointer = Checkpointer(
            run, model, optimizer, keep=training.keep_checkpoints, notice=reporter.notice,
            tokenizer_folder=data.folder, end_of_document_id=data.manifest.end_of_document_id,
        )  # fmt: skip

        def score() -> Perplexity:
            return evaluate(model, data.held_out, training.context_length, training.batch_size, progress)

        return loop.train(
            training,
            model,
            Batches(blocks, training.batch_size, training.seed),
            optimizer,
            score,
            reporter,
            checkpointer,
        )


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` is a CUDA GPU where there is one, otherwise the CPU (`mps` only when asked for).

    Raises ValueError where there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device: {name!r} cannot be used here; leave it out, or say cpu, cuda or mps") from None
    return device


def open_for(config: RunConfig) -> PreparedData:
    """The prepared folder of a run. Raises ValueError if it is none or its tokenizer is too large for the model."""
    data = open_prepared(config.data)
    if data.manifest.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{config.data}: its tokenizer has {data.manifest.vocab_size:,} tokens, more than model.vocab_size "
            f"{config.model.vocab_size:,}; raise that, or prepare the text with --vocab-size {config.model.vocab_size}"
        )
    return data


def claim(run: Path, config: RunConfig, resume: str) -> None:
    """Make the run folder with its `config.yaml`, or find that it is this configuration's.

    Raises ValueError if it belongs to another configuration (and says what differs), or has checkpoints that `resume`
    forbids to go on from.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"--resume: {resume!r} is neither auto nor never")
    file = run / RUN_CONFIG
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: a file is in the way; choose another run folder")
    if resume == "never" and checkpoints(run):
        raise ValueError(f"{run}: has checkpoints already; choose another run folder, or --resume auto to go on")
    if file.exists():
        changed = differences(to_tree(validate(RunConfig, read_yaml(file))), to_tree(config))
        if changed:
            raise ValueError(
                f"{run}: belongs to another configuration ({'; '.join(changed)}); choose another run folder with --run"
            )
        return
    if checkpoints(run):
        raise ValueError(f"{run}: has checkpoints but no {RUN_CONFIG}; choose another run folder with --run")
    run.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(to_yaml(config), encoding="utf-8")


def model_folder(path: Path) -> Path:
    """The model folder that a user means: the folder itself, or the last checkpoint of a run folder.

    Raises ValueError where it is neither.
    """
    for folder in (path, path / "final"):
        if (folder / CONFIG).is_file():
            return folder
    if (path / RUN_CONFIG).is_file():
        raise ValueError(f"{path}: this run has no checkpoint yet; train it first")
    raise ValueError(f"{path}: no model here ({CONFIG} is missing); name a model folder or a run folder")


def run_of(folder: Path) -> RunConfig | None:
    """The configuration of the run that a model folder lies in, or None."""
    for parent in folder.resolve().parents:
        if (parent / RUN_CONFIG).is_file():
            return validate(RunConfig, read_yaml(parent / RUN_CONFIG))
    return None
