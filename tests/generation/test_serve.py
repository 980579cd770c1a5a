"""Does the server answer as OpenAI's does, in pieces and whole, stop when it is told to, and refuse in one line?"""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import transformers
from tiny_folder import monotonous_run

from moeut.generation import serve as serve_module
from moeut.generation.serve import serve


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command, once it is ready, and its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moeut", "serve", folder.name, "--port", str(port), *words]
    # What a shell starts in the background ignores Ctrl-C, and so does what that starts, unless somebody listens.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, former)
    try:
        wait_until_healthy(process, address)
        yield process, address
    finally:
        process.kill()
        process.communicate()


def wait_until_healthy(process: subprocess.Popen[str], address: str) -> None:
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What the server has said, once it has ended as that signal should end it."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    return output


def test_the_real_server(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs the extra [serve]")
    from transformers.cli.serving.model_manager import ModelManager

    with served(monotonous_run(tmp_path / "run"), "--device", "cpu") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        if hasattr(ModelManager, "list_models"):  # below transformers 5.24, servers list the Hub's cache instead
            assert [model.id for model in client.models.list().data] == ["run/final"]
        assert_completions(client, "run/final")
        assert_chats(client, "run/final")
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="another", prompt="a")
        assert "pinned to 'run/final'" in refused.value.response.text
        client.close()
        output = stopped(process, signal.SIGINT)
    assert f"moeut: run/final is at {address}/v1" in output
    assert "warning" not in output.lower()


def assert_completions(client: Any, model: str) -> None:
    whole = client.completions.create(model=model, prompt="abc", max_tokens=5)
    assert whole.choices[0].text == "zzzzz"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 5)
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(model=model, prompt="abc", max_tokens=5, stream=True)
    ]
    assert "".join(pieces) == "zzzzz"
    assert len([piece for piece in pieces if piece]) > 1
    assert client.completions.create(model=model, prompt="", max_tokens=3).choices[0].text == "zzz"
    greedy = client.completions.create(model=model, prompt="abc", max_tokens=2, temperature=0)
    assert greedy.choices[0].text == "zz"


def assert_chats(client: Any, model: str) -> None:
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"},
                {"role": "user", "content": "f"}]  # fmt: skip
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert whole.choices[0].message.content == "zzzz"
    assert whole.usage.prompt_tokens == len("abc\n\nde\n\nf")
    streamed = client.chat.completions.create(model=model, messages=messages, max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "zzzz"


@pytest.mark.slow
def test_sigterm_in_the_midst_of_a_text(tmp_path: Path) -> None:
    """The answer that is being given is finished first, with as many tokens as were asked for."""
    openai = pytest.importorskip("openai", reason="needs the extra [serve]")
    with served(monotonous_run(tmp_path / "run"), "--quiet", "--repeats", "3") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        chunks = iter(client.completions.create(model="run/final", prompt="a", max_tokens=200, stream=True))
        pieces = [next(chunks).choices[0].text]
        process.send_signal(signal.SIGTERM)
        pieces += [chunk.choices[0].text for chunk in chunks]
        assert "".join(pieces) == "z" * 200
        client.close()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert output == f"moeut: run/final is at {address}/v1\n"


@pytest.fixture
def can_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were there: these mistakes are found before it is used."""
    monkeypatch.setattr(serve_module, "is_serve_available", lambda: True)


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "is_serve_available", lambda: False)
    with pytest.raises(ValueError, match=r"^the server needs more packages: pip install 'moeut\[serve\]'$"):
        serve(tmp_path)


@pytest.mark.usefixtures("can_serve")
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValueError, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use$"),
    ):
        serve(tmp_path, port=taken.getsockname()[1])


@pytest.mark.usefixtures("can_serve")
@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [("127.0.0.1", 0, "0 is not between 1 and 65535"), ("127.0.0.1", 65536, "65536 is not"),
     ("192.0.2.1", 8000, "cannot listen at 192.0.2.1:8000: "), ("no.such.host.invalid", 8000, "cannot listen at no.")],
)  # fmt: skip
def test_addresses_that_cannot_be_listened_at(host: str, port: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        serve(tmp_path, host, port)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("can_serve")
def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is no model folder"):
        serve(tmp_path, port=free_port())


class Recorder:
    """In the place of transformers' server: what it is given, and the model that it finds."""

    given: ClassVar[dict[str, Any]]

    def __init__(self, folder: str, **settings: Any) -> None:
        model = vars(transformers)["MoEUTForCausalLM"].from_pretrained(folder, dtype="auto")
        type(self).given = {"folder": folder, "model": model, **settings}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    pytest.importorskip("fastapi", reason="needs the extra [serve]")
    monkeypatch.setattr("transformers.cli.serve.Serve", Recorder)
    return Recorder


@pytest.mark.usefixtures("can_serve")
def test_what_the_server_is_given(tmp_path: Path, recorder: type[Recorder]) -> None:
    folder, notices = monotonous_run(tmp_path / "run") / "final", []
    serve(folder, "localhost", port := free_port(), num_repeats=5, notice=notices.append)
    assert notices == [f"{folder} is at http://localhost:{port}/v1"]
    model = recorder.given["model"]
    assert model.config.num_hidden_layers == 5
    assert (model.generation_config.do_sample, model.generation_config.temperature) == (True, 0.8)
    assert recorder.given["chat_template_kwargs"] is not None
    assert "MoEUTForCausalLM" not in vars(transformers)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    serve(folder, "0.0.0.0", port, notice=notices.append)
    assert notices[1] == ("warning: whoever can reach 0.0.0.0 can use this server, and have it load models of the Hub")
    assert recorder.given["chat_template_kwargs"] is None
