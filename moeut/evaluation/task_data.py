"""Where do the items of the zero-shot tasks come from? A folder of files, or the Hub, in whatever form they have there.

Items come out with the fields that they have on the Hub, in sets that lm-eval has a task for: 67 for BLiMP, 4 for CBT,
one for each of the others.
"""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from moeut.data.download import PATIENT, Patience
from moeut.data.formats import is_packed, unpack
from moeut.data.sources import HubSource
from moeut.evaluation import cbt
from moeut.files import sha256

Item = dict[str, Any]
ARC_LABELS = "ABCDEFGH"
PARQUET = "refs/convert/parquet"
"""The branch on which the Hub keeps every data set as Parquet, also those that once needed a script."""


class TaskData(NamedTuple):
    """The items of a task by their set, and where they come from: files or data sets, and their checksums or commits."""

    sets: dict[str, list[Item]]
    origin: dict[str, str]


class Form(NamedTuple):
    """One way in which a task's items lie in a folder.

    files: the names they have there, packed or not, all of which are needed. read: files → (set, item).
    """

    files: tuple[str, ...]
    read: Callable[[list[Path]], Iterator[tuple[str, Item]]]


class Home(NamedTuple):
    """Where a task's items are to be had: the Hub's data set, of which the first folder of a path names the set.

    set_name: what lm-eval calls the set. get: what to tell those who lack them.
    """

    source: HubSource
    set_name: Callable[[str], str]
    get: str


def from_folder(folder: Path, tasks: Iterable[str]) -> dict[str, TaskData]:
    """The items of some tasks from a folder or those below it. Nothing is asked over the network.

    Raises ValueError that names every task whose items are missing and where they are to be had, or the line that is no
    item.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), path)):
        files.setdefault(PurePath(path.stem).name if is_packed(path) else path.name, path)
    found = {task: _find(files, task) for task in tasks}
    missing = [
        f"{folder}: holds no items of {task}: no {' and no '.join(' with '.join(form.files) for form in FORMS[task])}; "
        f"{HOMES[task].get}, or leave --task-data out to read the Hub's {HOMES[task].source.dataset}"
        for task, data in found.items()
        if data is None
    ]
    if missing:
        raise ValueError("\n".join(missing))
    return {task: data for task, data in found.items() if data is not None}


def from_hub(tasks: Iterable[str], notice: Callable[[str], None], patience: Patience = PATIENT) -> dict[str, TaskData]:
    """The items of some tasks from the Hub, as its data sets are now; nothing is kept on this machine.

    Raises ValueError where a data set is not there, or the Hub cannot be reached.
    """
    from pyarrow import parquet

    from moeut.data.hub import find_hub_files  # loads huggingface_hub

    found: dict[str, TaskData] = {}
    for task in tasks:
        home, sets, origin = HOMES[task], defaultdict(list), {}
        for file in find_hub_files(home.source, notice, patience):
            table = parquet.read_table(io.BytesIO(file.open(notice).read()))
            for number, row in enumerate(table.to_pylist(), 1):
                name = home.set_name(file.path.partition("/")[0])
                sets[name].append(_item(CONVERTERS[task], row, f"{file.name}:{number}"))
            origin[f"{file.dataset}@{PARQUET}"] = file.commit
        found[task] = TaskData(dict(sets), origin)
    return found


def _find(files: dict[str, Path], task: str) -> TaskData | None:
    for form in FORMS[task]:
        if all(name in files for name in form.files):
            paths = [files[name] for name in form.files]
            if form.read is _blimp_folder:
                paths = sorted(path for path in paths[0].parent.iterdir() if ".jsonl" in path.suffixes)
            sets: dict[str, list[Item]] = defaultdict(list)
            for name, item in form.read(paths):
                sets[name].append(item)
            if sets:
                return TaskData(dict(sets), {path.name: sha256(path) for path in paths})
    return None


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stored, unpack(stored, path.name) as content:
        try:
            yield from io.TextIOWrapper(content, encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None


def _records(path: Path) -> Iterator[tuple[str, Item]]:
    """Each line of JSON, with its place."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:{number}", _item(json.loads, line, f"{path}:{number}")


def _item(convert: Callable[[Any], Item], record: Any, place: str) -> Item:
    try:
        item = convert(record)
        assert isinstance(item, dict)
    except KeyError as error:
        raise ValueError(f"{place}: not an item of this task, it has no {error}") from None
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: not an item of this task ({error})") from None
    return item


def _lambada(record: Item) -> Item:
    return {"text": str(record["text"])}


def _blimp(record: Item) -> Item:
    return {name: str(record[name]) for name in ("sentence_good", "sentence_bad")}


def _hellaswag(record: Item) -> Item:
    texts = {name: str(record[name]) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**texts, "endings": list(record["endings"]), "label": str(int(record["label"]))}


def _piqa(record: Item) -> Item:
    return {**{name: str(record[name]) for name in ("goal", "sol1", "sol2")}, "label": int(record["label"])}


