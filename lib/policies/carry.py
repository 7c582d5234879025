"""The `carry` policy: takes a mask from one slice to the next by clicking where the two differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation
from lib.agent.protocol import Click, Reply, Terminate, render
from lib.errors import EngineError
from lib.imaging.volume import Volume
from lib.policies.clicks import next_click

_ENOUGH = 0.85
"""IoU with the neighbour's mask at which the object is taken as found: sections 1 to 5 mm apart differ by about as much."""
_LOST = 0.4
"""Below this IoU after all clicks the object has ended, or something else was found."""
_CLICKS = 4
_SAME_TISSUE = 3.0
"""The click's neighbourhood may differ by so many spreads of the object's grey levels, or it has ended here."""
_NOISE = 4.0
"""Grey levels that even a uniform object varies by."""


@dataclass(frozen=True)
class Tissue:
    """Grey levels of an object in its view: median and standard deviation, 0..255."""

    grey: float
    spread: float


class CarryPolicy:
    """Clicks on a slice until its mask resembles the neighbour's; says "absent" when the object has ended there.

    One instance serves one step of one propagation: `reference` is the neighbour's mask, bool `[height, width]`, `tissue` the
    object's grey levels on the slice that it was drawn on.
    """

    name = "carry"
    about: Mapping[str, str] = MappingProxyType({})
    structures: tuple[str, ...] = ()

    def __init__(self, reference: np.ndarray, tissue: Tissue):
        self._reference = reference
        self._tissue = tissue

    def check(self, volume: Volume, prompt: str) -> None:
        pass

    def window_preset(self, prompt: str) -> str | None:
        return None

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        return [self._decide(observation) for observation in observations]

    def _decide(self, observation: Observation) -> Decision:
        mask = observation.mask
        if mask is None:
            click = next_click(np.zeros_like(self._reference), self._reference)
            if click is None or not self._continues(observation, click):
                return _stop("The object does not go on here.", None)
            return Decision(render(Reply("The object of the neighbouring slice goes on here.", click)))
        agreement = _iou(mask, self._reference)
        click = next_click(mask, self._reference)
        if agreement >= _ENOUGH or click is None or len(observation.actions) >= _CLICKS or click in observation.actions:
            return _stop(f"The mask agrees with the neighbouring slice by IoU {agreement:.2f}.", agreement)
        return Decision(render(Reply("The mask differs from the neighbouring slice here.", click)), agreement)

    def _continues(self, observation: Observation, click: Click) -> bool:
        grey = observation.view.grey()
        column, row = click.point.pixel(*observation.view.size)
        patch = grey[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        return abs(float(np.median(patch)) - self._tissue.grey) <= _SAME_TISSUE * max(self._tissue.spread, _NOISE)


def resembles(support: float | None) -> bool:
    """Whether a carried mask still shows the object."""
    return support is not None and support >= _LOST


def _stop(thought: str, support: float | None) -> Decision:
    return Decision(render(Reply(thought, Terminate("the object ends here" if support is None else "carried"))), support)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0
