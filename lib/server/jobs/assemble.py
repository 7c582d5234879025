"""The results of a run, from what its journal says and the image."""

from collections.abc import Sequence

import numpy as np

from lib.agent.engine import Engine
from lib.agent.run import RunResult
from lib.agent.targets import OVERLAP, merge
from lib.imaging import rle
from lib.imaging.planes import ViewGrid
from lib.imaging.volume import Volume
from lib.imaging.windows import choose_window
from lib.infers.asked import Asked
from lib.server.jobs.state import RunState


def results_of(asked: Asked, state: RunState, volume: Volume, engine: Engine) -> tuple[RunResult, ...]:
    """One result per target, made of the outcomes that there are by now; slices without one have an empty mask."""
    results = []
    for number, target in enumerate(asked.targets, start=1):
        request = target.request
        grid = ViewGrid(volume, request.plane)
        outcomes = tuple(state.outcomes(number, grid.size).values())
        mask = np.zeros(volume.data.shape, dtype=np.uint8)
        for outcome in outcomes:
            grid.paste(rle.decode(outcome.mask), outcome.index, mask)
        window = choose_window(volume, request.window, engine.policy.window_preset(request.prompt))
        results.append(RunResult(request, engine, volume, grid, window, mask, outcomes, seconds=0.0))
    return tuple(results)


def label_map(asked: Asked, results: Sequence[RunResult]) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8 `[i, j, k]` with the targets' voxel values, and what there is to say about overlaps."""
    labels, overlap = merge(results, [target.value for target in asked.targets])
    return labels, (OVERLAP.format(overlap),) if overlap else ()
