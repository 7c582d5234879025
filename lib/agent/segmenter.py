"""The Segmenter interface: what turns clicks on a view into a mask."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.protocol import Click
from lib.errors import EngineError
from lib.imaging.views import View

State = Any
"""A segmenter's own record of one view and the clicks on it so far. Immutable: `click` returns a new one."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mask after a click."""

    mask: np.ndarray
    """bool `[height, width]` of the view."""
    score: float
    """How good the segmenter thinks the mask is, 0..1."""
    state: State
    """The state that holds this click too."""


class Segmenter(Protocol):
    """Stateless between calls, except for caches keyed by content; safe to call from several threads."""

    name: str

    @property
    def about(self) -> Mapping[str, str]:
        """What exactly draws, for the record: weights, device, precision. Empty where the name says it all."""

    def start(self, views: Sequence[View], limits: Bound = UNLIMITED) -> list[State | EngineError]:
        """Look at the views (embed their images), before any click; an error in the place of one that could not be.

        Returns soon after `limits` are reached. Raises EngineError when nothing could be done.
        """

    def click(
        self, states: Sequence[State], clicks: Sequence[Click], limits: Bound = UNLIMITED
    ) -> list[Prediction | EngineError]:
        """Add one click to each state. Earlier states stay valid, so undo is going back to one. Errors as for `start`."""


@runtime_checkable
class Propagator(Protocol):
    """A segmenter that also takes a mask from slice to slice, by a memory of the slices that it has seen."""

    def propagate(
        self, views: Sequence[View], mask: np.ndarray, limits: Bound = UNLIMITED
    ) -> Iterator[tuple[np.ndarray, float]]:
        """From the first view, whose mask is given (bool `[height, width]`), on to the others in order.

        Yields (mask, score 0..1) for `views[1]`, `views[2]` and so on; an empty mask where the object has ended. Views are
        rendered when their turn comes. Stops early when `limits` are reached; whoever has enough just stops iterating. Raises
        EngineError when it cannot go on.
        """
