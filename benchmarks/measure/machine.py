"""What do all benchmarks need? The machine by its name, and how long something takes."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median


def hardware() -> str:
    """The processor by its name, and how many of it there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def conditions(threads: int, clock: str) -> str:
    """What else decides how long a computation of torch's takes, and when it was measured."""
    return (
        f"{hardware()}, {threads} threads, {clock} time, Python {platform.python_version()}, "
        f"torch {metadata.version('torch')}, {datetime.now(UTC):%Y-%m-%d}"
    )


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What a benchmark may measure in: seconds that pass, or seconds of processor time of all threads together."""


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long `run` takes."""
    start = clock()
    run()
    return clock() - start


def medians(
    runs: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each run, which take turns; the first turn warms up."""
    taken = [{name: seconds(run, clock) for name, run in runs.items()} for _ in range(repetitions + 1)][1:]
    return {name: median(turn[name] for turn in taken) for name in runs}
