"""Our loop at several batch sizes beside the released one: turns, tokens, stages, memory, all in one process and one run."""

import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.agent.conduct import CORRECTED
from lib.agent.engine import Engine
from lib.agent.episode import Episode
from lib.agent.limits import UNLIMITED
from lib.agent.loop import play
from lib.engines.benchmark.models import Models, Scripted
from lib.engines.benchmark.released import ReleasedLoop
from lib.engines.shared import SharedPolicy, SharedSegmenter
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.policies.generation import synchronise
from lib.policies.qwen import QwenPolicy
from lib.segmenters.sam2 import Sam2

PROMPT = "left kidney"
STAGES = ("view", "png", "processor", "prefill", "decode", "generate", "segment", "overlay", "other")


@dataclass(frozen=True)
class Row:
    """What one loop did. Times in seconds per slice-turn, wall clock."""

    name: str
    turns: int
    seconds: float
    tokens: int
    stages: dict[str, float]
    forward: float
    """Share of the wall clock that was spent inside the models' forward passes."""
    models: float
    """Share of the wall clock that was spent in the policy's and the segmenter's models with what drives them: `generate` as a
    whole, and SAM2 with its picture and mask scaling."""
    vision: float
    peak_bytes: int
    """On a GPU what torch had allocated at most; on a CPU resident memory above the start of the row."""


def measure_loops(models: Models, batches: Sequence[int], turns: int, slices: int, tokens: int, side: int) -> Iterator[Row]:
    """First the released loop on `slices` views, then ours at each batch size, on `slices` views or one whole batch.

    `tokens` is the length of every reply, `side` the width and height of the views in pixels.
    """
    with _warm(models, tokens, side):
        yield _released(models, turns, slices, tokens, side)
        for batch in batches:
            yield _ours(models, batch, turns, max(batch, slices if batch == 1 else batch), tokens, side)


@contextmanager
def _warm(models: Models, tokens: int, side: int) -> Iterator[None]:
    """One short turn each, so that no row pays for first calls."""
    _ours(models, 1, 1, 1, min(tokens, 48), side)
    _released(models, 1, 1, min(tokens, 48), side)
    yield


def _released(models: Models, turns: int, slices: int, tokens: int, side: int) -> Row:
    with tempfile.TemporaryDirectory() as scratch, _Forward(models) as forward, _Memory(models) as memory:
        loop = ReleasedLoop(models, Scripted(models.language, tokens), Path(scratch))
        views = _views(slices, side)
        began = time.perf_counter()
        loop.play(views, PROMPT, turns)
        seconds = time.perf_counter() - began
    return _row("released, one by one", loop.turns, seconds, loop.tokens, loop.stages, forward, memory)


def _ours(models: Models, batch: int, turns: int, slices: int, tokens: int, side: int) -> Row:
    loaded = dataclasses.replace(models.language, model=Scripted(models.language, tokens))
    policy = SharedPolicy([QwenPolicy(models.config, models.language.device, loaded)], max_batch=batch, max_wait=0.005)
    segmenter = SharedSegmenter([Sam2(models.sam2, precision="bfloat16")], max_batch=batch, max_wait=0.005)
    # Random weights draw random masks: neither may end an episode.
    engine = Engine("bench", policy, segmenter, batch, conduct=dataclasses.replace(CORRECTED, same_mask=None))
    views = _views(slices, side)
    episodes = (Episode(view, PROMPT, turns, conduct=engine.conduct) for view in views)
    with _Forward(models) as forward, _Memory(models) as memory:
        began = time.perf_counter()
        ended = list(play(episodes, engine, UNLIMITED))
        seconds = time.perf_counter() - began
    policy.close()
    segmenter.close()
    steps = [step for episode in ended for step in episode.steps]
    if len(steps) != slices * turns:
        raise RuntimeError(f"{len(steps)} turns were played instead of {slices * turns}: {ended[0].outcome().detail}")
    stages: dict[str, float] = defaultdict(float)
    for step in steps:
        stages["view" if step.turn == 1 else "overlay"] += step.details["picture_s"]
        for stage in ("processor", "prefill", "decode"):
            stages[stage] += step.details[f"{stage}_s"]
        stages["segment"] += step.segmenter_seconds
    reply_tokens = sum(int(step.details["reply_tokens"]) for step in steps)
    return _row(f"ours, batch {batch}", len(steps), seconds, reply_tokens, stages, forward, memory)


def _row(
    name: str, turns: int, seconds: float, tokens: int, stages: dict[str, float], forward: "_Forward", memory: "_Memory"
) -> Row:
    shares = {stage: stages[stage] / turns for stage in STAGES if stage != "other"}
    shares["other"] = seconds / turns - sum(shares.values())
    models = sum(shares[stage] for stage in ("prefill", "decode", "generate", "segment")) * turns / seconds
    return Row(name, turns, seconds, tokens, shares, forward.seconds / seconds, models, forward.vision / turns, memory.peak)


def _views(count: int, side: int) -> list[View]:
    """CT-like slices of `side` pixels that nobody has seen before."""
    rng = np.random.default_rng()
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where(rows**2 + 1.6 * columns**2 < 0.8, 40.0, -1000.0)
    data = np.stack([body + rng.normal(0, 12, body.shape) for _ in range(count)], axis=2).astype(np.float32)
    volume = Volume(data, np.diag([0.8, 0.8, 3.0, 1.0]), Modality.CT, Path("bench"))
    grid = ViewGrid(volume, Plane.AXIAL)
    return [View(grid, index, Window(-160, 240, "soft tissue")) for index in range(count)]


class _Forward:
    """Seconds inside the models' forward passes, by hooks on the modules."""

    def __init__(self, models: Models):
        language, sam2 = models.language.model, models.sam2.model
        self._device = models.language.device
        self._modules: list[Any] = [language, sam2.image_encoder, sam2.sam_prompt_encoder, sam2.sam_mask_decoder]
        self._sight = language.model.visual
        self._hooks: list[Any] = []
        self._begun: dict[int, float] = {}
        self.seconds = 0.0
        self.vision = 0.0

    def __enter__(self) -> "_Forward":
        for module in [*self._modules, self._sight]:
            self._hooks.append(module.register_forward_pre_hook(self._begin))
            self._hooks.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: Any, inputs: Any) -> None:
        synchronise(self._device)
        self._begun[id(module)] = time.perf_counter()

    def _end(self, module: Any, inputs: Any, outputs: Any) -> None:
        synchronise(self._device)
        spent = time.perf_counter() - self._begun.pop(id(module))
        if module is self._sight:
            self.vision += spent
        else:
            self.seconds += spent


class _Memory:
    """Peak memory while a row is measured."""

    def __init__(self, models: Models):
        self._device = models.language.device
        self._base = 0
        self.peak = 0

    def __enter__(self) -> "_Memory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak, VmHWM
            self._base = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        gpu = self._device.type == "cuda"
        self.peak = torch.cuda.max_memory_allocated(self._device) if gpu else _status("VmHWM") - self._base


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
