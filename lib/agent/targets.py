"""Several targets in one request: their prompts, and the one label map that their masks make."""

from collections.abc import Sequence

import numpy as np

from lib.agent.run import RunResult
from lib.errors import InputError

MAX_TARGETS = 20


def split_prompts(text: str) -> tuple[str, ...]:
    """The prompts of a text that separates them by `;`, each once, in order.

    Raises InputError with the field "prompt" for none, or for more than MAX_TARGETS.
    """
    first: dict[str, str] = {}
    for part in text.split(";"):
        if part.strip():
            first.setdefault(part.strip().casefold(), part.strip())
    prompts = tuple(first.values())
    if not prompts:
        raise InputError("say what to segment, such as liver or left kidney", "prompt")
    if len(prompts) > MAX_TARGETS:
        raise InputError(f"{len(prompts)} targets in one request: at most {MAX_TARGETS}", "prompt")
    return prompts


OVERLAP = "{} voxels were claimed by two targets; each went to the one whose slice is more confident"
"""What to tell about an overlap."""


def merge(results: Sequence[RunResult], values: Sequence[int]) -> tuple[np.ndarray, int]:
    """One uint8 label map `[i, j, k]` of several runs on one volume along one plane, and how many voxels two of them claimed.

    `values[n]` is the voxel value of `results[n]`. On each slice a voxel that two runs claim goes to the one with the higher
    confidence there, of equally confident ones to the first.
    """
    labels = np.zeros(results[0].mask.shape, dtype=np.uint8)
    claims = np.zeros_like(labels)
    grid = results[0].grid
    confidence = [{one.index: one.confidence or 0.0 for one in result.outcomes if one.found} for result in results]
    for index in range(grid.slice_count):
        drawn = [n for n in range(len(results)) if index in confidence[n]]
        for n in sorted(drawn, key=lambda n: (confidence[n][index], -n)):
            found = grid.cut(results[n].mask, index).astype(bool)
            grid.cut(labels, index)[found] = values[n]
            grid.cut(claims, index)[found] += 1
    return labels, int(np.count_nonzero(claims > 1))
