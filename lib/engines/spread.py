"""Carries drawn slices to their neighbours, for segmenters without a memory of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import place, play
from lib.agent.protocol import Click
from lib.imaging import rle
from lib.imaging.planes import ViewGrid
from lib.imaging.views import View
from lib.imaging.windows import Window
from lib.policies.carry import CarryPolicy, Tissue, resembles

_TURNS = 6


def spread(
    drawn: Mapping[int, Outcome],
    negatives: Mapping[int, list[Click]],
    grid: ViewGrid,
    window: Window,
    engine: Engine,
    limits: Limits,
) -> dict[int, Outcome]:
    """The neighbours of the drawn slices, both ways, until the object ends or half way to the next drawn slice.

    `drawn` holds the outcomes of the slices that a person clicked on; a person's negative clicks on other slices are placed
    once the object has been carried there.
    """
    carried: dict[int, Outcome] = {}
    seeds = sorted(index for index, outcome in drawn.items() if outcome.final_turn is not None)
    for index in seeds:
        tissue = _tissue(View(grid, index, window), rle.decode(drawn[index].mask))
        for way in _ways(index, seeds, grid):
            reference = drawn[index]
            for neighbour in way:
                view = View(grid, neighbour, window)
                outcome = _carry(reference, view, tissue, engine, limits)
                if outcome is None:
                    break
                if neighbour in negatives:
                    outcome = _corrected(outcome, view, negatives[neighbour], engine, limits)
                carried[neighbour] = reference = outcome
    return carried


def _ways(index: int, seeds: list[int], grid: ViewGrid) -> Iterator[range]:
    """Slices to visit below and above `index`, nearest first."""
    below = max((seed for seed in seeds if seed < index), default=None)
    above = min((seed for seed in seeds if seed > index), default=None)
    yield range(index - 1, -1 if below is None else (below + index) // 2, -1)
    yield range(index + 1, grid.slice_count if above is None else (index + above) // 2 + 1)


def _tissue(view: View, mask: np.ndarray) -> Tissue:
    inside = view.grey()[mask]
    return Tissue(float(np.median(inside)), float(inside.std())) if inside.size else Tissue(0.0, 0.0)


def _carry(reference: Outcome, view: View, tissue: Tissue, engine: Engine, limits: Limits) -> Outcome | None:
    """The object of the neighbouring slice on this one, or None where it does not go on."""
    carrier = replace(engine, policy=CarryPolicy(rle.decode(reference.mask), tissue))
    (episode,) = play([Episode(view, "", _TURNS)], carrier, limits)
    outcome = episode.outcome()
    return outcome if outcome.conclusive and outcome.final_turn is not None and resembles(outcome.confidence) else None


def _corrected(outcome: Outcome, view: View, negatives: list[Click], engine: Engine, limits: Limits) -> Outcome:
    clicks = [step.action for step in outcome.steps if isinstance(step.action, Click)]
    episode = Episode(view, "", _TURNS)
    place(episode, [*clicks, *negatives], engine, limits)
    if episode.stop is None:
        episode.end(StopReason.ANNOTATED)
    return episode.outcome()
