"""How does C++ of ours become a library that Python can call? Compiled on this machine, once, and kept.

`torch.utils.cpp_extension` would ask users for ninja and compile torch's headers for most of a minute; our source needs
nothing of torch, and the compiler is called directly.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

# Without traps a choice between two numbers needs no jump; infinities and NaN stay what they are.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


def library_path(source: Path) -> Path:
    """Where the library made of this source, and the headers beside it, is kept for this processor.

    In $XDG_CACHE_HOME/moeut or ~/.cache/moeut. It is another file when any of these is another.
    """
    folder = Path(os.environ["XDG_CACHE_HOME"]) if "XDG_CACHE_HOME" in os.environ else Path.home() / ".cache"
    return folder / "moeut" / f"{source.stem}-{_fingerprint(source)}.so"


def compiler() -> str | None:
    """The C++ compiler of this machine, if there is one."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def compile_library(source: Path, notice: Callable[[str], None]) -> Path:
    """Compile a library unless it is there, and say so; two processes may do it at once. Returns its path.

    Raises ValueError, one line, where there is no compiler or it fails.
    """
    path = library_path(source)
    if path.is_file():
        return path
    command = compiler()
    if command is None:
        raise ValueError("no C++ compiler was found (c++, g++ or clang++): install one")
    notice(f"compiling {source.name} for this processor: once, less than a minute")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(
            [command, *_FLAGS, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise ValueError(f"{command} could not compile {source.name}: {reason}")
        _load(made)
        made.replace(path)
    return path


def load_library(source: Path, notice: Callable[[str], None]) -> ctypes.CDLL:
    """The library made of a source, compiled if it is not there. Raises ValueError as `compile_library`."""
    return _load(compile_library(source, notice))


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be loaded ({error}): delete it to have it compiled again") from None


def to_stderr(line: str) -> None:
    """Say a line where it does not mix with results."""
    sys.stderr.write(f"{line}\n")


@cache
def _fingerprint(source: Path) -> str:
    files = (source, *sorted(source.parent.glob("*.h")))
    known = (*(file.read_text(encoding="utf-8") for file in files), *_FLAGS, _processor())
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do, as far as this system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
