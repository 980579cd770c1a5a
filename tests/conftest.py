"""What do all tests share? Fixed seeds, and where the numbers to compare with lie."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; tests that need it are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"needs reference material at {SHARED}, which is not part of the repository")
    return SHARED
