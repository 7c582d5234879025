"""Real episodes to record: an expert and the graph cut on a synthetic volume."""

from pathlib import Path

import numpy as np

from lib.agent.engine import Engine
from lib.agent.run import RunRequest, run
from lib.imaging import rle
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.segmenters.graphcut import GraphCut
from lib.trajectories.recorder import Work, build_trajectory
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Trajectory
from tests.engines.expert import Expert


def ball(shape=(48, 40, 8), seed=0):
    """A bright ball on noisy ground, spacing 1 x 1 x 3 mm, and where it is (bool `[i, j, k]`)."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    truth = (i - 20) ** 2 + (j - 18) ** 2 + (4 * (k - 4)) ** 2 < 12**2
    noise = np.random.default_rng(seed).normal(0, 8, shape)
    volume = Volume((40 + 90 * truth + noise).astype(np.int16), np.diag([1, 1, 3, 1.0]), Modality.CT, Path("ball.nii.gz"))
    return volume, truth


def work_on(volume, truth, key="run", prompt="ball", user="anna", image="ball", enough=0.8, **request):
    """A run to record: of the expert who knows `truth`."""
    engine = Engine("expert", Expert(truth, enough), GraphCut(), 8)
    asked = RunRequest(prompt, **{"max_turns": 6, **request})
    return Work(key, 1, prompt, user, image, asked, volume, engine)


def played(work):
    """The result of the run."""
    return run(work.request, work.volume, work.engine)


def recorded(store: TrajectoryStore, key="run", seed=0, **about) -> list[Trajectory]:
    """Trajectories of all slices of one run, in the store."""
    volume, truth = ball(seed=seed)
    work = work_on(volume, truth, key, **about)
    result = played(work)
    trajectories = [
        build_trajectory(View(result.grid, outcome.index, outcome.window), outcome, work, store) for outcome in result.outcomes
    ]
    store.add(trajectories, work.image_id)
    return trajectories


def reference(trajectory: Trajectory) -> np.ndarray:
    """What the ball is on the trajectory's slice, bool `[height, width]` of the view."""
    volume, truth = ball()
    grid = ViewGrid(volume, Plane(trajectory.origin.plane))
    return grid.enlarge(grid.cut(truth, trajectory.origin.index), 0)


def first_click(trajectory: Trajectory) -> np.ndarray:
    """The mask after the first click."""
    return rle.decode(next(step.mask for step in trajectory.outcome.steps if step.mask is not None))
