"""Where there is no GPU, Triton's kernels run on the CPU: its interpreter must be asked for before they are defined."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
