"""Are the items of every task found, in every form they were published in, and is what is missing named?"""

import gzip
import io
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pytest
from examined import FILES, ITEMS
from hub_server import COMMIT, Hub, serving
from pyarrow import parquet

from moeut.data.download import Patience
from moeut.evaluation.items import Item
from moeut.evaluation.task_data import BLIMP_SETS, HOMES, from_folder, from_hub
from moeut.evaluation.zero_shot import TASKS
from moeut.files import sha256

SETS = {
    "lambada": {"lambada_openai": 6},
    "blimp": {
        "blimp_anaphor_number_agreement": 3, "blimp_regular_plural_subject_verb_agreement_1": 2, "blimp_wh_island": 1,
    },
    "cbt": {"cbt_cn": 3, "cbt_ne": 3, "cbt_p": 3, "cbt_v": 3},
    "hellaswag": {"hellaswag": 4},
    "piqa": {"piqa": 4},
    "arc_easy": {"arc_easy": 5},
}  # fmt: skip


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (ITEMS / name).read_text("utf-8").splitlines()]


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_all_tasks_in_one_folder(no_network: None):
    found = from_folder(ITEMS, TASKS)
    assert list(found) == list(TASKS) == list(HOMES)
    for task, data in found.items():
        assert {name: len(items) for name, items in data.sets.items()} == SETS[task]
        assert data.origin == {name: sha256(ITEMS / name) for name in data.origin}
    assert found["piqa"].origin.keys() == {"piqa_validation.jsonl"}
    assert len(found["cbt"].origin) == 4


def test_packed_and_in_folders_below(tmp_path: Path, no_network: None):
    for file in FILES:
        place = tmp_path / file.stem / f"{file.name}.gz"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(gzip.compress(file.read_bytes()))
    found, plain = from_folder(tmp_path, TASKS), from_folder(ITEMS, TASKS)
    assert {task: data.sets for task, data in found.items()} == {task: data.sets for task, data in plain.items()}


