"""How long whole volumes would take: the strategy's own plan, and what a batch of turns costs.

A target that spans two fifths of the slices, in the middle, whose masks on neighbouring looks are alike; slices 2 mm apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.engines.volumes.strategy import strategy
from lib.engines.volumes.survey import gaps, next_looks

TURNS = 9
"""Turns on a slice with the target: 8.69 on average as a later paper cites the method (XFlow, arXiv 2609.34513)."""
SLICE_MM = 2.0
_PRESENT = (0.3, 0.7)
Cost = Callable[[int], float]
"""Seconds of one turn of a batch of so many slices on one GPU, segmenter and all."""


@dataclass(frozen=True)
class Forecast:
    """One plan on so many GPUs."""

    slices: int
    plan: str
    gpus: int
    looks: int
    """Slices that the agent looks at."""
    calls: int
    """Decisions of the language model."""
    seconds: float


def roofline(batch: int) -> float:
    """A turn of Qwen2.5-VL-7B and SAM2 large on one H200, derived and not measured.

    790 TFLOP/s at 50 %, 4.3 TB/s at 70 %; 1.71 TFLOP for a picture, 8.62 for its prompt of 654 tokens, 150 answer tokens that
    each read 16.6 GB of weights and 57 kB for every token of context; 25 ms for a slice's click and its share of the embedding.
    """
    compute, bandwidth = 0.5 * 790e12, 0.7 * 4.3e12
    reading = batch * (1.71e12 + 8.62e12) / compute
    step = (16.6e9 + batch * 57e3 * 730) / bandwidth
    return reading + 150 * step + batch * 0.025


def between(points: Sequence[tuple[int, float]]) -> Cost:
    """A cost from measured (batch, seconds of one turn of the batch), ascending; straight lines in between and beyond."""

    def cost(batch: int) -> float:
        after = next((n for n, (size, _) in enumerate(points) if size >= batch), len(points) - 1)
        low, high = points[max(0, after - 1)], points[after]
        if low[0] == high[0]:
            return high[1] * max(1.0, batch / high[0])
        return low[1] + (high[1] - low[1]) * (batch - low[0]) / (high[0] - low[0])

    return cost


def forecast(slices: int, plan: str, gpus: int, cost: Cost, max_batch: int = 64) -> Forecast:
    """The wall clock of a plan, "all" or "auto": its rounds one after the other, slices that end replaced by others at once,
    shared equally among the GPUs."""
    rounds = _auto(slices) if plan == "auto" else [[TURNS if _has(index, slices) else 1 for index in range(slices)]]
    looks = sum(len(turns) for turns in rounds)
    carried = sum(_has(index, slices) for index in range(slices)) - sum(turns > 1 for one in rounds for turns in one)
    seconds = sum(_wall(one, gpus, cost, max_batch) for one in rounds)
    if plan == "auto":
        seconds += max(0, carried) * 2 * 0.05 / gpus
    return Forecast(slices, plan, gpus, looks, sum(map(sum, rounds)), seconds)


def _has(index: int, slices: int) -> bool:
    return _PRESENT[0] * slices <= index < _PRESENT[1] * slices


def _auto(slices: int) -> list[list[int]]:
    """Turns on each slice of each round: the survey as `lib.engines.volumes` makes it, then the checks."""
    config = strategy()
    stride = max(1, round(config.stride_mm / SLICE_MM))
    seen: dict[int, bool] = {}
    looks = list(range(stride // 2, slices, stride))
    rounds = []
    while looks:
        rounds.append([TURNS if _has(index, slices) else 1 for index in looks])
        seen |= {index: _has(index, slices) for index in looks}
        left = [index for index in range(slices) if index not in seen]
        looks = next_looks(seen, left, lambda low, high: 1.0, SLICE_MM, config)
    left = [index for index in range(slices) if index not in seen]
    filled = sum(
        len(gap.slices) for gap in gaps(seen, left) if any(seen[end] for end in (gap.low, gap.high) if end is not None)
    )
    checks = int(filled * SLICE_MM / config.check_mm)
    return [*rounds, [1] * checks] if checks else rounds


def _wall(turns: Sequence[int], gpus: int, cost: Cost, max_batch: int) -> float:
    """One round: every GPU has its share of the slices, at most `max_batch` of them at a time."""
    share = sorted(turns, reverse=True)[::gpus]
    waiting, seconds = list(share), 0.0
    active: list[int] = []
    while waiting or active:
        while waiting and len(active) < max_batch:
            active.append(waiting.pop(0))
        seconds += cost(len(active))
        active = [left - 1 for left in active if left > 1]
    return seconds
