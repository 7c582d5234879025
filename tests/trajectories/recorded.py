"""A small store of real episodes on pictures of bright discs: what an agent, annotators and simulated annotators do."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Episode, Outcome
from lib.agent.limits import Limits
from lib.agent.loop import play
from lib.agent.protocol import Click
from lib.agent.run import RunRequest, run
from lib.agent.takeover import Slice, annotate, undo
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from lib.policies.simulated import SimulatedPolicy, Task
from lib.segmenters.graphcut import GraphCut
from lib.trajectories.recorder import Work, build_trajectory
from lib.trajectories.rewards import Reference, grade, recipe_named, useful_error
from lib.trajectories.simulation.correction import correct
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Source, Trajectory
from tests.agent.scripted import STOP, Scripted, click

SIDE = 96
CENTRE = (0.4, 0.5)
LIMITS = Limits()


def disc(radius: int = 18, seed: int = 0, modality: Modality = Modality.OTHER) -> tuple[Volume, np.ndarray]:
    """A picture of a bright disc left of the middle, radius 0 for none, and its mask, bool `[row, column]`."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = (columns - CENTRE[0] * SIDE) ** 2 + (rows - CENTRE[1] * SIDE) ** 2 < radius**2
    grey = np.random.default_rng(seed).normal(50, 5, (SIDE, SIDE)) + 140 * mask
    pixels = grey.clip(0, 255).astype(np.uint8)
    data, affine = np.ascontiguousarray(pixels.T[:, :, None]), np.diag([1.0, -1.0, 1.0, 1.0])
    return Volume(data, affine, modality, Path(f"picture{seed}.png"), planar=True), mask


def engine(*replies: str) -> Engine:
    return Engine("test", Scripted({0: list(replies)}), GraphCut(), 4)


class Recorder:
    """Records episodes in a store, and grades them against the disc."""

    def __init__(self, store: TrajectoryStore, annotator: str = "ann"):
        self.store, self.annotator = store, annotator
        self._runs = 0

    def play(self, volume: Volume, *replies: str, prompt: str = "bright disc") -> tuple[Slice, Outcome, Work]:
        """An episode of the agent that gives these replies."""
        self._runs += 1
        made = engine(*replies)
        request = RunRequest(prompt, max_turns=8)
        result = run(request, volume, made)
        (outcome,) = result.outcomes
        view = View(ViewGrid(volume, Plane.AXIAL), 0, outcome.window)
        work = Work(f"run{self._runs}", 1, "bright_disc", "ann", volume.source.name, request, volume, made)
        return Slice(view, prompt, OVERLAYS["inference"]), outcome, work

    def add(self, slice_: Slice, outcome: Outcome, work: Work, reference: np.ndarray | None, **more: object) -> Trajectory:
        """Record it; with a reference also grade it."""
        trajectory = build_trajectory(slice_.view, outcome, work, self.store, **more)
        assert self.store.add([trajectory], work.image_id) == 1
        if reference is not None:
            self.grade(trajectory, reference)
        return trajectory

    def grade(self, trajectory: Trajectory, reference: np.ndarray, annotator: str = "", recipe: str = "") -> None:
        label = self.store.add_label(trajectory.origin.image, trajectory.label, annotator or self.annotator, "api")
        chosen = recipe_named(recipe)
        graded = grade(trajectory.outcome, reference, chosen)
        assert self.store.add_grading(trajectory.key, label, rle.encode(reference), chosen.name, graded)


GOOD = click(*CENTRE)
BAD = click(0.85, 0.15)


def useful(mask: np.ndarray | None, reference: np.ndarray) -> bool:
    return useful_error(mask, Reference(reference), recipe_named()) is not None


def correction_of(base: Trajectory, slice_: Slice, reference: np.ndarray, work: Work) -> Trajectory:
    """A simulated expert goes on from where an episode ended; not recorded yet."""
    outcome = correct(slice_, base.outcome, reference, work.engine, LIMITS, 5)
    assert outcome is not None
    kept_from = len(base.outcome.steps) + 1
    return replace(base, source=Source.CORRECTION, episode=f"{base.key}:label", outcome=outcome, kept_from=kept_from)


def fill(store: TrajectoryStore) -> dict[str, Trajectory]:
    """Record one episode of each sort, each on an image of its own; by name."""
    recorder = Recorder(store)
    found: dict[str, Trajectory] = {}

    volume, mask = disc(seed=1)
    found["right"] = recorder.add(*recorder.play(volume, GOOD, STOP), mask)

    volume, mask = disc(seed=2)
    found["wrong click"] = recorder.add(
        *recorder.play(volume, BAD, "I do not know", GOOD, click(0.85, 0.15, False), STOP), mask
    )

    volume, mask = disc(seed=7)
    found["detour"] = recorder.add(*recorder.play(volume, GOOD, BAD, click(0.85, 0.15, False), STOP), mask)

    volume, mask = disc(seed=3)
    slice_, outcome, work = recorder.play(volume, STOP)
    outcome = annotate(slice_, outcome, [Click(ViewPoint(0.1, 0.1), True)], work.engine, LIMITS)
    outcome = undo(slice_, outcome, 2, work.engine, LIMITS)
    outcome = annotate(slice_, outcome, [Click(ViewPoint(*CENTRE), True)], work.engine, LIMITS)
    found["annotated"] = recorder.add(slice_, outcome, work, mask)

    volume, _ = disc(0, seed=4)
    found["absent"] = recorder.add(*recorder.play(volume, STOP), np.zeros((SIDE, SIDE), bool))

    volume, mask = disc(seed=5)
    slice_, outcome, work = recorder.play(volume, BAD, STOP)
    found["early stop"] = recorder.add(slice_, outcome, work, mask)
    found["correction"] = correction_of(found["early stop"], slice_, mask, work)
    store.add([found["correction"]], work.image_id)
    recorder.grade(found["correction"], mask)

    volume, mask = disc(seed=6)
    view = View(ViewGrid(volume, Plane.AXIAL), 0, Window(0, 255, "stored"))
    policy = SimulatedPolicy({view: Task("bright disc", mask, 6, seed=3, errs=True)}, useful)
    simulator = Engine("simulated", policy, GraphCut(), 4)
    (episode,) = play([Episode(view, "bright disc", 8, actor=Actor.EXPERT)], simulator, LIMITS)
    request = RunRequest("bright disc", max_turns=8)
    work = Work("sim", 1, "bright_disc", "simulated", volume.source.name, request, volume, simulator, Source.SIMULATION)
    slice_ = Slice(view, "bright disc", OVERLAYS["inference"])
    found["recovery"] = recorder.add(slice_, episode.outcome(), work, mask, lesson="recover")
    return found
