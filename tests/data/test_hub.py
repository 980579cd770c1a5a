"""Data sets of the Hub, by the libraries' own ways of asking: what is listed, at which commit, and how it is read."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pytest
from hub_server import COMMIT, Answers, Hub, Resets, Stalls, serving
from pyarrow import parquet

from moeut.data.documents import Document
from moeut.data.download import Patience
from moeut.data.hub import HubFile, find_hub_files
from moeut.data.sources import HubSource, read_documents

CARD = """---
configs:
- config_name: en
  default: true
  data_files:
  - {split: train, path: en/train-*.json.gz}
  - {split: validation, path: en/validation-*.json.gz}
- config_name: rows
  data_files: rows/*.parquet
---
"""


def lines(name: str, count: int) -> bytes:
    return "".join(json.dumps({"text": f"{name}, document {i}"}) + "\n" for i in range(count)).encode()


def rows(name: str, count: int) -> bytes:
    file, generator = io.BytesIO(), random.Random(name)
    texts = [f"{name}, row {i}: {generator.randbytes(300).hex()}" for i in range(count)]
    parquet.write_table(pyarrow.table({"text": texts, "n": range(count)}), file, row_group_size=100)
    return file.getvalue()


FILES = {
    "README.md": CARD.encode(),
    ".gitattributes": b"* -text\n",
    **{f"en/train-{i}.json.gz": gzip.compress(lines(f"train {i}", 60), mtime=0) for i in range(5)},
    "en/validation-0.json.gz": gzip.compress(lines("validation", 7), mtime=0),
    "rows/0.parquet": rows("first", 500),
    "rows/1.parquet": rows("second", 20),
    "plain/a.jsonl": lines("plain", 3000),
    "plain/deep/b.jsonl": lines("deep", 3),
    "plain/deep/empty.jsonl": b"",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(dict(FILES))) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


class Ear:
    """Hears notices, and what sleep there would have been."""

    def __init__(self, tries: int = 8) -> None:
        self.notices: list[str] = []
        self.slept: list[float] = []
        self.patience = Patience(tries, 5.0, self.slept.append)


def find(*files: str, ear: Ear | None = None, revision: str | None = None) -> list[HubFile]:
    ear = ear or Ear()
    source = HubSource(dataset="someone/texts", files=files, revision=revision)
    return find_hub_files(source, ear.notices.append, ear.patience)


def test_globs_in_the_order_given(hub: Hub) -> None:
    files = find("plain/**/*.jsonl", "en/train-[31].json.gz", "en/validation-0.json.gz")
    assert [file.path for file in files] == [
        "plain/a.jsonl",
        "plain/deep/b.jsonl",
        "en/train-1.json.gz",
        "en/train-3.json.gz",
        "en/validation-0.json.gz",
    ]
    assert {file.commit for file in files} == {COMMIT}
    assert {file.given for file in files} == {"someone/texts"}
    assert [file.size for file in files] == [len(FILES[file.path]) for file in files]
    assert files[0].name == "someone/texts/plain/a.jsonl"
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]  # what they hold is not asked for
    assert len([path for _, path, _ in hub.requests if "/tree/" in path]) < 8  # nor folders that cannot match


def test_what_identifies_a_file_changes_with_its_content(hub: Hub) -> None:
    before = find("en/train-0.json.gz", "plain/a.jsonl")
    hub.files["en/train-0.json.gz"] = gzip.compress(b"other", mtime=0)
    hub.files["plain/a.jsonl"] = b"other"
    after = find("en/train-0.json.gz", "plain/a.jsonl")
    assert [file.identity().split(":")[0] for file in before] == ["sha256", "git"]
    for was, now in zip(before, after, strict=True):
        assert was.identity() != now.identity()
        assert was.stamp() != now.stamp()


