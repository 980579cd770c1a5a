"""How is a model compiled? Layer by layer: the few that are repeated, not the deep stack that they are unrolled to."""

import shutil
import sys
import warnings
from importlib.util import find_spec

import torch

from moeut.model.language_model import LanguageModel


def compile_layers(model: LanguageModel, backend: str = "inductor") -> None:
    """Have every layer compiled when it first runs. Its parameters keep their names.

    backend: of `torch.compile`; `aot_eager` needs no compiler, `inductor` does (`refuse_without_compiler`).
    """
    # The compiler looks at the gradient of whatever it is given, and torch warns of that.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for layer in model.stack.layers:
        layer.compile(backend=backend)


def refuse_without_compiler(device: torch.device) -> None:
    """Raise ValueError where torch's own compiler lacks the one that it hands its code to."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError("--compile: needs Triton on a GPU: pip install triton, or leave --compile out")
        return
    name = "clang++" if sys.platform == "darwin" else "g++"
    if shutil.which(name) is None:
        raise ValueError(f"--compile: needs the C++ compiler {name}, which is not installed; leave --compile out")
