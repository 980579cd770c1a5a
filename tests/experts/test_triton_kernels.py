"""Do the kernels do what they say, each alone, and does a GPU's compiler take every one that is launched?"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The interpreter of Triton 3.6 does not know numpy 2.4 and later.
pytest.importorskip("triton", minversion="3.6" if torch.cuda.is_available() else "3.7")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_device() -> Iterator[None]:
    """Tensors are made where the kernels run."""
    with torch.device(DEVICE):
        yield


@pytest.mark.parametrize(
    ("counts", "rows"),
    [([3, 0, 16, 17, 0, 1], 16), ([0, 0, 0, 9], 16), ([40, 0], 16), ([0] * 40 + [90, 2], 4), ([8, 8, 0], 8)],
    ids=str,
)
def test_tiles_cover_each_expert_in_order(counts: list[int], rows: int) -> None:
    from moeut.experts import triton_kernels

    E, R = len(counts) - 1, sum(counts)  # the last count is that of the routes without an expert
    offsets = torch.tensor([0, *counts[:-1]]).cumsum(0)
    most = min(R, R // rows + E + 1)
    tiles = torch.full((3, most), -1)
    triton_kernels.tile_kernel[(E + 1,)](offsets, tiles, R, most, E, rows, max(16, 1 << E.bit_length()))
    expected = [
        (expert, begin, min(begin + rows, end))
        for expert, (count, end) in enumerate(zip(counts, torch.tensor(counts).cumsum(0).tolist(), strict=True))
        for begin in range(end - count, end, rows)
    ]
    unneeded = [(E, R, R)] * (most - len(expected))
    assert list(zip(*tiles.tolist(), strict=True)) == expected + unneeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_consecutive_rows(dtype: torch.dtype) -> None:
    from moeut.experts import triton_kernels

    products, y = torch.randn(21, 5), torch.full((7, 9), torch.nan, dtype=dtype)
    triton_kernels.sum_kernel[(1, 1)](products, y, 7, 2, 6, 5, 3, 9, BLOCK_M=16, BLOCK_N=16)
    expected = products.view(7, 3, 5).sum(1)[:, :4]
    torch.testing.assert_close(y[:, 2:6].float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert y[:, :2].isnan().all()
    assert y[:, 6:].isnan().all()


LARGE = ["90 bfloat16 ieee 44m", "80 float16 ieee 244m", "90 float32 tf32 44m", "80 bfloat16 ieee decoding"]


@pytest.mark.parametrize(
    "arguments",
    ["90 bfloat16 ieee feed-forward", *(pytest.param(arguments, marks=pytest.mark.slow) for arguments in LARGE)],
)
def test_every_launch_compiles_for_a_gpu(arguments: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("compile_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(__file__).resolve().parents[2])
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run(
        [sys.executable, str(program), *arguments.split()], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    expected = {"hidden_kernel", "hidden_gradient_kernel", "matrix_gradient_kernel", "route_kernel", "sum_kernel"}
    assert compiled == {"tile_kernel", *expected}
