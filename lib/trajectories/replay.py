"""Replay: a recorded episode's clicks through a segmenter again, mask by mask."""

from dataclasses import dataclass

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, Segmenter, State
from lib.engines.volumes.shapes import iou
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.pictures import load_picture
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Modality
from lib.imaging.windows import Window
from lib.trajectories.blobs import Blobs
from lib.trajectories.trajectory import Trajectory


@dataclass(frozen=True)
class Replayed:
    """A click of the episode."""

    turn: int
    iou: float
    """Of the mask now with the mask then."""

    @property
    def identical(self) -> bool:
        return self.iou == 1.0


def view_of(trajectory: Trajectory, blobs: Blobs) -> View:
    """The view of a trajectory made of its picture: pixel for pixel what was seen, without the volume. It has one slice, 0.

    Raises InputError when the blob is gone.
    """
    volume = load_picture(blobs.picture_path(trajectory.picture), Modality(trajectory.origin.modality))
    return View(ViewGrid(volume, Plane.AXIAL), 0, Window(0.0, 255.0, "stored"))


def replay(trajectory: Trajectory, blobs: Blobs, segmenter: Segmenter, limits: Bound = UNLIMITED) -> list[Replayed]:
    """The clicks that made a mask, each with the IoU of the mask that it makes now. Raises EngineError, InputError."""
    (state,) = segmenter.start([view_of(trajectory, blobs)], limits)
    if isinstance(state, EngineError):
        raise state
    given = trajectory.outcome.given
    for click in () if given is None else given.clicks:
        state = _click(segmenter, state, click, limits).state
    found = []
    for step in trajectory.outcome.steps:
        if step.mask is None or step.undone or not isinstance(step.action, Click):
            continue
        prediction = _click(segmenter, state, step.action, limits)
        state = prediction.state
        found.append(Replayed(step.turn, iou(prediction.mask, rle.decode(step.mask))))
    return found


def _click(segmenter: Segmenter, state: State, click: Click, limits: Bound) -> Prediction:
    (prediction,) = segmenter.click([state], [click], limits)
    if isinstance(prediction, EngineError):
        raise prediction
    return prediction
