"""Make .venv and install this package with extras into it, in the versions of constraints.txt.

The Makefile calls `python3 .ci/install.py EXTRAS`. It needs nothing but Python. Where this Python can already import a
suitable torch, .venv sees the folder which that torch lies in, and none is downloaded.
"""
# ruff: noqa: T201 - it talks to a terminal, and imports after its first check

import sys

# Above everything that an old Python could not run.
if sys.version_info < (3, 11):  # noqa: UP036
    found = "%d.%d" % sys.version_info[:2]  # noqa: UP031
    sys.exit("moeut needs Python 3.11 or newer, this is " + found + ": name one, as in `make demo PYTHON=python3.12`")

import re
import subprocess
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST_TORCH = (2, 11)


def main(extras: str) -> None:
    """Install the package with `extras`, a comma-separated list; leave the process with pip's exit code if it fails."""
    if not works(PYTHON, f"import pip, sys; assert sys.version_info[:2] == {sys.version_info[:2]}"):
        print(f"Making .venv with Python {sys.version.split()[0]}", flush=True)
        run(sys.executable, "-m", "venv", "--clear", VENV)
    constraints = ROOT / "constraints.txt"
    torch = torch_at_hand()
    if torch is not None:
        version, folder = torch
        print(f"Using torch {version} of {folder}", flush=True)
        constraints = share(version, folder, constraints.read_text())
    print(f"Installing moeut[{extras}] into .venv: some minutes when torch has to be downloaded", flush=True)
    pip = (PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    run(*pip, "--constraint", constraints, "--editable", f"{ROOT}[{extras}]")


def torch_at_hand() -> tuple[str, Path] | None:
    """Version and folder of the torch that this Python can import, or None if there is none or it is too old."""
    # Its metadata answers in milliseconds; only a torch of the right age is worth a real import.
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        return None
    return (version, Path(spec.origin).parent.parent) if works(sys.executable, "import torch") else None


def share(version: str, folder: Path, constraints: str) -> Path:
    """Let .venv see `folder`, behind its own packages; return a copy of the constraints with that torch's version.

    A torch for GPUs brings the triton that it works with: its version is kept too.
    """
    # A .pth file also reaches the torch of an active virtual environment; --system-site-packages would not.
    site_packages = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site_packages / "torch_at_hand.pth").write_text(f"{folder}\n")
    derived = VENV / "constraints.txt"
    constraints = re.sub(r"(?m)^torch==.*$", f"torch=={version}", constraints)
    for triton in metadata.distributions(name="triton", path=[str(folder)]):
        constraints = re.sub(r"(?m)^triton==.*$", f"triton=={triton.version}", constraints)
    derived.write_text(constraints)
    return derived


def works(python: Path | str, statement: str) -> bool:
    """Whether that Python exists and runs the statement."""
    try:
        return subprocess.run([python, "-c", statement], capture_output=True).returncode == 0
    except OSError:
        return False


def run(*command: Path | str) -> None:
    """Run a command and leave with its exit code if it fails; it has said why itself."""
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
