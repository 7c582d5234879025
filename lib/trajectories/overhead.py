"""What recording costs: the same run with and without it, by turns, in one process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lib.agent.engine import Engine
from lib.agent.run import RunRequest, run
from lib.imaging.volume import Volume
from lib.trajectories.recorder import Recording, RunRecorder, Work
from lib.trajectories.store import TrajectoryStore


@dataclass(frozen=True)
class Round:
    """One run without recording, and the same with it."""

    plain_s: float
    recorded_s: float
    """Until the last episode is on disk."""
    waited_s: float
    """Of these, after the run's own end."""
    episodes: int
    steps: int


def measure_recording(volume: Volume, prompt: str, engine: Engine, folder: Path, rounds: int) -> Iterator[Round]:
    """Measure into a new store in `folder`; the first run, which fills caches, is not counted."""
    store = TrajectoryStore(folder)
    recording = Recording(store)
    request = RunRequest(prompt)
    work = Work("", 1, prompt, "bench", "bench", request, volume, engine)
    run(request, volume, engine)
    try:
        for number in range(rounds):
            began = time.perf_counter()
            run(request, volume, engine)
            plain = time.perf_counter() - began
            began = time.perf_counter()
            recorder = RunRecorder(recording, replace(work, run=f"run {number}"))
            result = run(request, volume, engine, observers=[recorder])
            ended = time.perf_counter()
            recording.flush()
            now = time.perf_counter()
            kept = [outcome for outcome in result.outcomes if outcome.steps]
            yield Round(plain, now - began, now - ended, len(kept), sum(len(outcome.steps) for outcome in kept))
    finally:
        recording.close()
        store.close()
