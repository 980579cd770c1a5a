"""What do the tests of evaluation examine? Tiny models, models that know everything or nothing, and a few items."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from moeut.data.tokenizer import byte_tokenizer, decode, encode, save_tokenizer, train_tokenizer
from moeut.evaluation.subject import Subject
from moeut.model.folder import save_model
from moeut.model.language_model import LanguageModel, ModelConfig
from moeut.model.sigma_moe import SigmaMoEConfig
from moeut.model.switchhead import SwitchHeadConfig

ITEMS = Path(__file__).resolve().parent / "assets" / "zero_shot"
FILES = sorted(file for file in ITEMS.iterdir() if file.suffix in (".jsonl", ".txt"))


def tokenizer_of_items() -> Tokenizer:
    """A byte-level BPE of 400 tokens, made from the items' own text."""
    return train_tokenizer([file.read_text("utf-8") for file in FILES], 400)


def tiny_model(vocab_size: int = 400) -> LanguageModel:
    """A MoEUT of random weights."""
    torch.manual_seed(0)
    return LanguageModel(
        ModelConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            num_hidden_layers=4,
            group_size=2,
            attention=SwitchHeadConfig(num_attention_heads=2, head_dim=8, num_experts=3),
            feed_forward=SigmaMoEConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8),
        )
    ).eval()


def save_tiny(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model folder with the tiny model and the tokenizer of the items."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of_items()
    save_tokenizer(tokenizer, folder)
    save_model(tiny_model(tokenizer.get_vocab_size()).to(dtype), folder)
    return folder


def save_rival(folder: Path, *, marks: bool = False, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A Llama of random weights. marks: its tokenizer begins every text with the token 0."""
    tokenizer = tokenizer_of_items()
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    settings = {
        "vocab_size": 400, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64,
    }  # fmt: skip
    model: Any = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    model.to(dtype).save_pretrained(folder)
    return folder


def subject(model: nn.Module, tokenizer: Tokenizer | None = None, max_length: int = 4096, name: str = "it") -> Subject:
    """A model, by default over bytes, under evaluation."""
    cut = tokenizer or byte_tokenizer()
    return Subject(
        name, model, lambda texts: encode(cut, texts), lambda ids: decode(cut, ids), (), 0, 0, max_length, max_length,
        Path("nowhere"), {},
    )  # fmt: skip


class Fake(nn.Module):
    """A model whose logits after each prefix are what a function says."""

    def __init__(self, logits: Callable[[tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.logits, self.calls = logits, 0

    def forward(self, ids: Tensor) -> SimpleNamespace:
        """ids: [B, T] → logits [B, T, V]."""
        self.calls += 1
        rows = [[self.logits(tuple(row[: end + 1])) for end in range(len(row))] for row in ids.tolist()]
        return SimpleNamespace(logits=torch.stack([torch.stack(row) for row in rows]))


def oracle(texts: Sequence[Sequence[int]], vocab_size: int = 257) -> Fake:
    """A model that gives the next token of each of these texts probability one, and knows nothing of others."""
    after = {tuple(ids[:end]): ids[end] for ids in texts for end in range(1, len(ids))}

    def logits(prefix: tuple[int, ...]) -> Tensor:
        if prefix not in after:
            return torch.zeros(vocab_size)
        return torch.full((vocab_size,), -torch.inf).index_fill(0, torch.tensor(after[prefix]), 0.0)

    return Fake(logits)


def uniform(vocab_size: int = 257) -> Fake:
    """A model to which every token is as likely as any other."""
    return Fake(lambda _: torch.zeros(vocab_size))