def test_what_is_not_there(hub: Hub) -> None:
    for glob in ("fr/*.jsonl", "en/test-*", "plain/*.txt"):
        with pytest.raises(
            ValueError, match=rf"^the data set someone/texts: no file matches '{glob[:3]}.*' at the commit"
        ):
            find(glob)
    with pytest.raises(ValueError, match=r"^the data set someone/texts: the Hub answers 404; check the name"):
        find("en/*", revision="no-such-branch")
    with pytest.raises(ValueError, match=r"^the data set no/such: the Hub answers 404; check the name"):
        find_hub_files(HubSource(dataset="no/such"), print)


def test_listing_is_tried_again(hub: Hub) -> None:
    limit = '"api";r=0;t=55'
    hub.faults["info"] = [
        Answers(503),
        Answers(429, retry_after=30),
        Answers(429, rate_limit=limit),
        Answers(429, 9999),
    ]
    ear = Ear()
    assert len(find("en/train-*", ear=ear)) == 5
    assert ear.slept == [1, 30, 55, 300]
    assert ear.notices[1] == "the data set someone/texts: the Hub answers 429; trying again in 30 s"


def test_a_gated_data_set(hub: Hub) -> None:
    hub.faults["info"] = [Answers(403)]
    with pytest.raises(
        ValueError, match=r"^the data set someone/texts: the Hub answers 403; log in with `hf auth login`"
    ):
        find("en/*")


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^the data set someone/texts: needs the Hub, and HF_HUB_OFFLINE is set"):
        find("en/*")


def test_documents_are_those_of_an_undisturbed_read(hub: Hub) -> None:
    globs = ("en/train-*", "rows/*.parquet", "plain/**/*.jsonl")
    undisturbed = list(read_documents(find(*globs)))
    assert len(undisturbed) == 5 * 60 + 500 + 20 + 3000 + 3
    hub.faults |= {
        "en/train-1.json.gz": [Resets(100), Answers(500), Resets(1)],
        "en/train-3.json.gz": [Answers(429, retry_after=3)],
        "rows/0.parquet": [Resets(30_000), Resets(20), Answers(502), Resets(500, politely=True)],
        "plain/a.jsonl": [Resets(70_001), Resets(0), Resets(9_999)],
    }
    ear = Ear()
    disturbed = list(read_documents(find(*globs, ear=ear), notice=ear.notices.append))
    assert disturbed == undisturbed
    assert not any(hub.faults.values())
    assert len(ear.notices) == len(ear.slept) == 11


def test_a_stall_is_noticed(hub: Hub) -> None:
    hub.faults["plain/a.jsonl"] = [Stalls(1000)]
    ear = Ear()
    ear.patience = Patience(8, 0.3, ear.slept.append)
    documents = list(read_documents(find("plain/a.jsonl", ear=ear), notice=ear.notices.append))
    assert len(documents) == 3000
    assert len(ear.notices) == 1


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (404, 1), (500, 5)])
def test_a_permanent_failure_comes_after_all_that_could_be_read(hub: Hub, status: int, tries: int) -> None:
    undisturbed = list(read_documents(find("en/train-*")))
    hub.faults["en/train-2.json.gz"] = [Answers(status)] * 9
    ear = Ear(tries=5)
    documents: list[Document] = []
    with pytest.raises(ValueError, match=rf"^someone/texts/en/train-2\.json\.gz: .*the Hub answers {status}"):
        documents.extend(read_documents(find("en/train-*", ear=ear)))
    assert documents == undisturbed[:120]
    assert len(ear.slept) == tries - 1
    hub.faults.clear()
    rest = list(read_documents(find("en/train-*"), start=documents[-1].next))
    assert documents + rest == undisturbed


def test_faults_in_the_text_name_file_and_line(hub: Hub) -> None:
    hub.files["plain/a.jsonl"] = lines("plain", 2) + b"{broken\n"
    with pytest.raises(ValueError, match=r"^someone/texts/plain/a\.jsonl:3: not a line of JSON"):
        list(read_documents(find("plain/a.jsonl")))
    with pytest.raises(ValueError, match=r"^someone/texts/rows/0\.parquet: no column 'body'; .* 'text', 'n'$"):
        list(read_documents(find("rows/0.parquet"), "body"))
    hub.files["en/train-0.json.gz"] = hub.files["en/train-0.json.gz"][:-20]
    with pytest.raises(ValueError, match=r"^someone/texts/en/train-0\.json\.gz: the archive is damaged or cut short"):
        list(read_documents(find("en/train-0.json.gz")))


