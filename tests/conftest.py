"""What do all tests share? Fixed seeds, and where the numbers to compare with lie."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels then run on the CPU. Its interpreter must be asked for before anything imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity",
        metavar="PATH",
        default=str(SHARED / "parity"),
        help="folder with a manifest.json and numbers of the official code to compare with (default: %(default)s)",
    )


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, alone or in company."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny products gain nothing from a second thread, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def nothing_compiled_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `auto` chooses among the expert backends depends on what has been compiled: here, nothing."""
    os.environ["XDG_CACHE_HOME"] = str(shared_by_workers(tmp_path_factory) / "cache")


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The native expert backend, compiled once for all workers, where only those tests find it that ask for it."""
    from moeut.experts import compiling, native

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_by_workers(tmp_path_factory) / "native"))
        if not compiling.compiler():
            pytest.skip("needs a C++ compiler")
        native.library()


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is one for all of xdist's workers in a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def moeut(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    from moeut.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; tests that need it are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"needs reference material at {SHARED}, which is not part of the repository")
    return SHARED
