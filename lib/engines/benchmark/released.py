"""The loop as the released inference script runs it, on given models: the yardstick.

One slice after another, one picture a call, a PNG written and read again in every turn, up to 512 tokens, no batch anywhere.
Source of the procedure: the released IBISAgent inference code (arXiv 2601.03054).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import GenerationConfig

from lib.agent.episode import SAME_CLICK
from lib.agent.prompts import turn_prompt
from lib.agent.protocol import Click, Reply, parse_released
from lib.engines.benchmark.models import Models
from lib.imaging.overlays import OVERLAYS, blend
from lib.imaging.views import View
from lib.policies.generation import synchronise

Value = TypeVar("Value")
_BUDGET = 512


class ReleasedLoop:
    """Plays slices one by one and notes the seconds of each stage."""

    def __init__(self, models: Models, model: Any, folder: Path):
        """`model` is the language model that writes; `folder` takes the PNG of every turn."""
        self._model = model
        self._processor = models.language.processor
        self._device = models.language.device
        self._predictor = SAM2ImagePredictor(models.sam2.model)
        # The package fixes these for 1024 pixels only.
        self._predictor._bb_feat_sizes = [(models.sam2.image_size // n, models.sam2.image_size // n) for n in (4, 8, 16)]
        self._half = models.sam2.device.type == "cuda"
        self._folder = folder
        self.stages: dict[str, float] = defaultdict(float)
        self.turns = 0
        self.tokens = 0

    def play(self, views: Sequence[View], prompt: str, turns: int) -> None:
        """At most `turns` turns on each view; the states of the last view stay in the folder."""
        for view in views:
            self._episode(view, prompt, turns)

    def _episode(self, view: View, prompt: str, turns: int) -> None:
        path = self._folder / "image.png"
        image = self._timed("view", view.image)
        self._timed("png", partial(Image.fromarray(image).save, path))
        self._timed("segment", partial(self._embed, np.array(image)))
        clicks: list[Click] = []
        points: list[tuple[int, int]] = []
        labels: list[int] = []
        logits: np.ndarray | None = None
        for turn in range(turns):
            reply = parse_released(self._chat(path, turn_prompt(prompt, turn > 0)))
            if not isinstance(reply, Reply) or not isinstance(reply.action, Click):
                return
            clicks.append(reply.action)
            if len(clicks) >= SAME_CLICK and len(set(clicks[-SAME_CLICK:])) == 1:
                return
            points.append((int(reply.action.point.x * image.shape[1]), int(reply.action.point.y * image.shape[0])))
            labels.append(int(reply.action.positive))
            mask, logits = self._timed("segment", partial(self._predict, points, labels, logits))
            painted = self._timed("overlay", partial(blend, image, mask, OVERLAYS["inference"]))
            path = self._folder / f"turn_{turn + 1}_state.png"
            self._timed("png", partial(Image.fromarray(painted).save, path))
            self.turns += 1

    def _chat(self, path: Path, prompt: Any) -> str:
        picture = self._timed("png", lambda: Image.open(path).convert("RGB"))
        inputs = self._timed("processor", partial(self._inputs, picture, prompt))
        ids = self._timed("generate", partial(self._generate, inputs))[:, inputs["input_ids"].shape[1] :]
        self.tokens += ids.shape[1]
        return self._processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]

    def _inputs(self, picture: Image.Image, prompt: Any) -> Any:
        messages = [
            {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.user}]},
        ]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._processor(text=[text], images=[picture], padding=True, return_tensors="pt").to(self._device)

    def _generate(self, inputs: Any) -> torch.Tensor:
        tokenizer = self._processor.tokenizer
        config = GenerationConfig(
            max_new_tokens=_BUDGET, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
        )
        return self._model.generate(**inputs, generation_config=config)

    def _embed(self, image: np.ndarray) -> None:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
            self._predictor.set_image(image)

    def _predict(
        self, points: list[tuple[int, int]], labels: list[int], given: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
            masks, scores, logits = self._predictor.predict(
                np.array(points, np.float32), np.array(labels, np.int32), mask_input=given, multimask_output=True
            )
        best = int(np.argmax(scores))
        return masks[best] > 0, logits[best][None]

    def _timed(self, stage: str, work: Callable[[], Value]) -> Value:
        began = time.perf_counter()
        value = work()
        synchronise(self._device)
        self.stages[stage] += time.perf_counter() - began
        return value
