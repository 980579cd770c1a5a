"""Can a model be taught more with the tools of others: transformers' Trainer, LoRA from PEFT?"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import DENSE, MOEUT, build, byte_model, prompts
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from moeut.hf import MoEUTForCausalLM
from moeut.model.folder import load_model
from moeut.model.language_model import ModelConfig

NEEDS_ACCELERATE = "transformers' Trainer needs accelerate: pip install accelerate"
NAMES = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"


def sentences() -> list[dict[str, Tensor]]:
    """Sixteen times the same sentence, of two lengths, as a Trainer's collator wants them."""
    tokens = torch.tensor([byte + 1 for byte in b"all work and no play"])
    return [{"input_ids": ids, "labels": ids} for ids in (tokens, tokens[:12]) for _ in range(8)]


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def stack(name: str, value: int) -> Tensor:
        return torch.stack([pad(row[name], (0, longest - len(row[name])), value=value) for row in rows])

    ids = stack("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": stack("labels", -100)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trainer_teaches_saves_and_what_it_saved_loads(tmp_path: Path, checkpointing: bool) -> None:
    pytest.importorskip("accelerate", reason=NEEDS_ACCELERATE)
    byte_model(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    settings: dict[str, Any] = {CHECKPOINTING: checkpointing}
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=12, per_device_train_batch_size=4, learning_rate=0.02, report_to="none",
        use_cpu=True, save_steps=12, eval_strategy="no", disable_tqdm=True, logging_strategy="no",
        gradient_accumulation_steps=2, **settings,
    )  # fmt: skip
    rows: Any = sentences()
    trainer = Trainer(model, arguments, data_collator=padded, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.5
    trainer.save_model(str(tmp_path / "taught"))
    batches = [padded(rows[:8]), padded(rows[8:])]
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "taught"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-12"),
        MoEUTForCausalLM.wrap(load_model(tmp_path / "taught").eval()),
    ):
        losses = [loaded(**batch).loss.item() for batch in batches]
        assert sum(losses) / 2 == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "projections"),
    [(MOEUT, ["q_proj", "k_proj"]), (DENSE, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"])],
    ids=["moeut", "dense"],
)
def test_lora_learns_saves_loads_and_merges(tmp_path: Path, config: ModelConfig, projections: list[str]) -> None:
    """Of the dense projections, which other models have under the same names; the model's own weights stay."""
    peft: Any = pytest.importorskip("peft", reason="adapters need peft: pip install peft")
    model, ids = build(config), prompts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=16, target_modules=projections)
    adapted = peft.get_peft_model(model, settings).double().train()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(projections) * config.group_size
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(10):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    expected = adapted.eval()(input_ids=ids).logits
    text = adapted.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    adapted.save_pretrained(tmp_path / "adapter")
    base = build(config)
    base.load_state_dict(before)
    assert not torch.allclose(base(ids).logits, expected)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").double().eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(loaded.generate(input_ids=ids, max_new_tokens=4, do_sample=False), text)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, MoEUTForCausalLM)
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-6, atol=1e-7)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(ids).logits, merged(ids).logits)
