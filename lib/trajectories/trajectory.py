"""The trajectory: an episode as it was recorded, complete enough to replay and to train on. Immutable; an episode that goes on,
or has a click taken back, is recorded anew as its next version."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from lib.agent.engine import Engine
from lib.agent.episode import Outcome
from lib.agent.record import to_record

SCHEMA = 1


class Source(StrEnum):
    """How a trajectory came about."""

    RUN = "run"
    """The agent, an annotator, or both in turns worked on an image."""
    SIMULATION = "simulation"
    """A simulated annotator worked towards a reference mask."""
    CORRECTION = "correction"
    """A simulated annotator went on from where the agent had ended, towards an annotator's final label."""


@dataclass(frozen=True)
class Origin:
    """Which slice of which image. Identifiers are salted hashes (`lib.trajectories.privacy`)."""

    image: str
    patient: str
    """The patient's hash where the image tells who it is, otherwise the image's."""
    content_hash: str
    """Of the voxels."""
    modality: str
    plane: str
    index: int
    """The slice."""
    size: tuple[int, int]
    """(width, height) of the view in pixels."""
    pixel_mm: float
    """Edge length of a view's pixel; 0 for a picture without physical size."""
    burned_in: str
    """DICOM BurnedInAnnotation (0028,0301): "YES", "NO", or "" when the image does not say."""


@dataclass(frozen=True)
class Maker:
    """What decided and drew."""

    engine: str
    policy: str
    segmenter: str
    protocol: str
    details: Mapping[str, Any]
    """`policy` and `segmenter`: what exactly, such as weights, device, precision."""

    @classmethod
    def of(cls, engine: Engine) -> "Maker":
        details = {"policy": dict(engine.policy.about), "segmenter": dict(engine.segmenter.about)}
        return cls(engine.name, engine.policy.name, engine.segmenter.name, engine.conduct.name, details)

    @property
    def weights(self) -> str:
        """16 hex digits that differ where anything of the maker does."""
        return _digest([self.engine, self.policy, self.segmenter, self.protocol, self.details])[:16]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One version of a recorded episode."""

    episode: str
    """Same for all versions: of the run, the target and the slice; of the trajectory that a correction goes on from."""
    source: Source
    run: str
    target: int
    """1 for the first of the run."""
    user: str
    """Whose run it was."""
    created: str
    """ISO 8601, UTC."""
    origin: Origin
    prompt: str
    label: str
    """Name of the target's label."""
    overlay: str
    max_turns: int
    maker: Maker
    picture: str
    """Digest of the blob that holds the view without a mask: a PNG, grey or RGB, of `origin.size`."""
    outcome: Outcome
    """Steps, stop reason, masks."""
    lesson: str = ""
    """What a simulated episode shows: its scenario (`lib.trajectories.simulation`). Empty for others."""
    kept_from: int = 1
    """First turn that this trajectory adds: before it stand the steps of the episode that a correction goes on from."""
    schema: int = SCHEMA

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The outcome as `lib.agent.record` writes it."""
        return to_record(self.outcome)

    @cached_property
    def key(self) -> str:
        """32 hex digits: same for the same version of the same episode, however often it is recorded."""
        return _digest([self.schema, self.episode, self.source.value, self.lesson, self.record])[:32]

    @property
    def conclusive(self) -> bool:
        """False when it was cut short or failed: nothing can be learned from its end."""
        return self.outcome.conclusive


def observations(trajectory: Trajectory) -> list[str]:
    """For each step, 32 hex digits that differ when anything that was shown before it does: the picture, the mask on it, the
    overlay, the prompt, the complaint about the last reply, and the replies before."""
    given = trajectory.outcome.given
    mask = None if given is None else given.mask
    found: list[str] = []
    past: list[Any] = []
    complaint = ""
    for step, record in zip(trajectory.outcome.steps, trajectory.record["steps"], strict=True):
        shown = None if mask is None else mask["counts"]
        found.append(_digest([trajectory.picture, shown, trajectory.overlay, trajectory.prompt, complaint, past])[:32])
        complaint = record["action"].get("detail", "") if record["action"]["kind"] == "error" else ""
        if step.undone:
            continue
        if not complaint:
            past.append([step.reply, record["action"]])
        mask = step.mask if step.mask is not None else mask
    return found


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
