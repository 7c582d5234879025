"""Runs in LLaMA-Factory's environment: `in_llamafactory.py SINGLE HISTORY WORK` reads both exports with its own loader, looks
at what is learned, and takes one step by its own command line. The tiny model is made here, by this environment's version of
transformers."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

from lib.engines.tiny.qwen import make_tiny_qwen

IGNORED = -100


def counted(folder: Path) -> int:
    return json.loads((folder / "card.json").read_text("utf-8"))["tokens"]["longest_row"]


def settings(folder: Path, model: Path, output: Path) -> dict:
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(model),
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "template": "qwen2_vl",
        "dataset_dir": str(folder),
        "media_dir": str(folder),
        "dataset": "ibis_train",
        "cutoff_len": counted(folder) + 100,
        "image_max_pixels": 262144,
        "output_dir": str(output),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 1,
        "max_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "preprocessing_num_workers": 1,
    }


def read(folder: Path, model: Path, work: Path) -> dict:
    rows = json.loads((folder / "train.json").read_text("utf-8"))
    model_arguments, data_arguments, training_arguments, _, _ = get_train_args(settings(folder, model, work / "unused"))
    loaded = load_tokenizer(model_arguments)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_arguments)
    data = get_dataset(template, model_arguments, data_arguments, training_arguments, stage="sft", **loaded)["train_dataset"]
    assert len(data) == len(rows), f"{len(data)} rows are read, {len(rows)} were written"
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    longest = 0
    for item, row in zip(data, rows, strict=True):
        learned = tokenizer.decode([token for token in item["labels"] if token != IGNORED])
        wanted = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert [reply.removeprefix("\n") for reply in learned.split("<|im_end|>")] == [*wanted, ""], learned
        assert len(item["images"]) == len(row["images"])
        assert pad in item["input_ids"]
        longest = max(longest, len(item["input_ids"]))
    assert longest == counted(folder), f"the longest row has {longest} tokens, the export counted {counted(folder)}"
    return {"rows": len(rows), "longest": longest, "replies": sum(len(row["messages"]) // 2 for row in rows)}


def train(folder: Path, model: Path, work: Path) -> dict:
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings(folder, model, work / "adapter")))
    command = [str(Path(sys.executable).with_name("llamafactory-cli")), "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (work / "adapter" / "adapter_model.safetensors").is_file()
    history = json.loads((work / "adapter" / "trainer_state.json").read_text())["log_history"]
    return {"exit code": done.returncode, "loss": next(entry["loss"] for entry in history if "loss" in entry)}


def main() -> None:
    torch.set_num_threads(1)
    single, history, work = (Path(argument) for argument in sys.argv[1:])
    model = make_tiny_qwen(work / "model")
    report = {
        "get_dataset": read(single, model, work),
        "get_dataset, with history": read(history, model, work),
        "llamafactory-cli train": train(single, model, work),
    }
    (work / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
