"""Are tensors and JSON read as they were written, from one file or several, and is everything else refused?"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moeut.model.tensor_files import (
    INDEX,
    WEIGHTS,
    read_all_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.zeros(())}


def shards(folder: Path, weight_map: object = None) -> Path:
    """The tensors in two files, and an index."""
    save_file({"a": TENSORS["a"]}, folder / "one.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "two.safetensors")
    right = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": right if weight_map is None else weight_map})
    return folder


def assert_all(tensors: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(sorted(tensors.items())), TENSORS, rtol=0, atol=0)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / WEIGHTS, TENSORS)
    assert_all(read_tensors(tmp_path / WEIGHTS))
    assert_all(read_all_tensors(tmp_path))
    content = {"a": [1, {"b": None}], "ü": "σ"}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.json", WEIGHTS]


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    assert_all(read_all_tensors(shards(tmp_path)))


def test_one_file_counts_more_than_several(tmp_path: Path) -> None:
    """As for transformers: what an older save left beside it is nothing."""
    write_tensors(shards(tmp_path) / WEIGHTS, {"a": TENSORS["b"]})
    assert read_all_tensors(tmp_path).keys() == {"a"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        read_all_tensors(tmp_path)
    (shards(tmp_path) / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=r"two\.safetensors is missing"):
        read_all_tensors(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [[], "one", {"a": 1}, {"a": None}, {"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {"a": ""}, {"a": ".."}],
)
def test_an_index_that_does_not_name_files_of_its_folder_is_refused(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(ValueError, match="weight_map does not say which file of this folder holds which tensor"):
        read_all_tensors(shards(tmp_path, weight_map))


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    (shards(tmp_path) / INDEX).write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: not a JSON file"):
        read_all_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ValueError, match="weight_map"):
        read_all_tensors(tmp_path)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (shards(tmp_path) / "one.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"one\.safetensors: not a safetensors file") as caught:
        read_all_tensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_tensors(tmp_path / "nowhere" / WEIGHTS, TENSORS)
