"""Processes that record: two at a time, or killed while they do. Run as `python -m tests.trajectories.writers ...`."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from lib.imaging.views import View
from lib.trajectories.recorder import Recording, RunRecorder, build_trajectory
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.balls import ball, played, work_on


def write(folder: Path, url: str, name: str, steps: int) -> None:
    """Record runs through the server's own recorder until they have `steps` steps; print how many steps and episodes."""
    store = TrajectoryStore(folder, url)
    recording = Recording(store)
    works = [work_on(*ball(seed=seed), name, enough=0.999, max_turns=20) for seed in range(4)]
    results = [played(work) for work in works]
    done = episodes = number = 0
    while done < steps:
        work, result = works[number % 4], results[number % 4]
        recorder = RunRecorder(recording, replace(work, run=f"{name}-{number}"))
        for outcome in result.outcomes:
            recorder.settled(outcome)
            done, episodes = done + len(outcome.steps), episodes + 1
        number += 1
    recording.close()
    store.close()
    print(json.dumps({"steps": done, "episodes": episodes, "failed": recording.failed}))


def kill(folder: Path, url: str, times: int, seed: int) -> None:
    """Fork a writer `times` times and kill each at a random moment; print the keys that writers had committed."""
    chance = random.Random(seed)
    volume, truth = ball()
    work = work_on(volume, truth)
    result = played(work)
    committed: list[str] = []
    for number in range(times):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _forever(folder, url, f"{number}", work, result, writer)
        os.close(writer)
        if number % 5:  # every fifth may die while it opens the store
            assert os.read(reader, 1) == b"\n"
        time.sleep(chance.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            committed += [line.strip() for line in pipe.read().splitlines(keepends=True) if len(line) == 33]
    print(json.dumps(committed))


def _forever(folder, url, name, work, result, writer) -> None:
    store = TrajectoryStore(folder, url)
    os.write(writer, b"\n")
    rounds = 0
    while True:
        rounds += 1
        own = replace(work, run=f"{name}-{rounds}")
        for outcome in result.outcomes:
            changed = replace(outcome, answer=f"{name} {rounds}")
            trajectory = build_trajectory(View(result.grid, outcome.index, outcome.window), changed, own, store)
            store.add([trajectory], work.image_id)
            os.write(writer, f"{trajectory.key}\n".encode())


if __name__ == "__main__":
    command, where, address, *rest = sys.argv[1:]
    if command == "write":
        write(Path(where), address, rest[0], int(rest[1]))
    else:
        kill(Path(where), address, int(rest[0]), int(rest[1]))
