"""How do tests start several ranks? With torchrun, as users do; it takes seconds, so one start serves many checks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def torchrun(
    *command: str | Path, processes: int = 2, timeout_seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a Python program (or `-m`, a module) in so many processes of one thread each."""
    with torchrun_process(*command, processes=processes) as process:
        out, err = process.communicate(timeout=timeout_seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def torchrun_process(*command: str | Path, processes: int = 2) -> Iterator[subprocess.Popen[str]]:
    """The same while it runs; none of its processes outlives the context."""
    paths = [str(path) for path in (TESTS.parent, TESTS, TESTS / "training")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    process = subprocess.Popen(
        [*start, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # torchrun ends its ranks, which are in sessions of their own.
            process.terminate()
            process.communicate()
