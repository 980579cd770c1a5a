"""Are official files read whole and as data, and is everything else refused in one line, whatever it is?"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from official_files import arguments, case, checkpoint, weights, write_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from moeut.model.language_model import ModelConfig
from moeut.official.loading import load_official, read_checkpoint
from moeut.official.release import release_config
from moeut.presets import preset

RELEASE = release_config(
    n_tokens=99, d_model=24, n_layers=4, n_heads=2, ff_n_experts=6, att_n_experts=1, d_head=16, ff_k=2,
    ff_expert_size=10,
)  # fmt: skip


def assert_official_logits(file: Path, tensors: dict[str, Tensor], config: ModelConfig | None = None) -> None:
    """The model in a file computes what the official code did, in double precision."""
    model = load_official(file, config).model.double().eval()
    logits = tensors["f64buf/eval/logits" if "f64buf/eval/logits" in tensors else "ref/eval/logits"]
    assert (model(tensors["input_ids"]).logits - logits).abs().max() < 1e-10 * logits.abs().max()


@pytest.mark.parametrize("name", ["train_moeut_periln_aabb", "train_sut_act_postln"])
@pytest.mark.parametrize("released", [False, True])
def test_a_checkpoint_is_the_model_it_was_saved_from(tmp_path: Path, name: str, released: bool):
    """With the optimizer's state, and without it, as those that were released."""
    entry, tensors = case(name)
    content = checkpoint(name)
    if released:
        del content["optimizer"]
    file = write_checkpoint(tmp_path / "model.ckpt", content)
    found = read_checkpoint(file)
    assert found.arguments == arguments(entry["argv"])
    assert found.weights.keys() == weights(tensors).keys()
    assert load_official(file).notes == ()
    assert_official_logits(file, tensors)


def test_a_checkpoint_of_before_zip_files(tmp_path: Path):
    file = tmp_path / "model.pth"
    content = checkpoint()
    torch.save(
        {name: content[name] for name in ("run_invariants", "model")}, file, _use_new_zipfile_serialization=False
    )
    assert_official_logits(file, case("train_moeut_periln_aabb")[1])


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_a_state_dict_is_the_model_that_one_says_it_is(tmp_path: Path, suffix: str):
    """Of the clean release; only its vocabulary is told by the file."""
    _, tensors = case("moeut_att1_gate")
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(weights(tensors), file)
    assert load_official(file, RELEASE).model.config.vocab_size == 61
    assert_official_logits(file, tensors, RELEASE)


def test_weights_stay_in_their_precision(tmp_path: Path):
    content = checkpoint()
    content["model"] = {name: w.bfloat16() if w.is_floating_point() else w for name, w in content["model"].items()}
    model = load_official(write_checkpoint(tmp_path / "half.ckpt", content)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class Hostile:
    """Pickled, it is the order to call a function."""

    def __init__(self, *order: Any) -> None:
        self.order = order

    def __reduce__(self) -> tuple[Any, ...]:
        return self.order[0], self.order[1:]


def as_zip(content: object, file: Path) -> None:
    torch.save(content, file)


def as_legacy(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def as_bare_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_bare_pickle])
@pytest.mark.parametrize("place", ["state", "model", "weight", "argument"])
def test_a_file_that_is_a_program_is_refused_and_runs_nothing(
    tmp_path: Path, write: Callable[[object, Path], None], place: str
):
    trap = tmp_path / "trap"
    order = Hostile(Path.touch, trap)
    content = checkpoint()
    if place == "weight":
        content["model"] = {**content["model"], "embedding.weight": order}
    elif place == "argument":
        content["run_invariants"]["args"]["name"] = order
    else:
        content[place] = order
    file = tmp_path / "hostile.ckpt"
    write(content, file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: refused, because it would call \S+ when read$"):
        load_official(file)
    assert not trap.exists()
    if write is as_bare_pickle:
        pickle.loads(file.read_bytes())
        assert trap.exists(), "the trap is none, so the test proves nothing"


@pytest.mark.parametrize("call", [eval, exec, __import__, getattr, print, open])
def test_no_builtin_function_is_called(tmp_path: Path, call: Callable[..., Any]):
    file = tmp_path / "hostile.ckpt"
    torch.save({"model": Hostile(call, "print")}, file)
    with pytest.raises(ValueError, match=rf"refused, because it would call (\w+\.)?{call.__name__} when read$"):
        load_official(file)


def test_the_trainers_dict_class_is_let_in_while_a_file_is_read(tmp_path: Path):
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint())
    with zipfile.ZipFile(file) as content:
        [name] = [name for name in content.namelist() if name.endswith("data.pkl")]
        assert b"framework.data_structures.dotdict" in content.read(name)
    assert read_checkpoint(file).arguments is not None
    with pytest.raises(UnpicklingError, match="framework"):
        torch.load(file, weights_only=True)


