"""Teaches the tiny checkpoint to be an agent: bright discs on dark ground, clicked on until a green mask covers them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from lib.agent.prompts import turn_prompt
from lib.agent.protocol import Action, Click, Reply, Terminate, render
from lib.engines.tiny import qwen
from lib.imaging.overlays import OVERLAYS, blend
from lib.imaging.planes import ViewPoint

SIDE = 112
"""Width and height of the pictures, in pixels."""
_QUERIES = ("liver", "spleen", "left kidney", "Is there a lesion?", "bright disc")
_STEPS = 280
_BATCH = 8
_RATE = 6e-3
_IGNORED = -100
"""Label of the tokens that are not learned, as the loss function of transformers defines it."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One turn of an expert."""

    picture: np.ndarray
    """uint8 RGB `[SIDE, SIDE, 3]`, with the mask painted on it from the second turn on."""
    query: str
    refining: bool
    reply: str


def scenes(seed: int) -> Iterator[Scene]:
    """Endless: a quarter each of nothing to be seen, a disc without mask, a mask that is right, and one that leaks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    while True:
        kind = int(rng.integers(4))
        ground = rng.normal(40, 8, (SIDE, SIDE))
        radius, x, y = rng.integers(14, 24), rng.integers(28, SIDE - 28), rng.integers(28, SIDE - 28)
        disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        if kind:
            ground[disc] += 150
        picture = np.repeat(ground.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        leak_x = x + 2 * radius if x < SIDE / 2 else x - 2 * radius
        leak = (columns - leak_x) ** 2 + (rows - y) ** 2 < (radius * 0.8) ** 2
        masks = {2: disc, 3: disc | leak}
        if kind in masks:
            picture = blend(picture, masks[kind], OVERLAYS["inference"])
        answer: dict[int, tuple[str, Action]] = {
            0: ("Nothing bright can be seen.", Terminate("It is absent.")),
            1: ("The bright disc has no mask yet.", Click(_at(x, y), positive=True)),
            2: ("The mask covers the disc.", Terminate("The disc is segmented.")),
            3: ("The mask leaks beside the disc.", Click(_at(leak_x, y), positive=False)),
        }
        query = _QUERIES[int(rng.integers(len(_QUERIES)))]
        yield Scene(picture, query, kind in masks, render(Reply(*answer[kind])))


def _at(x: float, y: float) -> ViewPoint:
    return ViewPoint(float(np.clip((x + 0.5) / SIDE, 0, 1)), float(np.clip((y + 0.5) / SIDE, 0, 1)))


def teach(folder: Path, steps: int = _STEPS, seed: int = 0) -> None:
    """Train the checkpoint in `folder` on fresh scenes and write it back: all parameters, cross entropy on the replies."""
    logging.disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    supply = scenes(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            batch = _batch(processor, [next(supply) for _ in range(_BATCH)])
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    config = (folder / "config.json").read_text(encoding="utf-8")
    model.save_pretrained(folder)
    (folder / "config.json").write_text(config, encoding="utf-8")


def _batch(processor: Any, batch: Sequence[Scene]) -> dict[str, torch.Tensor]:
    texts = []
    for scene in batch:
        prompt = turn_prompt(scene.query, scene.refining)
        messages = [
            {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.user}]},
        ]
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    whole = [text + scene.reply + "<|im_end|>" for text, scene in zip(texts, batch, strict=True)]
    inputs = processor(
        text=whole, images=[scene.picture for scene in batch], padding=True, padding_side="left", return_tensors="pt"
    )
    lengths = [len(processor.tokenizer(scene.reply + "<|im_end|>").input_ids) for scene in batch]
    labels = torch.full_like(inputs["input_ids"], _IGNORED)
    for row, length in enumerate(lengths):
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    return {**inputs, "labels": labels}


def tiny_agent(cache: Path | None = None) -> Path:
    """The taught checkpoint, made once per version of this code and of its libraries, in under a minute on one core.

    It is kept in `cache`, by default in the user's cache folder.
    """
    sources = [Path(__file__), Path(qwen.__file__)]
    key = blake2b(digest_size=6)
    for source in sources:
        key.update(source.read_bytes())
    key.update(json.dumps([version("torch"), version("transformers"), version("tokenizers")]).encode())
    root = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ibis-label"
    folder = root / f"tiny-qwen-{key.hexdigest()}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".tiny-qwen-", dir=root))
    try:
        sample = scenes(0)
        qwen.make_tiny_qwen(draft, [next(sample).reply for _ in range(40)])
        teach(draft)
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
