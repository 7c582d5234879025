"""The Policy interface: who decides the next action of an episode."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lib.agent.protocol import Action
from lib.imaging.overlays import OVERLAYS, Overlay, blend
from lib.imaging.views import View
from lib.imaging.volume import Volume


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

    @property
    def turn(self) -> int:
        """1 for the first turn."""
        return len(self.actions) + 1

    def picture(self) -> np.ndarray:
        """What the agent sees: uint8 RGB `[height, width, 3]`, the view with the current mask painted on it."""
        image = self.view.image()
        return image if self.mask is None else blend(image, self.mask, self.overlay)


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
    structures: tuple[str, ...]
    """Names of the structures that viewers offer as classes, beside free text."""

    def check(self, volume: Volume, prompt: str) -> None:
        """Raise UnknownTarget or InputError when this policy cannot look for `prompt` in `volume`; cheap."""

    def window_preset(self, prompt: str) -> str | None:
        """Name of the CT window preset that shows the target best; None for the default, also for an unknown target."""

    def decide(self, observations: Sequence[Observation]) -> list[Decision]:
        """One decision per observation, in order. Observations of different volumes and users may come together."""