def _arc(record: Item) -> Item:
    """From three forms: the Hub's, the original release's (`question.stem`), and a flat one with the whole prompt."""
    if "query" in record:
        question = record["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        texts, labels, key = record["choices"], ARC_LABELS, ARC_LABELS[record["gold"]]
    elif isinstance(record["question"], dict):
        question, choices = record["question"]["stem"], record["question"]["choices"]
        texts, labels = [choice["text"] for choice in choices], [choice["label"] for choice in choices]
        key = record["answerKey"]
    else:
        question, key = record["question"], record["answerKey"]
        texts, labels = record["choices"]["text"], record["choices"]["label"]
    labels = list(labels[: len(texts)])
    labels.index(key)
    return {"question": question, "choices": {"text": list(texts), "label": labels}, "answerKey": key}


def _cbt(record: Item) -> Item:
    item = {name: record[name] for name in ("sentences", "question", "answer", "options")}
    cbt.prompt(item)
    return item


def _of_one_set(name: str, convert: Callable[[Item], Item]) -> Callable[[list[Path]], Iterator[tuple[str, Item]]]:
    def read(paths: list[Path]) -> Iterator[tuple[str, Item]]:
        yield from ((name, _item(convert, record, place)) for place, record in _records(paths[0]))

    return read


def _blimp_file(paths: list[Path]) -> Iterator[tuple[str, Item]]:
    for place, record in _records(paths[0]):
        yield f"blimp_{record.get('UID')}", _item(_blimp, record, place)


def _blimp_folder(paths: list[Path]) -> Iterator[tuple[str, Item]]:
    for path in paths:
        name = path.name.partition(".")[0]
        yield from ((f"blimp_{name}", _item(_blimp, record, place)) for place, record in _records(path))


def _piqa_with_labels(paths: list[Path]) -> Iterator[tuple[str, Item]]:
    labels = list(_lines(paths[1]))
    records = list(_records(paths[0]))
    if len(labels) != len(records):
        raise ValueError(f"{paths[1]}: {len(labels):,} labels for {len(records):,} items")
    for (place, record), label in zip(records, labels, strict=True):
        yield "piqa", _item(_piqa, {**record, "label": label}, place)


def _cbt_files(paths: list[Path]) -> Iterator[tuple[str, Item]]:
    for name, path in zip(cbt.SUBSETS, paths, strict=True):
        try:
            yield from ((f"cbt_{name.lower()}", _cbt(item)) for item in cbt.parse(_lines(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


CONVERTERS: dict[str, Callable[[Item], Item]] = {
    "lambada": _lambada, "blimp": _blimp, "cbt": _cbt, "hellaswag": _hellaswag, "piqa": _piqa, "arc_easy": _arc,
}  # fmt: skip

FORMS: dict[str, tuple[Form, ...]] = {
    "lambada": tuple(
        Form((name,), _of_one_set("lambada_openai", _lambada))
        for name in ("lambada_openai_test.jsonl", "lambada_test.jsonl")
    ),
    "blimp": (Form(("blimp.jsonl",), _blimp_file), Form(("adjunct_island.jsonl",), _blimp_folder)),
    "cbt": (Form(tuple(f"cbtest_{name}_test_2500ex.txt" for name in cbt.SUBSETS), _cbt_files),),
    "hellaswag": tuple(
        Form((name,), _of_one_set("hellaswag", _hellaswag))
        for name in ("hellaswag_validation.jsonl", "hellaswag_val.jsonl")
    ),
    "piqa": (
        Form(("piqa_validation.jsonl",), _of_one_set("piqa", _piqa)),
        Form(("valid.jsonl", "valid-labels.lst"), _piqa_with_labels),
    ),
    "arc_easy": tuple(
        Form((name,), _of_one_set("arc_easy", _arc)) for name in ("arc_easy_test.jsonl", "ARC-Easy-Test.jsonl")
    ),
}


def _hub(dataset: str, *files: str) -> HubSource:
    return HubSource(dataset=dataset, revision=PARQUET, files=files)


HOMES: dict[str, Home] = {
    "lambada": Home(
        _hub("EleutherAI/lambada_openai", "default/test/*.parquet"), lambda _: "lambada_openai",
        "OpenAI published it as lambada_test.jsonl",
    ),
    "blimp": Home(
        _hub("nyu-mll/blimp", "*/train/*.parquet"), lambda name: f"blimp_{name}",
        "it is at https://github.com/alexwarstadt/blimp",
    ),
    "cbt": Home(
        _hub("cam-cst/cbt", *(f"{name}/test/*.parquet" for name in cbt.SUBSETS)), lambda name: f"cbt_{name.lower()}",
        "it was published as CBTest.tgz (fb.ai/babi)",
    ),
    "hellaswag": Home(
        _hub("Rowan/hellaswag", "default/validation/*.parquet"), lambda _: "hellaswag",
        "it is at https://github.com/rowanz/hellaswag",
    ),
    "piqa": Home(
        _hub("baber/piqa", "*/validation/*.parquet"), lambda _: "piqa", "it is at https://yonatanbisk.com/piqa",
    ),
    "arc_easy": Home(
        _hub("allenai/ai2_arc", "ARC-Easy/test/*.parquet"), lambda _: "arc_easy",
        "it is at https://allenai.org/data/arc",
    ),
}  # fmt: skip
