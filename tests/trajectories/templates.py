"""Trajectories put together for tests of what is told about many of them: any image, time, confidence, stop reason."""

from dataclasses import replace

import numpy as np

from lib.agent.limits import StopReason
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Maker, Origin, Source, Trajectory
from tests.trajectories.episodes import STOP, at, outcome, rect, said

PLAYED = [(said(at(8, 8)), rect(5, 15, 5, 15)), (STOP, None)]
TIME = "2026-11-22T10:00:00.000+00:00"


def record(
    store: TrajectoryStore,
    image: str,
    run: str = "",
    index: int = 0,
    label: str = "liver",
    played: list | None = None,
    stop: StopReason | None = None,
    confidence: float | None = 0.7,
    created: str = TIME,
    user: str = "anna",
    source: Source = Source.RUN,
    picture: np.ndarray | None = None,
    modality: str = "CT",
    weights: str = "one",
    undone: tuple[int, ...] = (),
) -> Trajectory:
    """Record an episode of 20 rows and 40 columns, at most 8 turns, on an image that the server calls `image`."""
    ended = replace(outcome(played or PLAYED, stop, undone=undone), index=index, confidence=confidence)
    run = run or f"run on {image}"
    key = store.hashed("image", image)
    seen = np.full((20, 40, 3), 90, np.uint8) if picture is None else picture
    trajectory = Trajectory(
        episode=f"{run}:{label}:{index}",
        source=source,
        run=run,
        target=1,
        user=user,
        created=created,
        origin=Origin(key, key, "0" * 64, modality, "axial", index, (40, 20), 1.0, ""),
        prompt=label,
        label=label,
        overlay="inference",
        max_turns=8,
        maker=Maker("test", "scripted", "drawn", "corrected", {"weights": weights}),
        picture=store.blobs.put_picture(seen),
        outcome=ended,
    )
    store.add([trajectory], image)
    return trajectory
