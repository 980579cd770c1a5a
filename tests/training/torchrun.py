"""How do tests start several ranks? With torchrun, as users do; it takes seconds, so one start serves many checks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def torchrun(
    *command: str | Path, processes: int = 2, timeout_seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a Python program (or `-m`, a module) in so many processes of one thread each."""
    paths = [str(path) for path in (TESTS.parent, TESTS, TESTS / "training")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*start, *map(str, command)], env=environment, timeout=timeout_seconds,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
