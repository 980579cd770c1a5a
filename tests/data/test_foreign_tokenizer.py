"""Tokenizers made elsewhere: read from files and from a Hub on this machine, and the same to transformers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from moeut.data.foreign_tokenizer import find_tokenizer, read_tokenizer
from moeut.data.special_tokens import special_ids, special_uses
from moeut.data.tokenizer import decode, encode, end_of_document_id, load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = ["hello world", "<s>hello</s> [SEP]<|eot|>", "  a\tb\n\nc ", "def f(x):\n    return 1", "naïve 😀", ""]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, tokenizer: Tokenizer, config: dict[str, object] | None = None) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def unigram() -> Tokenizer:
    """As T5: the names of special tokens are entries of the vocabulary, and every text is given an end."""
    names = ["<pad>", "</s>", "<unk>"]
    characters = dict.fromkeys("▁helowrd<>/s|abcdefxtnu():[SEP]1")
    tokenizer = Tokenizer(models.Unigram([(n, 0.0) for n in names] + [(c, -4.0) for c in characters], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def chat() -> Tokenizer:
    """As Llama 3: byte-level, with two ends, of which only the configuration says which is which."""
    tokenizer = Tokenizer(train_tokenizer(TEXTS * 3, 300).model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end_of_text|>", "<|eot|>"])
    tokenizer.add_tokens([AddedToken("hello", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


def word_pieces(folder: Path) -> Path:
    """As BERT: a list of words, and not even a tokenizer.json."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "sep", "def", "return", *"<>/[]():sfx1abc"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def merges(folder: Path) -> Path:
    """As GPT-2 before there was tokenizer.json."""
    folder.mkdir()
    train_tokenizer(TEXTS * 3, 300).model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


