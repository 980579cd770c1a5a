"""Does the demonstration go the whole path? Here with a training of a few steps."""

import json
from pathlib import Path

import pytest

from moeut.cli import main
from moeut.data import sources
from moeut.data.tokens import open_prepared
from moeut.experiments import demo as demonstration
from moeut.experiments.demo import demo, report


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hundred files of the standard library instead of all."""
    everything = sources.standard_library()
    monkeypatch.setattr(sources, "standard_library", lambda: everything[:100])


@pytest.mark.usefixtures("few_files")
def test_the_whole_path_is_gone_and_reported(tmp_path: Path):
    result = demo(tmp_path / "demo", quiet=True, num_steps=2)
    facts = result.facts
    assert facts is not None
    bits = facts["bits_per_byte"]
    assert set(bits) == {"moeut", "xz -9", "byte 3-gram"}
    assert 1 < bits["xz -9"] < 5
    assert 1 < bits["byte 3-gram"] < 5
    assert facts["held_out_bytes"] == open_prepared(tmp_path / "demo" / "data").held_out.num_bytes
    assert (tmp_path / "demo" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert facts["sample"].startswith(demonstration.PROMPT)
    text = "\n".join(report(facts))
    assert f"{bits['xz -9']:.3f}" in text
    assert f"{facts['parameters']:,} parameters" in text
    json.dumps(facts)
    again = demo(tmp_path / "demo", quiet=True, num_steps=2).facts
    assert again is not None
    assert again["bits_per_byte"] == bits


def test_the_report_does_not_flatter():
    facts = {
        "bits_per_byte": {"moeut": 2.0, "xz -9": 2.5, "byte 3-gram": 1.0},
        "parameters": 10, "active_parameters": 5, "tokens": 100, "held_out_bytes": 7, "sample": "a\nb", "seconds": 61.0,
        "model": "demo/run/final", "curve": None,
    }  # fmt: skip
    lines = report(facts)
    assert any("xz" in line and "20% less" in line for line in lines)
    assert any("3-gram" in line and line.endswith("better") for line in lines)
    assert "1 min 1 s" in lines[-1]
    assert "not drawn" in lines[-1]


def test_a_folder_with_something_else_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file"), "--quiet"]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "file" in err
