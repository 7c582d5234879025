"""The words of a simulated annotator: phrases of `configs/reasoning.yaml`, filled with what is seen in the picture."""

from dataclasses import dataclass
from functools import cache
from string import Formatter

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from lib.agent.anatomy import anatomy
from lib.config import load_config
from lib.imaging.views import View
from lib.policies import findings

_NAMES = frozenset(
    {
        "target",
        "Target",
        "bare",
        "place",
        "tone",
        "contrast",
        "where",
        "side",
        "size",
        "share",
        "match",
        "rest",
        "other",
        "area",
    }
)


class Reasoning(BaseModel):
    """`configs/reasoning.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kinds: dict[str, tuple[str, ...]]
    answers: dict[str, tuple[str, ...]]

    @field_validator("kinds", "answers")
    @classmethod
    def _fillable(cls, phrases: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for kind, lines in phrases.items():
            for line in lines:
                unknown = {name for _, name, _, _ in Formatter().parse(line) if name is not None} - _NAMES
                if unknown or "<" in line or ">" in line:
                    raise ValueError(f"{kind}: {line!r} has names that are never filled ({sorted(unknown)}), or angle brackets")
        return phrases


@cache
def reasoning() -> Reasoning:
    """Raises InputError when the file is not valid."""
    return load_config("reasoning", Reasoning)


@dataclass(frozen=True, eq=False)
class Scene:
    """One view, what stands on it, and what it should be. Masks are bool `[height, width]`."""

    view: View
    target: str
    """Its name in words, without an article."""
    mask: np.ndarray
    reference: np.ndarray
    other: str = ""
    """What the mask shows instead, in words."""

    def thought(self, kind: str, part: np.ndarray, rng: np.random.Generator, rest: float = 0.0) -> str:
        """A phrase of the kind; `part` is the region it speaks of, `rest` the radius in pixels of the largest error left."""
        return self._said(reasoning().kinds[kind], part, rng, rest)

    def answer(self, kind: str, rng: np.random.Generator) -> str:
        """Closing words: "segmented", "absent" or "partly"."""
        return self._said(reasoning().answers[kind], self.mask, rng, 0.0)

    def _said(self, phrases: tuple[str, ...], part: np.ndarray, rng: np.random.Generator, rest: float) -> str:
        phrase = phrases[int(rng.integers(len(phrases)))]
        return phrase.format_map(_Facts(self, part, rest))


class _Facts(dict[str, str]):
    """Measures what a phrase names, and only that."""

    def __init__(self, scene: Scene, part: np.ndarray, rest: float):
        super().__init__()
        self._scene, self._part, self._rest = scene, part, rest

    def __missing__(self, name: str) -> str:
        scene, part = self._scene, self._part
        grey, pixel_mm = scene.view.grey(), None if scene.view.volume.planar else scene.view.grid.pixel_mm
        match name:
            case "target":
                return f"the {scene.target}"
            case "Target":
                return f"The {scene.target}"
            case "bare":
                return scene.target
            case "other":
                return f"the {scene.other}"
            case "place":
                structure = anatomy().find(scene.target)
                return f", which lies in this place: {structure.place}" if structure is not None and structure.place else ""
            case "tone":
                return findings.tone(grey, part)
            case "contrast":
                return findings.compared(grey, part, findings.surroundings(part))
            case "where":
                return findings.where(part)
            case "side":
                return findings.side(part, scene.reference)
            case "size":
                return findings.across(part, pixel_mm)
            case "share":
                return findings.share(part, scene.reference)
            case "match":
                return findings.compared(grey, part, scene.reference & scene.mask & ~part)
            case "area":
                return findings.area(part, pixel_mm)
            case _:
                if self._rest == 0:
                    return "No gap and no excess is left."
                return f"No gap and no excess wider than {findings.thin(self._rest, pixel_mm)} is left."
