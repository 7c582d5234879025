"""Carries drawn slices to their neighbours: by the segmenter's memory, or by clicks where it has none."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import place
from lib.agent.protocol import Click
from lib.agent.segmenter import Propagator
from lib.engines.volumes.carrying import TURNS, draw, tissue_of
from lib.imaging import rle
from lib.imaging.planes import ViewGrid
from lib.imaging.views import View
from lib.imaging.windows import Window
from lib.policies.clicks import next_click

Negatives = Mapping[int, list[Click]]


def spread(
    drawn: Mapping[int, Outcome],
    negatives: Negatives,
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
        for way in _ways(index, seeds, grid):
            views = [View(grid, neighbour, window) for neighbour in (index, *way)]
            if isinstance(engine.segmenter, Propagator):
                found = _remember(drawn[index], views, negatives, engine, engine.segmenter, limits)
            else:
                found = _follow(drawn[index], views, negatives, engine, limits)
            carried |= {outcome.index: outcome for outcome in found}
    return carried


def _remember(
    reference: Outcome, views: Sequence[View], negatives: Negatives, engine: Engine, memory: Propagator, limits: Limits
) -> Iterator[Outcome]:
    """On from the first view, whose mask is the reference's, until the object has ended: by the segmenter's memory."""
    along = memory.propagate(views, rle.decode(reference.mask), limits)
    for view, (mask, score) in zip(views[1:], along, strict=False):
        if not mask.any():
            return
        outcome = Outcome(
            index=view.index,
            window=view.window,
            stop=StopReason.PROPAGATED,
            detail=f"from slice {reference.index}",
            answer="",
            steps=(),
            mask=rle.encode(mask),
            final_turn=None,
            chosen_because="the segmenter's memory made it",
            confidence=score,
        )
        yield _corrected(outcome, view, negatives, engine, limits)


def _follow(
    reference: Outcome, views: Sequence[View], negatives: Negatives, engine: Engine, limits: Limits
) -> Iterator[Outcome]:
    """The same by clicks, from each slice to the next."""
    tissue = tissue_of(views[0], rle.decode(reference.mask))
    for view in views[1:]:
        drawn = draw(view, rle.decode(reference.mask), tissue, engine, limits)
        if not drawn.found:
            return
        reference = _corrected(drawn.outcome, view, negatives, engine, limits)
        yield reference


def _ways(index: int, seeds: list[int], grid: ViewGrid) -> Iterator[range]:
    """Slices to visit below and above `index`, nearest first."""
    below = max((seed for seed in seeds if seed < index), default=None)
    above = min((seed for seed in seeds if seed > index), default=None)
    yield range(index - 1, -1 if below is None else (below + index) // 2, -1)
    yield range(index + 1, grid.slice_count if above is None else (index + above) // 2 + 1)


def _corrected(outcome: Outcome, view: View, negatives: Negatives, engine: Engine, limits: Limits) -> Outcome:
    """The slice with the person's negative clicks on it, if there are any."""
    if view.index not in negatives:
        return outcome
    clicks = [step.action for step in outcome.steps if isinstance(step.action, Click)]
    if not clicks:
        mask = rle.decode(outcome.mask)
        clicks = [click for click in [next_click(np.zeros_like(mask), mask)] if click is not None]
    episode = Episode(view, "", TURNS)
    place(episode, [*clicks, *negatives[view.index]], engine, limits)
    if episode.stop is None:
        episode.end(StopReason.ANNOTATED)
    return episode.outcome()
