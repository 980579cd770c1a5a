"""How are the files of a model folder written and read? JSON, and tensors in one file or in several.

model.safetensors              all tensors, as we write them, or
model.safetensors.index.json   `weight_map`: tensor → file, as transformers writes large models, beside
model-00001-of-00003.safetensors …
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeut.files import replacing

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_json(path: Path, content: object) -> None:
    """Write JSON, all at once."""
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises ValueError, one line, if the file is missing or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent}: {path.name} is missing; this is no model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, all at once. Raises OSError where they cannot be written."""
    with replacing(path) as file:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"}
            )
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors. Raises ValueError, one line, if the file is missing or is something else."""
    try:
        return load_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent}: {path.name} is missing; this is no whole model folder") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None


def read_all_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, from one file or several. Raises ValueError as `read_tensors` does."""
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return read_tensors(folder / WEIGHTS)
    tensors: dict[str, Tensor] = {}
    for name in _files_in(index):
        tensors |= read_tensors(folder / name)
    return tensors


def _files_in(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    # Only files of this folder: an index may come from anywhere.
    if not all(isinstance(file, str) and re.fullmatch(r"[^/\\]+\.safetensors", file) for file in files):
        raise ValueError(f"{index}: weight_map does not say which file of this folder holds which tensor")
    return sorted(set(files))
