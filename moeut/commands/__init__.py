"""What does each verb of the command line do? One function a verb; each imports what it needs when it runs.

Each takes the options that `moeut.cli` has read, prints its result to stdout, and returns the exit code.
"""

from moeut.commands.analysis import analyse
from moeut.commands.answers import DEFAULT_DATA, DEFAULT_PRESET
from moeut.commands.data import prepare
from moeut.commands.evaluation import evaluate
from moeut.commands.generation import generate, serve
from moeut.commands.models import convert, describe, match
from moeut.commands.reproduction import reproduce
from moeut.commands.training import demo, train

__all__ = [
    "DEFAULT_DATA", "DEFAULT_PRESET",
    "analyse", "convert", "demo", "describe", "evaluate", "generate", "match", "prepare", "reproduce", "serve",
    "train",
]  # fmt: skip
