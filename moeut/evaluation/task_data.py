"""Where do the items of the zero-shot tasks come from? A folder of files, or the Hub, in whatever form they have there.

Items come out in sets that lm-eval has a task for: 67 for BLiMP, 4 for CBT, one for each of the others.
"""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from moeut.data.download import PATIENT, Patience
from moeut.data.formats import is_packed, unpack
from moeut.data.sources import HubSource
from moeut.evaluation import cbt
from moeut.evaluation.items import Item, convert
from moeut.files import sha256

PARQUET = "refs/convert/parquet"
"""The branch on which the Hub keeps every data set as Parquet, also those that once needed a script."""

Found = Iterator[tuple[str, Item]]
"""Items, each with the set that it belongs to."""


class TaskData(NamedTuple):
    """The items of a task by their set, and where they come from: checksums of files, commits of data sets."""

    sets: dict[str, list[Item]]
    origin: dict[str, str]


class Form(NamedTuple):
    """One way in which a task's items lie in a folder: the names of the files that are needed, packed or not."""

    files: tuple[str, ...]
    read: Callable[[list[Path]], Found]


class Home(NamedTuple):
    """A task's data set on the Hub, how its folders name the sets, and where else there are items."""

    source: HubSource
    set_name: Callable[[str], str]
    elsewhere: str


def from_folder(folder: Path, tasks: Iterable[str]) -> dict[str, TaskData]:
    """The items of some tasks from a folder or those below it. Nothing is asked over the network.

    Raises ValueError that names every task whose items are missing and where they are to be had, or the line that is no
    item.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), path)):
        files.setdefault(path.stem if is_packed(path) else path.name, path)
    found, missing = {}, []
    for task in tasks:
        form = next((form for form in FORMS[task] if all(name in files for name in form.files)), None)
        if form is None:
            names = " and no ".join(shorten(" with ".join(form.files), 150) for form in FORMS[task])
            home = HOMES[task]
            missing.append(
                f"{folder}: holds no items of {task} (no {names}); {home.elsewhere}; without --task-data they are "
                f"read from the Hub's data set {home.source.dataset}"
            )
        else:
            found[task] = _read(form, [files[name] for name in form.files])
    if missing:
        raise ValueError("\n".join(missing))
    return found


def from_hub(tasks: Iterable[str], notice: Callable[[str], None], patience: Patience = PATIENT) -> dict[str, TaskData]:
    """The items of some tasks from the Hub, as its data sets are now; nothing is kept on this machine.

    Raises ValueError where a data set is not there, or the Hub cannot be reached.
    """
    from pyarrow import parquet

    from moeut.data.hub import find_hub_files  # loads huggingface_hub

    found: dict[str, TaskData] = {}
    for task in tasks:
        home = HOMES[task]
        sets: dict[str, list[Item]] = defaultdict(list)
        origin: dict[str, str] = {}
        for file in find_hub_files(home.source, notice, patience):
            rows = parquet.read_table(io.BytesIO(file.open(notice).read())).to_pylist()
            name = home.set_name(file.path.partition("/")[0])
            sets[name] += [convert(task, row, f"{file.name}:{number}") for number, row in enumerate(rows, 1)]
            origin[f"{file.dataset}@{PARQUET}"] = file.commit
        found[task] = TaskData(dict(sets), origin)
    return found


def _read(form: Form, paths: list[Path]) -> TaskData:
    sets: dict[str, list[Item]] = defaultdict(list)
    for name, item in form.read(paths):
        sets[name].append(item)
    if not sets:
        raise ValueError(f"{paths[0]}: holds no items")
    return TaskData(dict(sets), {path.name: sha256(path) for path in paths})


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stored, io.TextIOWrapper(unpack(stored, path.name), encoding="utf-8") as text:
        try:
            yield from text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """Each line of JSON, with its place."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not a line of JSON ({error})") from None


def _of_one_set(task: str, name: str) -> Callable[[list[Path]], Found]:
    def read(paths: list[Path]) -> Found:
        for place, record in _records(paths[0]):
            yield name, convert(task, record, place)

    return read


def _blimp_in_one_file(paths: list[Path]) -> Found:
    for place, record in _records(paths[0]):
        item = convert("blimp", record, place)
        name = record.get("UID") if isinstance(record, dict) else None
        if name not in BLIMP_SETS:
            raise ValueError(f"{place}: {name!r} (UID) is none of the 67 sets of BLiMP")
        yield f"blimp_{name}", item


def _blimp_in_67_files(paths: list[Path]) -> Found:
    for path in paths:
        for place, record in _records(path):
            yield f"blimp_{path.name.partition('.')[0]}", convert("blimp", record, place)


def _piqa_with_labels(paths: list[Path]) -> Found:
    records, labels = list(_records(paths[0])), list(_lines(paths[1]))
    if len(labels) != len(records):
        raise ValueError(f"{paths[1]}: {len(labels):,} labels for {len(records):,} items")
    for (place, record), label in zip(records, labels, strict=True):
        yield "piqa", convert("piqa", {**record, "label": label} if isinstance(record, dict) else record, place)


