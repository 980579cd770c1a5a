"""What does `moeut analyse` do? One or two models read a text; figures, numbers and a page go into a folder.

OUT/index.html        the page: a text token by token, with the experts that each met (`moeut.analysis.page`)
OUT/figures/*         every figure as PNG and SVG
OUT/tables/*          every table as Parquet and JSON
OUT/analysis.json     which models, text, settings and versions; what is printed

The folder appears all at once, and takes the place of an earlier analysis.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from moeut.analysis.figures import figures
from moeut.analysis.numbers import Row, profiles, summary, tables
from moeut.analysis.page import PageModel, page
from moeut.analysis.reading import MAX_TOKENS, read
from moeut.analysis.reading import Reading as TextReading
from moeut.analysis.recording import Batch, Recording, record
from moeut.data.sampler import evaluation_batches
from moeut.data.tokenizer import load_tokenizer
from moeut.data.tokens import TokenStream
from moeut.data.workplace import clear, publish, recover, workplace
from moeut.evaluation.subject import Subject
from moeut.experiments.describe import aligned
from moeut.experiments.evaluation import installed_versions, plain
from moeut.experiments.subjects import Reading, data_of_run, identities, is_prepared, open_subject, streams
from moeut.files import flush, replacing
from moeut.model.language_model import LanguageModel
from moeut.model.tensor_files import write_json
from moeut.settings import IGNORED_TARGET
from moeut.training.progress import Progress

ANALYSIS, PAGE, FIGURES, TABLES = "analysis.json", "index.html", "figures", "tables"
PNG_DPI = 300
Sources = Mapping[str, Sequence[TokenStream]]
"""The texts of each source, by its name, in the tokens of one model."""


@dataclass(frozen=True, kw_only=True)
class AnalysisPlan:
    """What is read, and how.

    texts: prepared folders or files, each a source; without any, the held-out part that belongs to the first model's
    run. by_source: each source of a prepared folder, and each file, apart. tokens: at most so many are read, as many of
    each source.
    """

    reading: Reading
    texts: tuple[Path, ...] = ()
    by_source: bool = False
    tokens: int = 1_000_000


class Analysed(NamedTuple):
    """What was found: for machines, and in lines for people."""

    facts: dict[str, Any]
    lines: list[str]


def analyse(names: Sequence[str], plan: AnalysisPlan, out: Path, progress: Progress) -> Analysed:
    """Record each model on the same text, and write all that can be seen of them into the folder `out`.

    Raises ValueError, before anything is read where it can be known then: for more than two models, for one that has
    no experts to ask because it is not ours, where something else than an analysis lies in `out`.
    """
    if len(names) != len(set(names)) or len(names) > 2:
        raise ValueError(f"{' '.join(names)}: name one model, or two different ones")
    _refuse_what_is_in_the_way(out)
    paths = plan.texts or (data_of_run(names[0]),)
    subjects = {name: _open(name, plan.reading, paths) for name in names}
    sources = {name: _sources(subject, plan, paths) for name, subject in subjects.items()}
    recordings = {name: _record(subject, sources[name], plan, progress) for name, subject in subjects.items()}
    pieces = {
        name: [subject.decode([token]) for token in range(len(recordings[name].token_counts))]
        for name, subject in subjects.items()
    }
    numbers = tables(recordings, pieces)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": [_described(subject, recordings[name]) for name, subject in subjects.items()],
        "settings": plain(asdict(plan)),
        "data": identities(paths),
        "versions": installed_versions(),
        "routers": numbers.get("routers", []),
    }
    text = example(subjects[names[0]], sources[names[0]])
    models = [
        PageModel(name, _read(subject, text), profiles(recordings[name], pieces[name]))
        for name, subject in subjects.items()
    ]
    corpus = f"{recordings[names[0]].tokens:,} tokens of {', '.join(sources[names[0]])}"
    _write(out, recordings, numbers, page(models, corpus), facts, progress)
    return Analysed({"folder": str(out), **facts}, _lines(recordings, numbers, out))


def _refuse_what_is_in_the_way(out: Path) -> None:
    recover(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file is in the way; choose another folder with --out")
    names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if names and not {ANALYSIS} <= names <= {ANALYSIS, PAGE, FIGURES, TABLES}:
        raise ValueError(f"{out}: something else than an analysis is in the way; choose another folder with --out")


def _open(name: str, reading: Reading, paths: Sequence[Path]) -> Subject:
    subject = open_subject(name, reading, next(filter(is_prepared, paths), None))
    if not isinstance(subject.model, LanguageModel):
        raise ValueError(f"{name}: no model of this package, so nothing is known of what happens inside it")
    return subject


def _sources(subject: Subject, plan: AnalysisPlan, paths: Sequence[Path]) -> Sources:
    if plan.by_source:
        return {name: [stream] for name, stream in streams(paths, subject, by_source=True).items()}
    return {str(path): list(streams([path], subject).values()) for path in paths}


def _record(subject: Subject, sources: Sources, plan: AnalysisPlan, progress: Progress) -> Recording:
    most = max(1, plan.tokens // len(sources))
    texts = {name: _beginning(of_source, most) for name, of_source in sources.items()}
    total = sum(len(stream) - 1 for stream in chain(*texts.values()))
    done = 0

    def batches(of_source: Sequence[TokenStream]) -> Iterator[Batch]:
        nonlocal done
        for stream in of_source:
            for batch in evaluation_batches(stream, subject.context_length, plan.reading.batch_size):
                yield batch
                done += int((batch[1] != IGNORED_TARGET).sum())
                progress("analyse", done, total)

    assert isinstance(subject.model, LanguageModel)
    return record(subject.model, {name: batches(of_source) for name, of_source in texts.items()})


def _beginning(texts: Sequence[TokenStream], most: int) -> list[TokenStream]:
    """As many of some streams, the last one cut short, as have at most so many tokens after their first ones."""
    kept: list[TokenStream] = []
    for stream in texts:
        if most > 0 and len(stream) > 1:
            kept.append(TokenStream([stream.read(0, min(len(stream), most + 1))], stream.documents, stream.has_ends))
            most -= len(kept[-1]) - 1
    return kept


def example(subject: Subject, sources: Sources) -> str:
    """The text of the page: the first document that fills it, or the longest one there is."""
    found = [
        (min(int(length), MAX_TOKENS), stream, number)
        for stream in chain(*sources.values())
        for number, length in enumerate(np.diff(stream.documents[:, 0], append=len(stream)))
    ]
    _, stream, number = max(found, key=itemgetter(0))
    return subject.decode(stream.document_tokens(number)[:MAX_TOKENS].tolist())


def _read(subject: Subject, text: str) -> TextReading:
    assert isinstance(subject.model, LanguageModel)
    return read(subject.model, load_tokenizer(subject.tokenizer_folder), text, subject.context_length)


def _described(subject: Subject, recording: Recording) -> dict[str, Any]:
    return {
        "name": subject.name, **subject.facts, "context_length": subject.context_length, "tokens": recording.tokens,
        "sources": list(recording.sources), "cross_entropy": recording.cross_entropy,
    }  # fmt: skip


def _write(
    out: Path, recordings: Mapping[str, Recording], numbers: Mapping[str, list[Row]], html: str,
    facts: dict[str, Any], progress: Progress,
) -> None:  # fmt: skip
    with workplace(out) as partial:
        clear(partial)
        try:
            _write_figures(partial / FIGURES, recordings, progress)
            _write_tables(partial / TABLES, numbers)
            with replacing(partial / PAGE) as file:
                file.write_text(html, encoding="utf-8")
            write_json(partial / ANALYSIS, facts)
            publish(partial, out)
        except BaseException:
            # Nobody goes on with half an analysis, so that none is left behind.
            if partial.exists():
                clear(partial)
            raise


def _write_figures(folder: Path, recordings: Mapping[str, Recording], progress: Progress) -> None:
    if find_spec("matplotlib") is None:
        progress.warn("no figures: they need matplotlib (pip install 'moeut[plot]'); the numbers are all there")
        return
    folder.mkdir()
    for number, (name, figure) in enumerate(figures(recordings)):
        for form in ("png", "svg"):
            with replacing(folder / f"{name}.{form}") as file:
                figure.savefig(file, format=form, dpi=PNG_DPI)
        progress("draw", number + 1, None, name)
    flush(folder)


def _write_tables(folder: Path, numbers: Mapping[str, list[Row]]) -> None:
    folder.mkdir()
    for name, rows in numbers.items():
        with replacing(folder / f"{name}.parquet") as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        with replacing(folder / f"{name}.json") as file:
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    flush(folder)


def _lines(recordings: Mapping[str, Recording], numbers: Mapping[str, list[Row]], out: Path) -> list[str]:
    lines = [
        f"{name}: {recording.tokens:,} tokens, cross entropy {recording.cross_entropy:.4f} nats a token"
        + ("" if recording.routers else "; it has no experts, so only its stream is shown")
        for name, recording in recordings.items()
    ]
    rows = numbers.get("routers", [])
    if rows:
        lines += ["", *aligned(summary(rows))]
    return [*lines, "", f"figures, tables and page: {out}"]
