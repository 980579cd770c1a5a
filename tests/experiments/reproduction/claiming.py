"""A process that claims: python claiming.py FOLDER hold|inherit|work. See test_claims.py."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from moeut.experiments.reproduction.claims import TakenError, claimed


def hold(folder: Path) -> None:
    """Claim, say so, and stay."""
    with claimed(folder):
        sys.stdout.write("claimed\n")
        sys.stdout.flush()
        time.sleep(60)


def inherit(folder: Path) -> None:
    """Claim, hand the lock to a child that stays, say its number, and die without giving anything back."""
    with claimed(folder) as lock:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock,))
        sys.stdout.write(f"{child.pid}\n")
        sys.stdout.flush()
        os.kill(os.getpid(), 9)


def work(folder: Path) -> None:
    """Do twenty things, each if nobody else has done it or is at it; a thing that is done twice is an error."""
    for number in [*range(20), *range(20)]:
        with suppress(TakenError), claimed(folder / str(number)):
            if not (folder / f"done-{number}").exists():
                (folder / f"begun-{number}").mkdir()  # FileExistsError, if somebody else is at it
                time.sleep(0.002)
                (folder / f"done-{number}").touch()


if __name__ == "__main__":
    {"hold": hold, "inherit": inherit, "work": work}[sys.argv[2]](Path(sys.argv[1]))
