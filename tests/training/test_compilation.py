"""Is a compiled model the same model under the same names, and is a missing compiler noticed at once?

Training compiled layers: test_loop.py.
"""

import sys
from importlib.machinery import ModuleSpec

import pytest
import torch
from tiny_run import VOCAB_SIZE, tiny_model
from torch.testing import assert_close

from moeut.model.language_model import LanguageModel
from moeut.training import compilation
from moeut.training.compilation import compile_layers, refuse_without_compiler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_compiled_layers_compute_the_same():
    model = LanguageModel(tiny_model()).double()
    tokens = torch.randint(VOCAB_SIZE, (2, 8))
    names = [name for name, _ in model.named_parameters()]
    expected = model(tokens, tokens)
    expected.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    compile_layers(model, "aot_eager")
    output = model(tokens, tokens)
    output.loss.backward()
    assert_close(output.logits, expected.logits)
    assert_close([parameter.grad for parameter in model.parameters()], gradients)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize(
    ("device", "message"), [(CPU, r"needs the C\+\+ compiler (g|clang)\+\+"), (CUDA, "needs Triton on a GPU")]
)
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, device: torch.device, message: str):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        refuse_without_compiler(device)


# Torch's own, when it loads its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_with_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compilation, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(sys, "platform", "darwin")
    for device in (CPU, CUDA):
        refuse_without_compiler(device)
    compile_layers(LanguageModel(tiny_model()))