@pytest.fixture(params=["unigram", "chat", "word pieces", "merges"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / "foreign"
    match request.param:
        case "unigram":
            pad = {"content": "<pad>", "__type": "AddedToken", "special": True}
            return write(place, unigram(), {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": pad})
        case "chat":
            return write(place, chat(), {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "chat_template": "{{ 1 }}"})
        case "word pieces":
            return word_pieces(place)
        case _:
            return merges(place)


ENDS = {"unigram": "</s>", "chat": "<|eot|>", "word pieces": "[SEP]", "merges": "<|endoftext|>"}


def test_kept_and_the_same_to_transformers(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    tokenizer = find_tokenizer(str(folder))
    end = ENDS[request.node.callspec.params["folder"]]
    assert tokenizer.id_to_token(end_of_document_id(tokenizer)) == end
    original = AutoTokenizer.from_pretrained(folder)
    assert end == (original.eos_token or "[SEP]")
    plain = [text for text in TEXTS if "</s>" not in text]  # of which transformers' Unigram makes a special token
    assert encode(tokenizer, plain) == original(plain, add_special_tokens=False)["input_ids"]

    (tmp_path / "saved").mkdir()
    save_tokenizer(tokenizer, tmp_path / "saved")
    reader = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert reader(TEXTS)["input_ids"] == encode(tokenizer, TEXTS)
    assert encode(load_tokenizer(tmp_path / "saved"), TEXTS) == encode(tokenizer, TEXTS)
    assert special_uses(load_tokenizer(tmp_path / "saved")) == special_uses(tokenizer)
    assert reader.eos_token == reader.bos_token == end
    assert reader.pad_token == (original.pad_token or end)
    assert reader.unk_token == original.unk_token
    for ids in encode(tokenizer, TEXTS):
        assert reader.decode(ids) == decode(tokenizer, ids)


def test_text_stays_text(folder: Path) -> None:
    tokenizer = find_tokenizer(str(folder))
    special = special_ids(tokenizer)
    unknown = special_uses(tokenizer).get("unk_token")
    texts = [shape.format(name) for name in special for shape in ("{}", "a {} b", "x{0}{0}")]
    made = {id for ids in encode(tokenizer, texts) for id in ids}
    assert not made & {id for name, id in special.items() if name != unknown}


def test_truncation_and_padding_are_off(tmp_path: Path) -> None:
    foreign = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    foreign.add_special_tokens(["</s>"])
    foreign.enable_truncation(2)
    foreign.enable_padding(length=4, pad_id=2, pad_token="</s>")
    loaded = read_tokenizer(write(tmp_path / "foreign", foreign))
    assert end_of_document_id(loaded) == 2
    assert encode(loaded, ["ababab"]) == [[0, 1, 0, 1, 0, 1]]
    assert encode(find_tokenizer(str(tmp_path / "foreign" / "tokenizer.json")), ["ab"]) == [[0, 1]]


def test_an_older_configuration(tmp_path: Path) -> None:
    folder = write(tmp_path / "foreign", chat())
    assert special_uses(read_tokenizer(folder))["eos_token"] == "<|end_of_text|>"  # a guess
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|eot|>"}, "bos_token": null}')
    assert special_uses(read_tokenizer(folder)) == dict.fromkeys(("pad_token", "eos_token", "bos_token"), "<|eot|>")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not a JSON object"):
        read_tokenizer(folder)


def test_no_end_of_a_document(tmp_path: Path) -> None:
    foreign = Tokenizer(models.BPE(vocab={"a": 0, "<this>": 1, "<that>": 2}, merges=[]))
    foreign.add_special_tokens(["<this>", "<that>"])
    with pytest.raises(ValueError, match=r"no token for the end of a document \(its special tokens: <this>, <that>\)"):
        end_of_document_id(find_tokenizer(str(write(tmp_path / "foreign", foreign))))


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^[^\n]*empty: no tokenizer that transformers can read \([^\n]*\)$"):
        find_tokenizer(str(tmp_path / "empty"))
    (tmp_path / "some.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"some\.model: not a SentencePiece model"):
        find_tokenizer(str(tmp_path / "some.model"))
    for path in ("./nowhere.json", "some/deep/folder", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=r"no such file or folder$"):
            find_tokenizer(path)


def test_ids_with_gaps(tmp_path: Path) -> None:
    foreign = Tokenizer(models.BPE(vocab={"a": 0, "b": 7, "</s>": 2}, merges=[]))
    with pytest.raises(ValueError, match="ids have gaps"):
        find_tokenizer(str(write(tmp_path / "foreign", foreign)))


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """A Hub whose only model, someone/model, has the files of a folder."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            name = path.removeprefix(f"/someone/model/resolve/{COMMIT}/")
            files = sorted(file.name for file in folder.iterdir())
            if path.startswith("/api/models/someone/model/tree/"):
                sizes = {file: (folder / file).stat().st_size for file in files}
                entries = [{"type": "file", "path": file, "size": sizes[file], "oid": "0" * 40} for file in files]
                self.say(200, json.dumps(entries).encode())
            elif path.startswith("/api/models/someone/model"):
                siblings = [{"rfilename": file} for file in files]
                self.say(200, json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode())
            elif name in files:
                self.say(200, (folder / name).read_bytes(), ETag=f'"{name}"')
            else:
                self.say(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

        def say(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found_on(endpoint: str, name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """What another process finds, for the endpoint is read when huggingface_hub is imported."""
    program = (
        "import json, sys\nfrom moeut.data.foreign_tokenizer import find_tokenizer\n"
        "try: print(json.dumps(find_tokenizer(sys.argv[1]).encode('hello world').ids))\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, name], env=environment, capture_output=True, text=True, check=False
    )


def test_from_the_hub(tmp_path: Path) -> None:
    folder = write(tmp_path / "foreign", chat(), {"eos_token": "<|eot|>"})
    (folder / "model.safetensors").write_bytes(bytes(1000))
    with hub(folder) as endpoint:
        found = found_on(endpoint, "someone/model", tmp_path / "home")
        missing = found_on(endpoint, "someone/else", tmp_path / "home")
    assert json.loads(found.stdout) == encode(read_tokenizer(folder), ["hello world"])[0]
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    again = found_on(endpoint, "someone/model", tmp_path / "home")  # the Hub is gone, the files are not
    assert again.stdout == found.stdout
    assert missing.stderr.splitlines()[-1].startswith("someone/else: no such file or folder here, and not to be had")


def test_no_hub(tmp_path: Path) -> None:
    found = found_on("http://127.0.0.1:9", "someone/model", tmp_path)
    assert found.returncode == 1
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("someone/model: ")]
    assert "not to be had from the Hub" in line
