"""Grades: what an episode was worth against a reference mask, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepGrade:
    """One step."""

    turn: int
    iou_before: float
    """Of the mask that the step saw, against the reference; an empty mask against an empty reference is 1."""
    iou_after: float
    parts: Mapping[str, float]
    """Reward by name; a part that does not apply to the step is left out."""
    total: float


@dataclass(frozen=True)
class Grade:
    """One episode."""

    recipe: str
    """Name of the reward recipe."""
    iou: float
    """Of the episode's chosen mask."""
    dice: float
    parts: Mapping[str, float]
    """Of the whole episode, by name."""
    total: float
    steps: tuple[StepGrade, ...]
    """Of the steps that count: not those taken back."""


@dataclass(frozen=True)
class Dropped:
    """An episode that has no grade."""

    reason: str