def _cbt_in_4_files(paths: list[Path]) -> Found:
    for name, path in zip(cbt.SUBSETS, paths, strict=True):
        for number, item in enumerate(cbt.parse(_lines(path), str(path)), 1):
            yield f"cbt_{name.lower()}", convert("cbt", item, f"{path}, item {number}")


def _hub(dataset: str, *files: str) -> HubSource:
    return HubSource(dataset=dataset, revision=PARQUET, files=files)


# fmt: off
BLIMP_SETS = (
    "adjunct_island", "anaphor_gender_agreement", "anaphor_number_agreement", "animate_subject_passive",
    "animate_subject_trans", "causative", "complex_NP_island", "coordinate_structure_constraint_complex_left_branch",
    "coordinate_structure_constraint_object_extraction", "determiner_noun_agreement_1", "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_1", "determiner_noun_agreement_irregular_2",
    "determiner_noun_agreement_with_adj_2", "determiner_noun_agreement_with_adj_irregular_1",
    "determiner_noun_agreement_with_adj_irregular_2", "determiner_noun_agreement_with_adjective_1",
    "distractor_agreement_relational_noun", "distractor_agreement_relative_clause", "drop_argument",
    "ellipsis_n_bar_1", "ellipsis_n_bar_2", "existential_there_object_raising", "existential_there_quantifiers_1",
    "existential_there_quantifiers_2", "existential_there_subject_raising", "expletive_it_object_raising",
    "inchoative", "intransitive", "irregular_past_participle_adjectives", "irregular_past_participle_verbs",
    "irregular_plural_subject_verb_agreement_1", "irregular_plural_subject_verb_agreement_2",
    "left_branch_island_echo_question", "left_branch_island_simple_question", "matrix_question_npi_licensor_present",
    "npi_present_1", "npi_present_2", "only_npi_licensor_present", "only_npi_scope", "passive_1", "passive_2",
    "principle_A_c_command", "principle_A_case_1", "principle_A_case_2", "principle_A_domain_1",
    "principle_A_domain_2", "principle_A_domain_3", "principle_A_reconstruction",
    "regular_plural_subject_verb_agreement_1", "regular_plural_subject_verb_agreement_2",
    "sentential_negation_npi_licensor_present", "sentential_negation_npi_scope", "sentential_subject_island",
    "superlative_quantifiers_1", "superlative_quantifiers_2", "tough_vs_raising_1", "tough_vs_raising_2", "transitive",
    "wh_island", "wh_questions_object_gap", "wh_questions_subject_gap", "wh_questions_subject_gap_long_distance",
    "wh_vs_that_no_gap", "wh_vs_that_no_gap_long_distance", "wh_vs_that_with_gap", "wh_vs_that_with_gap_long_distance",
)
# fmt: on

FORMS: dict[str, tuple[Form, ...]] = {
    "lambada": tuple(
        Form((name,), _of_one_set("lambada", "lambada_openai"))
        for name in ("lambada_openai_test.jsonl", "lambada_test.jsonl")
    ),
    "blimp": (
        Form(("blimp.jsonl",), _blimp_in_one_file),
        Form(tuple(f"{name}.jsonl" for name in BLIMP_SETS), _blimp_in_67_files),
    ),
    "cbt": (Form(tuple(f"cbtest_{name}_test_2500ex.txt" for name in cbt.SUBSETS), _cbt_in_4_files),),
    "hellaswag": tuple(
        Form((name,), _of_one_set("hellaswag", "hellaswag"))
        for name in ("hellaswag_validation.jsonl", "hellaswag_val.jsonl")
    ),
    "piqa": (
        Form(("piqa_validation.jsonl",), _of_one_set("piqa", "piqa")),
        Form(("valid.jsonl", "valid-labels.lst"), _piqa_with_labels),
    ),
    "arc_easy": tuple(
        Form((name,), _of_one_set("arc_easy", "arc_easy")) for name in ("arc_easy_test.jsonl", "ARC-Easy-Test.jsonl")
    ),
}

HOMES: dict[str, Home] = {
    "lambada": Home(
        _hub("EleutherAI/lambada_openai", "default/test/*.parquet"), lambda _: "lambada_openai",
        "OpenAI published them as lambada_test.jsonl",
    ),
    "blimp": Home(
        _hub("nyu-mll/blimp", "*/train/*.parquet"), lambda folder: f"blimp_{folder}",
        "they are at https://github.com/alexwarstadt/blimp",
    ),
    "cbt": Home(
        _hub("cam-cst/cbt", *(f"{name}/test/*.parquet" for name in cbt.SUBSETS)),
        lambda folder: f"cbt_{folder.lower()}",
        "they were published as CBTest.tgz on https://fb.ai/babi",
    ),
    "hellaswag": Home(
        _hub("Rowan/hellaswag", "default/validation/*.parquet"), lambda _: "hellaswag",
        "they are at https://github.com/rowanz/hellaswag",
    ),
    "piqa": Home(
        _hub("baber/piqa", "*/validation/*.parquet"), lambda _: "piqa", "they are at https://yonatanbisk.com/piqa",
    ),
    "arc_easy": Home(
        _hub("allenai/ai2_arc", "ARC-Easy/test/*.parquet"), lambda _: "arc_easy",
        "they are at https://allenai.org/data/arc",
    ),
}  # fmt: skip
