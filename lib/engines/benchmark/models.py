"""The models that a benchmark runs on: tiny ones, the full sizes with random weights, or real checkpoints."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList, Qwen2_5_VLConfig

from lib.engines.tiny.qwen import SPECIALS, make_tiny_qwen
from lib.engines.tiny.sam2 import make_tiny_sam2
from lib.policies.qwen import Loaded, QwenConfig, load_qwen, prepare
from lib.segmenters.sam2_load import LoadedSam2, load_sam2, random_sam2

_TRAINED_PIXELS = 512 * 512


@dataclass(frozen=True, eq=False)
class Models:
    """A language model that writes scripted replies, and SAM2."""

    name: str
    language: Loaded
    config: QwenConfig
    sam2: LoadedSam2


def tiny_models(device: torch.device) -> Models:
    """Checkpoints of less than 10 MB, written and loaded in seconds: the mechanics without the arithmetic."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = QwenConfig(model=str(make_tiny_qwen(folder / "qwen")))
        return Models("tiny", load_qwen(config, device), config, load_sam2(make_tiny_sam2(folder / "sam2"), device=device))


def random_models(device: torch.device, static_cache: bool) -> Models:
    """Qwen2.5-VL-7B and SAM2 large with random weights: right in size and speed only. Nothing is downloaded.

    The tokeniser is the tiny one, which needs about as many tokens for the agent's texts as the published one does.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        processor = AutoProcessor.from_pretrained(make_tiny_qwen(Path(scratch)))
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": _TRAINED_PIXELS}
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(Qwen2_5_VLConfig(**_full_size(ids)), dtype=dtype)
    config = QwenConfig(model="random", static_cache=static_cache)
    return Models(
        "Qwen2.5-VL-7B + SAM2 large, random weights",
        prepare(model, processor, config, {"weights": "random"}),
        config,
        random_sam2("sam2_hiera_l", device=device),
    )


def real_models(model: str, checkpoint: Path, sam2_cfg: str, device: torch.device, static_cache: bool) -> Models:
    """Checkpoints as published. Raises InputError when they cannot be loaded."""
    config = QwenConfig(model=model, static_cache=static_cache)
    sam2 = load_sam2(checkpoint, sam2_cfg, device=device)
    return Models(f"{Path(model).name} + {sam2.name}", load_qwen(config, device), config, sam2)


def _full_size(ids: dict[str, int]) -> dict[str, Any]:
    """Sizes of Qwen2.5-VL-7B-Instruct, from its published `config.json`, with the tiny tokeniser's special tokens."""
    return {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        },
    }


class Scripted:
    """A language model whose replies are forced token by token: every forward pass is real, only the choice is not.

    Every reply has `tokens` tokens and holds a click at a place of its own, so that no episode ends before its last turn.
    """

    def __init__(self, loaded: Loaded, tokens: int, seed: int = 0):
        self._model = loaded.model
        self._tokenizer = loaded.processor.tokenizer
        self._tokens = tokens
        self._rng = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **inputs: Any) -> torch.Tensor:
        scripts = [self._script() for _ in range(len(inputs["input_ids"]))]
        force = _Force(scripts, inputs["input_ids"].shape[1])
        riders = LogitsProcessorList([*inputs.pop("logits_processor", []), force])
        return self._model.generate(**inputs, logits_processor=riders)

    def _script(self) -> list[int]:
        def ids(text: str) -> list[int]:
            return self._tokenizer(text, add_special_tokens=False).input_ids

        x, y = self._rng.uniform(0.1, 0.9, 2)
        tail = ids(f"\n</think>\n<action>\nPositive Point ({x:.4f}, {y:.4f})\n</action>")
        head, word = ids("<think>\n"), ids(" the")
        filling = (word * self._tokens)[: max(0, self._tokens - len(head) - len(tail))]
        return [*head, *filling, *tail, self._tokenizer.eos_token_id]


class _Force(LogitsProcessor):
    def __init__(self, scripts: Sequence[list[int]], start: int):
        self._scripts = scripts
        self._start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._start
        chosen = [script[min(step, len(script) - 1)] for script in self._scripts]
        forced = torch.full_like(scores, float("-inf"))
        forced[torch.arange(len(chosen)), torch.tensor(chosen)] = 0.0
        return forced