def test_rows_before_the_position_are_not_fetched(hub: Hub) -> None:
    files = find("rows/0.parquet")
    documents = list(read_documents(files))
    hub.requests.clear()
    assert list(read_documents(files, start=documents[450].position)) == documents[450:]
    starts = [int(headers["range"].removeprefix("bytes=").split("-")[0]) for _, _, headers in hub.requests]
    assert min(starts) > len(FILES["rows/0.parquet"]) / 2


def test_the_token_stays_with_the_hub(hub: Hub) -> None:
    hub.redirects = True
    assert len(list(read_documents(find("en/train-0.json.gz")))) == 60
    tokens = {path.split("/")[1]: headers.get("authorization") for _, path, headers in hub.requests}
    assert tokens["datasets"] == "Bearer hf_secret"
    assert tokens["store"] is None


BY_NAME = """
import json, sys
from moeut.data.sources import HubSource, read_documents, resolve

for options in json.loads(sys.argv[1]):
    try:
        files = resolve(HubSource(**options))
        print(json.dumps([[file.path for file in files], sum(1 for _ in read_documents(files)), files[0].given]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def by_name(endpoint: str, folder: Path, *options: dict[str, str]) -> list:
    """What sources by name come to, in a process of its own: the libraries look for the Hub when they are imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-W", "error", "-c", BY_NAME, json.dumps(options)]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_by_name(tmp_path: Path) -> None:
    others = (
        Hub({"script.py": b"import os", "a.jsonl": lines("a", 3)}, "someone/script"),
        Hub({"a.csv": b"text\nhello\n"}, "someone/table"),
        Hub({".gitattributes": b"\n"}, "someone/nothing"),
        Hub({"data/train-0.parquet": rows("a", 3), "data/test-0.parquet": rows("b", 4)}, "someone/bare"),
    )
    with serving(Hub(dict(FILES)), *others) as hub:
        default, validation, in_rows, bare, no_name, no_split, no_revision, script, table, nothing = by_name(
            hub.endpoint,
            tmp_path,
            {"dataset": "someone/texts", "revision": "main"},
            {"dataset": "someone/texts", "split": "validation"},
            {"dataset": "someone/texts", "name": "rows"},
            {"dataset": "someone/bare"},
            {"dataset": "someone/texts", "name": "de"},
            {"dataset": "someone/texts", "split": "test"},
            {"dataset": "someone/texts", "revision": "no-such-branch"},
            {"dataset": "someone/script"},
            {"dataset": "someone/table"},
            {"dataset": "someone/nothing"},
        )
    assert default == [[f"en/train-{i}.json.gz" for i in range(5)], 300, "someone/texts train"]
    assert validation == [["en/validation-0.json.gz"], 7, "someone/texts validation"]
    assert in_rows == [["rows/0.parquet", "rows/1.parquet"], 520, "someone/texts rows train"]
    assert bare == [["data/train-0.parquet"], 3, "someone/bare train"]
    assert no_name == "the data set someone/texts: BuilderConfig 'de' not found. Available: ['en', 'rows']"
    assert no_split == "the data set someone/texts: no split 'test'; the splits there are: 'train', 'validation'"
    assert no_revision.startswith("the data set someone/texts: the Hub answers 404; check the name and the revision")
    assert script == "the data set someone/script: Dataset scripts are no longer supported, but found script.py"
    assert table == "the data set someone/table: its files hold .csv, not text, JSON lines, Parquet or Arrow"
    assert nothing.startswith("the data set someone/nothing: ")
    assert "\n" not in nothing


def test_a_folder_of_the_same_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someone/texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^the data set someone/texts: there is a folder of that name here"):
        find_hub_files(HubSource(dataset="someone/texts"), print)
