"""A `moeut train` command that takes a second, as words."""

from pathlib import Path

from moeut.cli import main


def tiny_command(folder: Path, **training: int) -> list[str]:
    """Prepare a small text in `folder`; the words that train on it, without those that name the run."""
    text, data = folder / "text", folder / "data"
    text.mkdir()
    for index in range(20):
        (text / f"{index}.txt").write_text(f"{index} bottles of beer on the wall, {index} bottles of beer.\n" * 20)
    assert main(["prepare", str(text), "--out", str(data), "--tokenizer", "bytes", "--held-out", "0.2", "--quiet"]) == 0
    settings = {"num_steps": 4, "batch_tokens": 256, "context_length": 32, "schedule.warmup_steps": 1} | training
    words = [word for name, value in settings.items() for word in (f"--training.{name}", str(value))]
    return ["train", "--preset", "nano", "--data", str(data), "--device", "cpu", "--quiet", *words]
