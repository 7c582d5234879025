"""Runs in TRL's environment: `in_trl.py SINGLE HISTORY GRPO MODEL WORK` reads the exports with TRL's own trainers and takes a
step on each."""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

ADAPTER = LoraConfig(r=4, target_modules=r".*language_model.*(q|k|v|o)_proj", task_type="CAUSAL_LM")
CPU = {"use_cpu": True, "bf16": False, "report_to": [], "max_steps": 1, "logging_steps": 1, "save_strategy": "no"}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text("utf-8").splitlines()]


def change(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> int:
    return sum(not torch.equal(before[name], value) for name, value in model.named_parameters() if name in before)


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def load(model: Path) -> tuple:
    return AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32), AutoProcessor.from_pretrained(model)


def sft(folder: Path, model: Path, work: Path) -> dict:
    rows = load_dataset("imagefolder", data_dir=str(folder))["train"]
    written = lines(folder)
    assert len(rows) == len(written), f"{len(rows)} rows are read, {len(written)} were written"
    network, processor = load(model)
    settings = SFTConfig(output_dir=str(work / "sft"), max_length=None, per_device_train_batch_size=2, **CPU)
    trainer = SFTTrainer(network, settings, train_dataset=rows, processing_class=processor, peft_config=ADAPTER)
    assert len(trainer.train_dataset) == len(written)
    tokens = []
    for row, source in zip(trainer.train_dataset, written, strict=True):
        batch = trainer.data_collator([row])
        learned = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
        assert learned.strip() == source["completion"][0]["content"][0]["text"] + "<|im_end|>", learned
        pads = int((batch["input_ids"][0] == network.config.image_token_id).sum())
        assert pads == int(batch["image_grid_thw"].prod(-1).sum()) // 4, "image tokens and patches differ"
        assert len(batch["image_grid_thw"]) == len(source["images_file_names"])
        tokens.append(int(batch["attention_mask"].sum()))
    counted = json.loads((folder / "card.json").read_text("utf-8"))["tokens"]["longest_row"]
    assert max(tokens) == counted, f"the longest row has {max(tokens)} tokens, the export counted {counted}"
    before = trainable(trainer.model)
    result = trainer.train()
    return {
        "rows": len(rows),
        "longest": max(tokens),
        "loss": round(result.training_loss, 4),
        "changed tensors": change(trainer.model, before),
    }


def worth(prompts, completions, state, **_) -> list[float]:
    """How much a completion looks like the right action: enough to move weights."""
    said = [completion[0]["content"] for completion in completions]
    return [len(set(text) & set(json.loads(one)["answer"])) / (1 + len(text)) for text, one in zip(said, state, strict=True)]


def grpo(folder: Path, model: Path, work: Path) -> dict:
    rows = load_dataset("imagefolder", data_dir=str(folder))["train"]
    written = lines(folder)
    assert len(rows) == len(written), f"{len(rows)} rows are read, {len(written)} were written"
    for row, source in zip(rows, written, strict=True):
        assert len(row["images"]) == len(source["images_file_names"])
        assert json.loads(row["state"])["reference"]
    network, processor = load(model)
    settings = GRPOConfig(
        output_dir=str(work / "grpo"),
        max_completion_length=24,
        num_generations=4,
        per_device_train_batch_size=4,
        temperature=1.0,
        **CPU,
    )
    trainer = GRPOTrainer(network, worth, settings, train_dataset=rows, processing_class=processor, peft_config=ADAPTER)
    before = trainable(trainer.model)
    result = trainer.train()
    return {"rows": len(rows), "loss": round(result.training_loss, 6), "changed tensors": change(trainer.model, before)}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    single, history, states, model, work = (Path(argument) for argument in sys.argv[1:])
    report = {
        "SFTTrainer": sft(single, model, work),
        "SFTTrainer, with history": sft(history, model, work),
        "GRPOTrainer": grpo(states, model, work),
    }
    (work / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
