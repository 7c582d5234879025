"""The run over a volume whose slices are not all looked at: a survey, masks carried between the looks, checks of those."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Outcome
from lib.agent.limits import Limits
from lib.agent.loop import Observer
from lib.agent.run import RunRequest, RunResult, run
from lib.engines.volumes.desk import Desk
from lib.engines.volumes.filling import Filling
from lib.engines.volumes.shapes import iou
from lib.engines.volumes.strategy import first_stride, slice_mm, strategy, strides
from lib.engines.volumes.survey import gaps, next_looks
from lib.imaging import rle
from lib.imaging.planes import ViewGrid
from lib.imaging.volume import Volume

_NOTHING: Mapping[int, Outcome] = MappingProxyType({})


def run_volume(
    request: RunRequest,
    volume: Volume,
    engine: Engine,
    limits: Limits | None = None,
    observers: Sequence[Observer] = (),
    known: Mapping[int, Outcome] = _NOTHING,
) -> RunResult:
    """As `lib.agent.run.run`; with the slices "auto" or "every N" the agent looks at some and the rest follows from them.

    Then every acquired slice has an outcome: an episode's; PROPAGATED with the slices that its mask comes from and its
    confidence; ABSENT without steps, its detail beginning with "inferred", where the target's absence follows from other
    slices; or the reason why the run was cut short, with the mask that there was. Observers hear of each slice once.

    The same request gives the same result whatever of `known` came from an earlier run of it. Raises InputError as `run` does.
    """
    if not strides(request.slices):
        return run(request, volume, engine, limits, observers, known)
    began = time.perf_counter()
    limits = limits or Limits()
    grid = ViewGrid(volume, request.plane)
    stride = first_stride(request.slices, grid, strategy())
    first = run(replace(request, slices=stride), volume, engine, limits, observers, known)
    desk = Desk(first, request, limits, observers, known)
    _survey(desk)
    filling = Filling(desk)
    filling.carry(gaps(desk.seen, desk.open))
    filling.check()
    rest = filling.outcomes()
    for outcome in rest:
        if outcome.index not in known:
            desk.settle(outcome)
    outcomes = tuple(sorted([*desk.looked.values(), *rest], key=lambda outcome: outcome.index))
    mask = np.zeros(volume.data.shape, dtype=np.uint8)
    for outcome in outcomes:
        grid.paste(rle.decode(outcome.mask), outcome.index, mask)
    return replace(first, request=request, mask=mask, outcomes=outcomes, seconds=time.perf_counter() - began)


def _survey(desk: Desk) -> None:
    """Look where the target begins and ends, until enough is known."""
    mm = slice_mm(desk.grid)

    def overlap(low: int, high: int) -> float:
        return iou(desk.mask(low), desk.mask(high))

    while not desk.stopped():
        looks = next_looks(desk.seen, desk.open, overlap, mm, strategy())
        if not looks:
            return
        desk.look(looks)
