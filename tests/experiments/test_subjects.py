"""Is the model found that a user means, and the text, in the tokens that belong to the model?"""

import shutil
from pathlib import Path

import pytest
import torch
from examined import save_rival, save_tiny
from small_run import prepared, small_run

from moeut.data.tokens import open_prepared
from moeut.experiments.run import train
from moeut.experiments.subjects import Reading, data_of_run, identities, is_prepared, open_subject, streams
from moeut.files import sha256
from moeut.model.folder import load_model

CPU = Reading(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small model on texts of its own."""
    folder = tmp_path_factory.mktemp("subjects")
    train(small_run(prepared(folder), num_steps=1), folder / "run", quiet=True)
    return folder / "run"


def test_a_run_by_any_of_its_names(run: Path):
    for name in (run, run / "final", run / "checkpoints" / "step-00000001"):
        it = open_subject(str(name), CPU)
        assert (it.name, it.context_length) == (str(name), 16)
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(it.model(ids).logits, load_model(run / "final").eval()(ids).logits)
        assert data_of_run(str(name)) == run.parent / "data"
    assert open_subject(str(run), Reading(device=CPU.device, context_length=5)).context_length == 5
    assert open_subject(str(run), Reading(device=CPU.device, dtype=torch.float64)).facts["dtype"] == "float64"


def test_a_folder_that_is_no_run(tmp_path: Path):
    ours, theirs = save_tiny(tmp_path / "ours"), save_rival(tmp_path / "theirs")
    assert open_subject(str(ours), CPU).context_length == 1024
    assert open_subject(str(theirs), CPU).facts["class"] == "LlamaForCausalLM"
    assert open_subject(str(ours), Reading(device=CPU.device, repeats=3)).facts["num_repeats"] == 3
    with pytest.raises(ValueError, match=r"--repeats: .*theirs is no model of this package"):
        open_subject(str(theirs), Reading(device=CPU.device, repeats=3))
    with pytest.raises(ValueError, match="ours: not part of a run, so name the text to evaluate on with --data PATH"):
        data_of_run(str(ours))
    with pytest.raises(ValueError, match="no model here"):
        open_subject(str(tmp_path), CPU)
    with pytest.raises(ValueError, match="nowhere"):
        open_subject("nowhere", CPU)


def test_a_tokenizer_from_elsewhere(run: Path, tmp_path: Path):
    """A model folder may come without one; then it is the prepared folder's."""
    shutil.copytree(run / "final", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    it = open_subject(str(tmp_path / "bare"), CPU, run.parent / "data")
    assert it.encode(["a"]) == [[98]]
    assert list(streams([run.parent / "data"], it)) == [f"{run.parent / 'data'} (held out)"]


def test_prepared_text_as_it_is_or_in_the_models_tokens(run: Path, tmp_path: Path):
    data = run.parent / "data"
    [(name, stream)] = streams([data], open_subject(str(run), CPU)).items()
    assert name == f"{data} (held out)"
    held_out = open_prepared(data).held_out
    assert stream.read(0, len(stream)).tolist() == held_out.read(0, len(held_out)).tolist()
    rival = open_subject(str(save_rival(tmp_path)), CPU)
    [other] = streams([data], rival).values()
    assert other.num_bytes == stream.num_bytes
    assert [rival.decode(other.document_tokens(number).tolist()) for number in range(len(other.documents))] == [
        bytes(token - 1 for token in stream.document_tokens(number)).decode() for number in range(len(stream.documents))
    ]
    [(name, only)] = streams([data], open_subject(str(run), CPU), by_source=True).items()
    assert name.startswith(f"{data} (held out): ")
    assert len(only) == len(stream)


def test_files_and_what_stands_for_them(run: Path):
    data, file = run.parent / "data", run.parent / "3.txt"
    found = streams([data, file], open_subject(str(run), CPU))
    assert list(found) == [f"{data} (held out)", str(file)]
    assert found[str(file)].num_bytes == file.stat().st_size
    assert is_prepared(data)
    assert not is_prepared(file)
    assert identities([data, file]) == {
        str(data): open_prepared(data).manifest.fingerprint, str(file): sha256(file),
    }  # fmt: skip
