"""The rules policy: an agent without weights, which knows where organs are in a CT and what their greys are.

Safe to call from several threads: what it shares is the store of `lib.policies.evidence`.
"""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lib.agent.anatomy import Structure, anatomy
from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Decision, Observation, Policy
from lib.agent.protocol import Action, Click, Reply, Terminate, render
from lib.errors import EngineError, UnknownTarget
from lib.imaging.planes import Plane
from lib.imaging.volume import Modality, Volume
from lib.policies.clicks import Error, largest_error
from lib.policies.evidence import evidence

ENOUGH = 0.93
"""Intersection over union with the evidence from which on a mask is as good as the evidence itself."""
SPECK_MM2 = 12.0
"""Evidence or errors smaller than this on a slice are not worth a click."""
RIM_MM = 3.5
"""Errors no wider than twice this run along edges, where clicks help little."""
RIM_AGREEMENT = 0.85
MAX_CLICKS = 18
_MODALITY_FREE = frozenset({"body"})
_DIRECTIONS = {
    Plane.AXIAL: (("the patient's left", "the patient's right"), ("the front", "the back")),
    Plane.CORONAL: (("the patient's left", "the patient's right"), ("the head", "the feet")),
    Plane.SAGITTAL: (("the back", "the front"), ("the head", "the feet")),
}


class RulesPolicy(Policy):
    """Compares the segmenter's mask with its own evidence, and clicks at the centre of the largest difference."""

    name = "rules"
    about: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.structures = anatomy().findable

    def check(self, volume: Volume, prompt: str) -> None:
        structure = anatomy().rule_target(prompt)
        if volume.modality is Modality.CT or volume.planar or structure.name in _MODALITY_FREE:
            return
        raise UnknownTarget(
            f"the embedded rules read Hounsfield units and this image is {volume.modality}: they cannot find "
            f"{structure.label!r} in it. Without weights I know here: {', '.join(sorted(_MODALITY_FREE))}. "
            "Use an engine with weights for the rest"
        )

    def window_preset(self, prompt: str) -> str | None:
        structure = anatomy().find(prompt)
        return None if structure is None else structure.window

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        return [_decide(observation) for observation in observations]


def _decide(observation: Observation) -> Decision:
    began = time.perf_counter()
    structure = anatomy().rule_target(observation.prompt)
    view = observation.view
    target = evidence(view.volume, structure).view(view.grid, view.index)
    scene = _Scene(observation, structure, target)
    thought, action = scene.next()
    return Decision(render(Reply(thought, action)), scene.agreement, time.perf_counter() - began)


class _Scene:
    """One observation and what the rules expect to see there."""

    def __init__(self, observation: Observation, structure: Structure, target: np.ndarray):
        self._observation = observation
        self._structure = structure
        self._target = target
        self._mask = observation.mask
        self._pixel_cm2 = observation.view.grid.pixel_mm**2 / 100
        if target.sum() * self._pixel_cm2 * 100 < SPECK_MM2:
            self._target = np.zeros_like(target)

    @property
    def agreement(self) -> float | None:
        """Intersection over union of the current mask with the evidence; None before the first click."""
        if self._mask is None:
            return None
        union = np.count_nonzero(self._mask | self._target)
        return np.count_nonzero(self._mask & self._target) / union if union else 1.0

    def next(self) -> tuple[str, Action]:
        label = self._structure.label
        if not self._target.any() and (self._mask is None or not self._mask.any()):
            place = f" would be in the {self._structure.place}" if self._structure.place else ""
            return f"The {label}{place}; nothing on this slice fits it.", Terminate(f"The {label} is absent from this slice.")
        earlier = [action.point for action in self._observation.actions if isinstance(action, Click)]
        error = largest_error(self._mask, self._target, earlier)
        if self._mask is None and error is not None:
            return f"{self._sighting()} There is no mask yet.", error.click
        if error is None or self._settled(error, len(earlier)):
            return f"{self._sighting()} {self._errors()} No click would improve it.", Terminate(self._answer())
        return f"{self._sighting()} {self._errors(error.click)}", error.click

    def _settled(self, error: Error, clicks: int) -> bool:
        assert self._mask is not None
        assert self.agreement is not None
        wrong = np.count_nonzero(self._mask != self._target) * self._pixel_cm2 * 100
        rim_only = error.radius * self._observation.view.grid.pixel_mm < RIM_MM and self.agreement > RIM_AGREEMENT
        return self.agreement >= ENOUGH or rim_only or wrong < SPECK_MM2 or clicks >= MAX_CLICKS

    def _sighting(self) -> str:
        if not self._target.any():
            return f"No {self._structure.label} is to be expected on this slice."
        view = self._observation.view
        plane = view.grid.cut(view.volume.data, view.index)
        values = view.grid.enlarge(plane, order=0)[self._target]
        unit = " HU" if view.volume.modality is Modality.CT else ""
        if view.volume.planar:
            unit = " of 255 (the picture taken as a CT in the window -160 to 240 HU, the patient's right on its left)"
        return f"{self._structure.tissue} at {np.median(values):.0f}{unit}, {self._structure.place}."

    def _errors(self, click: Click | None = None) -> str:
        assert self._mask is not None
        missed = self._area(self._target & ~self._mask)
        extra = self._area(self._mask & ~self._target)
        if click is None:
            return f"The mask misses {missed} and holds {extra} too much, an agreement of {self.agreement:.2f}."
        if click.positive:
            return f"The mask misses {missed}{self._towards(click)}."
        return f"The mask holds {extra} that is not {self._structure.label}{self._towards(click)}."

    def _towards(self, click: Click) -> str:
        """Where the click lies as seen from the middle of the target."""
        if not self._target.any() or self._observation.view.volume.planar:
            return ""
        rows, columns = np.nonzero(self._target)
        height, width = self._target.shape
        across, down = click.point.x * width - columns.mean(), click.point.y * height - rows.mean()
        sideways, upright = _DIRECTIONS[self._observation.view.plane]
        if abs(across) >= abs(down):
            return f" towards {sideways[int(across > 0)]}"
        return f" towards {upright[int(down > 0)]}"

    def _answer(self) -> str:
        assert self._mask is not None
        if not self._mask.any():
            return f"The {self._structure.label} is absent from this slice."
        return f"The {self._structure.label} is segmented: {self._area(self._mask)} on this slice."

    def _area(self, mask: np.ndarray) -> str:
        """Pictures have no millimetres."""
        pixels = np.count_nonzero(mask)
        return f"{pixels} pixels" if self._observation.view.volume.planar else f"{pixels * self._pixel_cm2:.1f} cm2"
