"""Carrying: a mask from another slice drawn again by clicks on the slice's own picture. No policy is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits
from lib.agent.loop import Observer, play
from lib.agent.protocol import Click
from lib.agent.segmenter import State
from lib.imaging.views import View
from lib.policies.carry import CarryPolicy, Tissue, resembles

TURNS = 6


@dataclass(frozen=True, eq=False)
class Drawn:
    """What came of the clicks."""

    outcome: Outcome
    state: State | None
    """The segmenter's state after them; None when there was no click."""

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Those that led to the state."""
        return tuple(s.action for s in self.outcome.steps if isinstance(s.action, Click) and s.mask is not None)

    @property
    def found(self) -> bool:
        """Whether the object is here; False also when the work was cut short."""
        return self.outcome.conclusive and self.outcome.final_turn is not None and resembles(self.outcome.confidence)


def draw(view: View, reference: np.ndarray, tissue: Tissue, engine: Engine, limits: Limits) -> Drawn:
    """Click on `view` until the mask resembles `reference`, bool `[height, width]`, the object's mask on another slice."""
    carrier = replace(engine, policy=CarryPolicy(reference, tissue))
    watch = _LastState()
    (episode,) = play([Episode(view, "", TURNS)], carrier, limits, [watch])
    return Drawn(episode.outcome(), watch.state)


def tissue_of(view: View, mask: np.ndarray) -> Tissue:
    """The grey levels of an object, whose mask is bool `[height, width]`, on its slice."""
    inside = view.grey()[mask]
    return Tissue(float(np.median(inside)), float(inside.std())) if inside.size else Tissue(0.0, 0.0)


Views = Callable[[int], View]
"""The view of a slice of the run."""


class _LastState(Observer):
    """Keeps the segmenter's state, which an episode lets go at its end."""

    def __init__(self) -> None:
        self.state: State | None = None

    def stepped(self, episode: Episode) -> None:
        if episode.state is not None:
            self.state = episode.state
