"""How does a model answer over HTTP? Through transformers' own server, which speaks OpenAI's API, in this process.

That server looks a model's class up by name among the attributes of the module `transformers`, and has it read the
folder: here it finds something that hands over the model which `moeut.generation.generate.load` has read.
"""

import ipaddress
import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from transformers.utils.import_utils import is_serve_available

from moeut.generation.generate import GenerationConfig, for_transformers, load
from moeut.hf import MoEUTForCausalLM  # and transformers knows our configuration

CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join('\n\n') }}"
"""What is said in a chat, with empty lines between, and nothing about who said it: our models were taught no roles."""


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: torch.device | str = "cpu",
    num_repeats: int | None = None,
    *,
    notice: Callable[[str], object] = lambda line: None,
) -> None:
    """Serve the model in a folder until Ctrl-C or SIGTERM, which do then what they would have done.

    num_repeats: how often each layer runs, None: as in training. notice: told where the model is, and whether others
    than this machine can reach it. A request that does not say otherwise samples as `GenerationConfig` does, at most
    1,024 tokens. A chat becomes text by the tokenizer's own template, or by `CHAT_TEMPLATE` where it has none.

    Raises ValueError, one line, where packages are missing, nobody can listen there, or the folder holds no model.
    """
    if not is_serve_available():
        raise ValueError("the server needs more packages: pip install 'moeut[serve]'")
    from transformers.cli.serve import Serve

    on_this_machine = _check_address(host, port)
    loaded = load(folder, device, num_repeats)
    loaded.model.generation_config = for_transformers(GenerationConfig(), loaded)
    if not on_this_machine:
        notice(f"warning: whoever can reach {host} can use this server, and have it load models of the Hub")
    notice(f"{folder} is at http://{host}:{port}/v1")
    has_template = transformers.AutoTokenizer.from_pretrained(folder).chat_template is not None
    architecture = MoEUTForCausalLM.__name__
    setattr(transformers, architecture, SimpleNamespace(from_pretrained=lambda *_, **__: loaded.model))
    try:
        Serve(
            str(folder), host=host, port=port, device=str(device), log_level="error",
            chat_template_kwargs=None if has_template else json.dumps({"chat_template": CHAT_TEMPLATE}),
        )  # fmt: skip
    finally:
        delattr(transformers, architecture)


def _check_address(host: str, port: int) -> bool:
    """Whether this address can be reached from this machine only. Raises ValueError where nobody can listen there.

    The server would find that out only when it has loaded everything, and say it less plainly.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"--port: {port} is not between 1 and 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"--host, --port: cannot listen at {host}:{port}: {error.strerror}") from None
    return ipaddress.ip_address(address[0]).is_loopback
