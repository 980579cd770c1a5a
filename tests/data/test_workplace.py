"""A folder appears whole, or not at all."""

from pathlib import Path

import pytest

from moeut.data.workplace import clear, is_unsettled, publish, recover, workplace


def write(folder: Path, text: str) -> None:
    with workplace(folder) as partial:
        (partial / "file").write_text(text)
        publish(partial, folder)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_nothing_but_the_folder_is_left(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "data", "one")
    assert (tmp_path / "deep" / "data" / "file").read_text() == "one"
    write(tmp_path / "deep" / "data", "two")
    assert (tmp_path / "deep" / "data" / "file").read_text() == "two"
    assert names(tmp_path / "deep") == ["data"]


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "one")
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == ["file"]


def test_an_error_leaves_what_there_is(tmp_path: Path) -> None:
    def fail(text: str | None) -> None:
        with workplace(tmp_path / "data") as partial:
            if text is not None:
                (partial / "file").write_text(text)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail(None)
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError):
        fail("half")
    assert names(tmp_path) == [".data.partial"]
    with workplace(tmp_path / "data") as partial:
        assert (partial / "file").read_text() == "half"
        clear(partial)
    assert names(tmp_path) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with workplace(tmp_path / "data") as partial:
        (partial / "file").write_text("mine")
        with pytest.raises(ValueError, match="another process is writing it"), workplace(tmp_path / "data"):
            pass
        assert names(partial) == ["file"]


def test_a_replacement_cut_short_is_undone_or_finished(tmp_path: Path) -> None:
    write(tmp_path / "data", "one")
    assert not is_unsettled(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / ".data.former")
    assert is_unsettled(tmp_path / "data")
    recover(tmp_path / "data")
    assert (tmp_path / "data" / "file").read_text() == "one"
    (tmp_path / ".data.former").mkdir()
    recover(tmp_path / "data")
    assert names(tmp_path) == ["data"]


def test_folders_inside_are_cleared_too(tmp_path: Path) -> None:
    with workplace(tmp_path / "data") as partial:
        (partial / "deep" / "deeper").mkdir(parents=True)
        (partial / "deep" / "file").write_text("one")
        clear(partial)
        assert names(partial) == []
