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


def merge(results: Sequence[RunResult], values: Sequence[int]) -> tuple[np.ndarray, int]:
    """One uint8 label map `[i, j, k]` of several runs on one volume, and how many voxels two of them claimed.

    `values[n]` is the voxel value of `results[n]`. A voxel that two runs claim goes to the first.
    """
    labels = np.zeros(results[0].mask.shape, dtype=np.uint8)
    overlap = 0
    for result, value in zip(results, values, strict=True):
        found = result.mask.astype(bool)
        overlap += int(np.count_nonzero(labels[found]))
        labels[found & (labels == 0)] = value
    return labels, overlap