def test_the_original_releases(tmp_path: Path, no_network: None):
    """As they were published: LAMBADA, HellaSwag, PIQA with labels apart, ARC with stems, BLiMP in 67 files."""
    plain = from_folder(ITEMS, TASKS)
    shutil.copy(ITEMS / "lambada_openai_test.jsonl", tmp_path / "lambada_test.jsonl")
    write(
        tmp_path / "hellaswag_val.jsonl",
        [{**line, "label": int(line["label"])} for line in lines("hellaswag_validation.jsonl")],
    )
    piqa = lines("piqa_validation.jsonl")
    (tmp_path / "valid-labels.lst").write_text("".join(f"{line.pop('label')}\n" for line in piqa))
    write(tmp_path / "valid.jsonl", piqa)
    arc = [
        {
            "id": "x",
            "question": {
                "stem": item["question"],
                "choices": [
                    {"text": text, "label": label}
                    for text, label in zip(item["choices"]["text"], item["choices"]["label"], strict=True)
                ],
            },
            "answerKey": item["answerKey"],
        }
        for item in plain["arc_easy"].sets["arc_easy"]
    ]
    write(tmp_path / "ARC-V1-Feb2018-2" / "ARC-Easy" / "ARC-Easy-Test.jsonl", arc)
    for name in BLIMP_SETS:
        write(tmp_path / "data" / f"{name}.jsonl", [{"sentence_good": f"{name}.", "sentence_bad": "bad"}])
    for file in ITEMS.glob("cbtest*"):
        (tmp_path / "CBTest" / "data").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "CBTest" / "data")
    found = from_folder(tmp_path, TASKS)
    for task in set(TASKS) - {"blimp"}:
        assert found[task].sets == plain[task].sets, task
    assert len(found["blimp"].sets) == 67
    assert found["blimp"].sets["blimp_wh_island"] == [{"sentence_good": "wh_island.", "sentence_bad": "bad"}]


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path, no_network: None):
    shutil.copy(ITEMS / "piqa_validation.jsonl", tmp_path)
    (tmp_path / "valid.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no items") as caught:
        from_folder(tmp_path, ["piqa", "cbt", "hellaswag", "blimp"])
    messages = str(caught.value).splitlines()
    assert len(messages) == 3
    assert "holds no items of cbt (no cbtest_CN_test_2500ex.txt with" in messages[0]
    assert "CBTest.tgz" in messages[0]
    assert "no hellaswag_validation.jsonl and no hellaswag_val.jsonl" in messages[1]
    assert "the Hub's data set Rowan/hellaswag" in messages[1]
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        from_folder(tmp_path / "nowhere", ["piqa"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("piqa_validation.jsonl", '{"goal": "a"}\n', r"piqa_validation.jsonl:1: not an item of piqa: it has no 'sol1'"),
        ("piqa_validation.jsonl", "\n{not\n", r"piqa_validation.jsonl:2: not a line of JSON"),
        ("piqa_validation.jsonl", "", r"piqa_validation.jsonl: holds no items"),
        (
            "blimp.jsonl",
            '{"UID": "x", "sentence_good": "a", "sentence_bad": "b"}\n',
            r"blimp.jsonl:1: 'x' \(UID\) is none",
        ),
        ("blimp.jsonl", "[1]\n", r"blimp.jsonl:1: not an item of blimp: a list"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path, [name.partition("_")[0].partition(".")[0]])


def test_damage_in_other_files(tmp_path: Path):
    (tmp_path / "lambada_test.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"lambada_test.jsonl: not UTF-8 text"):
        from_folder(tmp_path, ["lambada"])
    write(tmp_path / "valid.jsonl", [{"goal": "a", "sol1": "b", "sol2": "c"}] * 2)
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(ValueError, match=r"valid-labels.lst: 1 labels for 2 items"):
        from_folder(tmp_path, ["piqa"])
    for file in ITEMS.glob("cbtest*"):
        shutil.copy(file, tmp_path)
    with (tmp_path / "cbtest_V_test_2500ex.txt").open("a") as file:
        file.write("1 A sentence .\n")
    with pytest.raises(ValueError, match=r"cbtest_V_test_2500ex.txt:\d+: the file ends within an item"):
        from_folder(tmp_path, ["cbt"])


def parquet_of(items: list[Item]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(items), file)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The six data sets as the Hub converts them."""
    plain = from_folder(ITEMS, TASKS)
    folders = {
        "lambada": lambda name: "default/test", "hellaswag": lambda name: "default/validation",
        "piqa": lambda name: "plain_text/validation", "arc_easy": lambda name: "ARC-Easy/test",
        "blimp": lambda name: f"{name.removeprefix('blimp_')}/train",
        "cbt": lambda name: f"{name.removeprefix('cbt_').upper()}/test",
    }  # fmt: skip
    hubs = [
        Hub(
            {
                f"{folders[task](name)}/0000.parquet": parquet_of(items) for name, items in data.sets.items()
            } | {"default/train/0000.parquet": b"not asked for"},
            HOMES[task].source.dataset,
        )
        for task, data in plain.items()
    ]  # fmt: skip
    with serving(*hubs) as first:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", first.endpoint)
        template = first.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield first


def test_from_the_hub_as_from_a_folder(hub: Hub):
    tasks = [task for task in TASKS if task != "blimp"]
    notices: list[str] = []
    found, plain = from_hub(tasks, notices.append), from_folder(ITEMS, tasks)
    assert {task: data.sets for task, data in found.items()} == {task: data.sets for task, data in plain.items()}
    assert found["piqa"].origin == {"baber/piqa@refs/convert/parquet": COMMIT}
    assert notices == []


def test_a_data_set_that_the_hub_does_not_have(hub: Hub):
    hub.files.clear()
    with pytest.raises(ValueError, match="the data set EleutherAI/lambada_openai: no file matches"):
        from_hub(["lambada"], print, Patience(1, 5.0, lambda seconds: None))
