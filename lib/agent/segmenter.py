"""The Segmenter interface: what turns clicks on a view into a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lib.agent.protocol import Click
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

    def start(self, views: Sequence[View]) -> list[State]:
        """Look at the views (embed their images), before any click."""

    def click(self, states: Sequence[State], clicks: Sequence[Click]) -> list[Prediction]:
        """Add one click to each state. Earlier states stay valid, so undo is going back to one."""
