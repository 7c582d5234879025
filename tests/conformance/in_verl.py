"""Runs in verl's environment: `in_verl.py TURNS EPISODES MODEL WORK` reads the parquet files with verl's own dataset class, and
takes one GRPO step on its batch with verl's own advantages and loss."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_policy_loss_vanilla
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.config import ActorConfig

GENERATIONS, LENGTH = 4, 16


def dataset(path: Path, processor, filtering: bool, longest: int = 30000) -> RLHFDataset:
    config = OmegaConf.create(
        {
            "image_key": "images",
            "return_raw_chat": True,
            "max_prompt_length": longest,
            "truncation": "error",
            "filter_overlong_prompts": filtering,
            "filter_overlong_prompts_workers": 1,
            "cache_dir": str(path.parent / ".cache"),
        }
    )
    return RLHFDataset(str(path), processor.tokenizer, config, processor)


def inputs(messages: list[dict], processor):
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pictures = [
        part["image"] for message in messages for part in message["content"] if isinstance(part, dict) and "image" in part
    ]
    return processor(text=[text], images=pictures, return_tensors="pt"), pictures


def read(path: Path, processor, network) -> dict:
    written = pq.read_metadata(path).num_rows
    everything, filtered = dataset(path, processor, False), dataset(path, processor, True)
    assert len(everything) == written, f"{len(everything)} rows are read, {written} were written"
    assert len(filtered) == written, f"the filter keeps {len(filtered)} rows of {written}"
    longest = 0
    items = [everything[number] for number in range(written)]
    for item in items:
        ready, pictures = inputs(item["raw_prompt"], processor)
        pads = int((ready["input_ids"] == network.config.image_token_id).sum())
        assert pads == int(ready["image_grid_thw"].prod(-1).sum()) // 4, "image tokens and patches differ"
        assert len(pictures) >= 1
        assert item["reward_model"]["ground_truth"] == item["extra_info"]["answer"]
        for name in ("pre_iou", "current_step", "optimal_step", "reference"):
            assert item["extra_info"][name] is not None
        longest = max(longest, ready["input_ids"].shape[1])
    counted = json.loads((path.parent / "card.json").read_text("utf-8"))["tokens"]["longest_row"]
    assert longest == counted, f"the longest prompt has {longest} tokens, the export counted {counted}"
    batch = collate_fn(items[:2])
    assert len(batch["raw_prompt"]) == min(2, written)
    stops = sum(item["extra_info"]["stop"] for item in items)
    return {"rows": written, "with the filter": len(filtered), "stop rows": stops, "longest": longest}


def broken(path: Path, processor, work: Path) -> dict:
    """A row with a picture too many: that it is dropped without a word shows why rows are counted."""
    table = pq.read_table(path)
    pictures = table.column("images").to_pylist()
    pictures[0] *= 2
    column = table.schema.get_field_index("images")
    pq.write_table(table.set_column(column, table.schema.field("images"), [pictures]), work / "broken.parquet")
    left = len(dataset(work / "broken.parquet", processor, True))
    assert left == table.num_rows - 1, "the filter no longer drops a row whose marks and pictures differ"
    return {"rows": table.num_rows, "with the filter": left}


def step(path: Path, processor, network) -> dict:
    """Sample replies to one row, reward them, and update the weights: advantages and loss are verl's."""
    item = dataset(path, processor, False)[0]
    ready, _ = inputs(item["raw_prompt"], processor)
    length = ready["input_ids"].shape[1]
    wanted = item["reward_model"]["ground_truth"]
    sampled = network.generate(
        **ready, do_sample=True, num_return_sequences=GENERATIONS, max_new_tokens=LENGTH, min_new_tokens=LENGTH
    )
    replies = sampled[:, length:]
    texts = processor.batch_decode(replies)
    mask = torch.ones_like(replies, dtype=torch.float32)
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = torch.tensor([len(set(text) & set(wanted)) / len(text) for text in texts])
    advantages, _ = compute_grpo_outcome_advantage(rewards, mask, index=[0] * GENERATIONS)
    grids = ready["image_grid_thw"].repeat(GENERATIONS, 1)
    pixels = ready["pixel_values"].repeat(GENERATIONS, 1)
    kinds = torch.zeros_like(sampled)
    kinds[:, :length] = ready["mm_token_type_ids"]
    output = network(input_ids=sampled, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=kinds)
    chances = output.logits[:, length - 1 : -1].log_softmax(-1).gather(-1, replies[..., None])[..., 0]
    config = ActorConfig(
        strategy="fsdp", rollout_n=GENERATIONS, ppo_micro_batch_size_per_gpu=GENERATIONS, ppo_mini_batch_size=1
    )
    loss, *_ = compute_policy_loss_vanilla(chances.detach(), chances, advantages, mask, "token-mean", config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    before = [value.detach().clone() for value in network.parameters()]
    loss.backward()
    optimiser.step()
    changed = sum(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    return {"replies": GENERATIONS, "rewards": [round(float(one), 3) for one in rewards[:, -1]], "changed tensors": changed}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    turns, episodes, model, work = (Path(argument) for argument in sys.argv[1:])
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    report = {
        "RLHFDataset, a row per turn": read(turns / "train.parquet", processor, network),
        "RLHFDataset, a row per episode": read(episodes / "train.parquet", processor, network),
        "RLHFDataset, one row broken": broken(turns / "train.parquet", processor, work),
        "GRPO step with verl's advantages and loss": step(turns / "train.parquet", processor, network),
    }
    (work / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
