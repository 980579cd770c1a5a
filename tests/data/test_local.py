"""Files of this machine: which are found, in which order, and what is said when there are none."""

import gzip
from pathlib import Path

import pytest

from moeut.data.local import find_files, standard_library
from moeut.data.sources import read_documents


def names(found_in: Path, *paths: Path | str) -> list[str]:
    return [file.path.relative_to(found_in).as_posix() for file in find_files(paths)]


def write(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if path.name.startswith("empty") else name)


def test_a_folder_is_searched_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, "z.txt", "b/code.py", "a.md", ".hidden.txt", ".git/config.txt", "picture.png", "empty.txt")
    write(tmp_path, "lines.jsonl", "b/lines.jsonl.zst", "rows.parquet", "rows.arrow", "package.json", "c4.json.gz")
    assert names(tmp_path, tmp_path) == [
        "a.md",
        "c4.json.gz",
        "lines.jsonl",
        "rows.arrow",
        "rows.parquet",
        "z.txt",
        "b/code.py",
        "b/lines.jsonl.zst",
    ]


def test_globs(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "data/b.jsonl.gz", "data/x/a.jsonl.gz", "data/x/c.txt", "data/empty.jsonl.gz", "[1].txt")
    assert names(tmp_path, f"{tmp_path}/data/**/*.jsonl.gz") == ["data/b.jsonl.gz", "data/x/a.jsonl.gz"]
    assert names(tmp_path, tmp_path / "*.txt") == ["[1].txt", "a.txt"]
    assert names(tmp_path, tmp_path / "[1].txt") == ["[1].txt"]  # a file that is there is no glob
    assert names(tmp_path, tmp_path / "*", tmp_path / "data" / "x" / "?.txt") == ["[1].txt", "a.txt", "data/x/c.txt"]
    with pytest.raises(ValueError, match=r"data/\*\.parquet: no file matches"):
        find_files([tmp_path / "data/*.parquet"])


def test_missing_empty_and_textless_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.txt: no such file or folder"):
        find_files([tmp_path / "nothing.txt"])
    with pytest.raises(ValueError, match="no text files in this folder"):
        find_files([tmp_path])
    write(tmp_path, "empty.txt")
    with pytest.raises(ValueError, match=r"empty\.txt: the file is empty"):
        find_files([tmp_path / "empty.txt"])
    with pytest.raises(ValueError, match="no text files in this folder"):
        find_files([tmp_path])


def test_stamps_and_identities(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one", mtime=0))
    (file,) = find_files([path])
    stamp, identity = file.stamp(), file.identity()
    assert (file.stamp(), file.identity()) == (stamp, identity)
    assert file.size == path.stat().st_size
    path.write_bytes(gzip.compress(b"another", mtime=0))
    assert file.stamp() != stamp
    assert file.identity() != identity


def test_the_standard_library_is_there_and_names_no_place() -> None:
    files = standard_library()
    names = [file.name for file in files]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not any(name.startswith(("/", "test/", "idlelib/", "encodings/", "site-packages/")) for name in names)
    assert names == [file.name for file in standard_library()]
    assert 4_000_000 < sum(file.size for file in files) < 30_000_000


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    texts = [f"document {i}" for i in range(30)]
    data = datasets.Dataset.from_dict({"text": texts, "n": list(range(30))})
    data.save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "cache-0.arrow").write_bytes(b"not part of it")
    assert [document.text for document in read_documents(find_files([tmp_path / "saved"]))] == texts
    data.shuffle(seed=0).save_to_disk(tmp_path / "shuffled")
    shuffled = [document.text for document in read_documents(find_files([tmp_path / "shuffled"]))]
    assert shuffled != texts
    assert sorted(shuffled) == sorted(texts)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"splits: holds the splits train, test; name the folder of one, or of each$"):
        find_files([tmp_path / "splits"])
    assert len(find_files([tmp_path / "splits" / "train"])) == 1
