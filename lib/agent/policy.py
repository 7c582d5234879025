"""The Policy interface: who decides the next action of an episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.protocol import Action
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS, Overlay, blend
from lib.imaging.rle import Rle
from lib.imaging.views import View
from lib.imaging.volume import Volume


@dataclass(frozen=True)
class Past:
    """An earlier turn of the episode."""

    mask: Rle | None
    """The mask that was shown; None before the first click."""
    reply: str


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy may look at before it decides."""

    prompt: str
    """The annotator's words."""
    view: View
    mask: np.ndarray | None
    """Current mask, bool `[height, width]` of the view; None before the first click."""
    actions: tuple[Action, ...]
    """The actions of this episode so far, oldest first."""
    complaint: str = ""
    """When the last reply could not be used: why. Empty otherwise."""
    overlay: Overlay = OVERLAYS["inference"]
    """How the mask is painted on the picture."""
    past: tuple[Past, ...] = ()
    """The earlier turns with a usable reply, oldest first, for policies that keep a conversation."""

    @property
    def turn(self) -> int:
        """1 for the first turn."""
        return len(self.actions) + 1

    def picture(self) -> np.ndarray:
        """What the agent sees: uint8 RGB `[height, width, 3]`, the view with the current mask painted on it."""
        return self._paint(self.view.image(), self.mask)

    def past_pictures(self) -> list[np.ndarray]:
        """What the agent saw in the turns of `past`, as `picture`."""
        image = self.view.image()
        return [self._paint(image, None if turn.mask is None else rle.decode(turn.mask)) for turn in self.past]

    def _paint(self, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return image if mask is None else blend(image, mask, self.overlay)


@dataclass(frozen=True)
class Decision:
    """A policy's answer to one observation."""

    reply: str
    """The text as the policy wrote it, in the grammar of `lib.agent.protocol` if all is well."""
    support: float | None = None
    """How well the policy thinks the CURRENT mask fits, 0..1, where it can tell."""
    seconds: float = 0.0
    """Wall time that this decision took, its share of a batch."""
    details: dict[str, float | int | str] = field(default_factory=dict)
    """Whatever the policy measures: token counts, log-probability."""


class Policy(Protocol):
    """Stateless between calls, except for caches keyed by content; safe to call from several threads."""

    name: str

    @property
    def about(self) -> Mapping[str, str]:
        """What exactly decides, for the record: weights, device, precision. Empty where the name says it all."""

    structures: tuple[str, ...]
    """Names of the structures that viewers offer as classes, beside free text."""

    def check(self, volume: Volume, prompt: str) -> None:
        """Raise UnknownTarget or InputError when this policy cannot look for `prompt` in `volume`; cheap."""

    def window_preset(self, prompt: str) -> str | None:
        """Name of the CT window preset that shows the target best; None for the default, also for an unknown target."""

    def decide(self, observations: Sequence[Observation], limits: Bound = UNLIMITED) -> list[Decision | EngineError]:
        """One decision per observation, in order; an error in the place of one that could not be made.

        Observations of different volumes and users may come together. Returns soon after `limits` are reached, then with
        errors for what was not decided. Raises EngineError when nothing could be decided.
        """
