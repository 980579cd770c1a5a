"""Does a name lead to the model that it names, whatever it names?"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeut.experiments.named_models import named_run
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel
from moeut.presets import preset, run_preset
from moeut.trees import write_yaml

DEFAULT = run_preset("tiny", "data/text")


def test_presets_with_overrides():
    assert named_run("dense-44m", DEFAULT) == run_preset("dense-44m", "data/text")
    found = named_run("dense-44m", DEFAULT, [("model.vocab_size", "32000")])
    assert found.model == replace(preset("dense-44m"), vocab_size=32000)


def test_files_are_laid_over_the_default(tmp_path: Path):
    file = tmp_path / "model.yaml"
    file.write_text("model: {norm: pre}\ndata: elsewhere\n")
    found = named_run(str(file), DEFAULT)
    assert found == replace(DEFAULT, data="elsewhere", model=replace(DEFAULT.model, norm="pre"))
    write_yaml(file, run_preset("sut-44m", "d"))
    assert named_run(str(file), DEFAULT) == run_preset("sut-44m", "d")


def test_folders_of_models_and_runs(tmp_path: Path):
    model = LanguageModel(preset("nano"))
    alone, run = tmp_path / "alone", tmp_path / "run"
    save_model(model, alone, tokenizer_folder=None, end_of_document_id=0)
    assert named_run(str(alone), DEFAULT) == replace(DEFAULT, model=preset("nano"))
    save_model(model, run / "final", tokenizer_folder=None, end_of_document_id=0)
    write_yaml(run / "config.yaml", run_preset("nano", "its/data"))
    for folder in (run, run / "final"):
        assert named_run(str(folder), DEFAULT) == run_preset("nano", "its/data")
    with torch.device("meta"):
        assert LanguageModel(named_run(str(run), DEFAULT).model)


def test_what_a_name_cannot_mean_is_refused_in_one_line(tmp_path: Path):
    for name, message in [
        ("moeut-44", "moeut-44: no such file or folder, and no preset; did you mean moeut-44m?"),
        ("xyz", "xyz: no such file or folder, and no preset; there are nano, tiny, and with a size"),
        (str(tmp_path), "no model here"),
    ]:
        with pytest.raises(ValueError, match=r".") as caught:
            named_run(name, DEFAULT)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