def spoilt(tmp_path: Path, kind: str) -> Path:
    """A file, or none, of a kind that is no checkpoint."""
    file = tmp_path / "model.ckpt"
    match kind:
        case "missing":
            return file
        case "folder":
            file.mkdir()
        case "empty":
            file.touch()
        case "text":
            file.write_text("these are not weights\n")
        case "half":
            whole = write_checkpoint(tmp_path / "whole.ckpt", checkpoint()).read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
        case "zip":
            with zipfile.ZipFile(file, "w") as content:
                content.writestr("model/readme.txt", "no weights")
        case "tensor":
            torch.save(torch.zeros(3), file)
        case "optimizer":
            content = checkpoint()
            del content["model"]
            write_checkpoint(file, content)
        case "nothing":
            torch.save({}, file)
        case "numbers":
            torch.save({"model": {"embedding.weight": 3}}, file)
        case "arguments":
            content = checkpoint()
            content["run_invariants"]["args"] = {"transformer.variant": [1, 2]}
            write_checkpoint(file, content)
    return file


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("missing", "no such file"),
        ("folder", "a folder; name the file in it"),
        ("empty", "damaged, or no checkpoint"),
        ("text", "damaged, or no checkpoint"),
        ("half", "damaged, or no checkpoint"),
        ("zip", "damaged, or no checkpoint"),
        ("tensor", "holds no weights but a Tensor"),
        ("optimizer", r"holds no weights \(there is: state, run_invariants, sampler, interface, optimizer, scaler\)"),
        ("nothing", r"holds no weights \(there is: nothing\)"),
        ("numbers", r"holds no weights \(there is: model\)"),
        ("arguments", r"its run_invariants\.args are no arguments of a run"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, kind: str, line: str):
    file = spoilt(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {line}.*$"):
        load_official(file)


def test_any_cut_is_noticed(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"model": {"embedding.weight": torch.zeros(5, 4)}}, buffer)
    whole = buffer.getvalue()
    file = tmp_path / "cut.pt"
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: damaged, or no checkpoint.*$"):
            load_official(file)


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint())
    content = bytearray(file.read_bytes())
    some_weights = checkpoint()["model"]["unique_layers.1.pkm.keys"].numpy().tobytes()
    place = content.index(some_weights) + 101
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged, or no checkpoint \(model/data/\d+ is not what was written\)$"):
        load_official(file)


def test_a_torchscript_archive_is_refused(tmp_path: Path):
    file = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
        with pytest.raises(ValueError, match="damaged, or no checkpoint"):
            load_official(file)


def gpt2() -> dict[str, Tensor]:
    names = ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.attn.c_attn.weight", "ln_f.bias"]
    return dict.fromkeys(names, torch.zeros(2, 2))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_another_architecture(tmp_path: Path, suffix: str):
    file = tmp_path / f"gpt2.{suffix}"
    other = {name: tensor.clone() for name, tensor in gpt2().items()}
    (save_file if suffix == "safetensors" else torch.save)(other, file)
    with pytest.raises(ValueError, match=r"not weights of a MoEUT or of one of its rivals: ") as error:
        load_official(file)
    assert {*str(error.value).rpartition(": ")[2].split(", ")} == gpt2().keys()


def test_a_text_that_is_called_safetensors(tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    file.write_text("no tensors at all")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: not a safetensors file"):
        load_official(file, RELEASE)


def test_every_tensor_that_does_not_fit_is_listed(tmp_path: Path):
    """A missing one, one too many, one of another shape, one of whole numbers: all told, none made up."""
    content = checkpoint()
    model = dict(content["model"])
    del model["unique_layers.1.pkm.keys"]
    model["unique_layers.2.pkm.values"] = torch.zeros(6, 8, 24)
    model["unique_layers.0.pkm.expert_sel"] = torch.zeros(5, 24)
    model["out_norm.bias"] = torch.zeros(24, dtype=torch.int64)
    file = write_checkpoint(tmp_path / "model.ckpt", {**content, "model": model})
    with pytest.raises(ValueError, match="do not fit the model") as error:
        load_official(file)
    assert str(error.value) == (
        f"{file}: the weights do not fit the model: stack.layers.1.feed_forward.up_experts is missing; "
        "norm.bias holds torch.int64, which are no weights; "
        "stack.layers.0.feed_forward.router.weight has shape (5, 24) instead of (6, 24); "
        "stack.layers.2.feed_forward.down_experts is not part of it"
    )


def test_arguments_that_are_not_those_of_the_weights(tmp_path: Path):
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint(moe__expert_size=9))
    with pytest.raises(ValueError, match=r"up_experts has shape \(6, 24, 8\) instead of \(6, 24, 9\)"):
        load_official(file)
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint(transformer__variant="standard", state_size=0))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: state_size: input should be greater than 0"):
        load_official(file)
    file = write_checkpoint(tmp_path / "model.ckpt", checkpoint(moe__att__v_expert=0, moe__att__q_expert=1))
    name = re.escape(str(file))
    with pytest.raises(ValueError, match=rf"^{name}: moe\.att\.q_expert: .*\n{name}: moe\.att\.v_expert: 0 has no "):
        load_official(file)


def test_weights_alone_need_a_configuration_and_a_checkpoint_none(tmp_path: Path):
    file = tmp_path / "weights.pt"
    torch.save(weights(case("moeut_att1_gate")[1]), file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: holds weights only; say which model they are"):
        load_official(file)
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        load_official(file, preset("tiny"))
    tied = ModelConfig(**{**vars(RELEASE), "tie_word_embeddings": True})
    with pytest.raises(ValueError, match="tie_word_embeddings: official models have two matrices"):
        load_official(file, tied)
    whole = write_checkpoint(tmp_path / "model.ckpt", checkpoint())
    with pytest.raises(ValueError, match="says itself which model it is; leave the configuration out"):
        load_official(whole, RELEASE)


def test_a_model_without_a_vocabulary(tmp_path: Path):
    """Weights of the bare stack, as the clean release's `MoEUT` has them inside its language model."""
    file = tmp_path / "stack.pt"
    torch.save({"transformer.layers.0.ln1.weight": torch.ones(24)}, file)
    with pytest.raises(ValueError, match=r"there is no embedding\.weight, so these are not the weights of a language"):
        load_official(file, RELEASE)
