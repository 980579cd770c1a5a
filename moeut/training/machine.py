"""What does the machine give? Memory that is free, memory that was used, and how fast it could compute at best."""

import os
import resource
from pathlib import Path

import torch

from moeut.training.precision import Precision

STATUS = Path("/proc/self/status")
INFORMATION = Path("/proc/meminfo")

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Products and sums a second of dense 16-bit matrix products, from the makers' data sheets, by part of a GPU's name;
the first that fits counts."""


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The most products and sums a second that a device is said to do in a precision; None where it is not known."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory there was in use so far: PyTorch's on a GPU, otherwise the whole process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        return _kibibytes(STATUS, "VmHWM")
    # macOS counts bytes here. On Linux this would include what the parent process had in use when it started us.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory_bytes(device: torch.device) -> int:
    """The memory that can still be had: of the GPU, or of the machine within the limit that was set for the process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(filter(None, (_available_bytes(), _left_in_control_group())))


def _available_bytes() -> int:
    if INFORMATION.exists():
        return _kibibytes(INFORMATION, "MemAvailable")
    # Where the system does not say how much is free, half of what there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _kibibytes(file: Path, name: str) -> int:
    """A line of a file in /proc, such as `VmHWM: 1234 kB`, in bytes."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _left_in_control_group() -> int | None:
    """What a container may still use, or None where nothing limits it."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
