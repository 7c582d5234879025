"""A run as it was asked for, checked: what the server queues, keeps, and goes on with after a restart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lib.agent.episode import Outcome
from lib.agent.limits import Limits
from lib.agent.protocol import Click
from lib.agent.run import RunRequest, RunResult
from lib.imaging.cache import ImageRef
from lib.imaging.planes import Plane


@dataclass(frozen=True)
class Target:
    """One thing to look for, and the voxel value that it gets."""

    request: RunRequest
    name: str
    """Of the label."""
    value: int


@dataclass(frozen=True)
class Asked:
    """One or several targets on one image."""

    image: ImageRef
    image_id: str
    """What the client called the image."""
    targets: tuple[Target, ...]
    user: str
    budget_s: float | None = None
    """Seconds of work; None: until it is done. A client that waits has its own limits."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What came of it."""

    key: str
    """The run's id."""
    results: tuple[RunResult, ...]
    """One per target."""
    labels: np.ndarray
    """uint8 `[i, j, k]` with the targets' voxel values."""
    notes: tuple[str, ...]
    """What else the client should know."""


@dataclass(frozen=True)
class Placed:
    """All the clicks that a viewer holds for one object, by slice of the plane."""

    image: ImageRef
    image_id: str
    user: str
    name: str
    """Of the object; empty when the viewer does not say."""
    plane: Plane
    window: str
    positive: Mapping[int, Sequence[Click]]
    negative: Mapping[int, Sequence[Click]]
    """Also on slices without a positive one: for where the object is carried to."""


@dataclass(frozen=True, eq=False)
class Worked:
    """What came of clicks."""

    key: str
    """The id of the run that they belong to."""
    drawn: Mapping[int, Outcome]
    """The slices with clicks."""
    carried: Mapping[int, Outcome]
    """The others that have a mask, brought from these or made by the agent."""


class Annotator(Protocol):
    """Who keeps what a person does."""

    def work(self, placed: Placed, carry: bool, limits: Limits) -> Worked:
        """Bring the run up to the clicks; with `carry` also the slices beside them. Raises InputError and EngineError."""


class Runner(Protocol):
    """Who carries runs out."""

    def run(self, asked: Asked, limits: Limits) -> Finished:
        """Carry a run out and wait for it. Raises InputError and EngineError as the run does."""
