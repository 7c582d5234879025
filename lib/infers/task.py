"""What the infer tasks share: volumes, mask files, errors that a viewer can show."""

import os
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.agent.engine import Engine
from lib.agent.labels import write_label_seg
from lib.agent.limits import Limits
from lib.errors import EngineError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.masks import write_mask
from lib.imaging.volume import Modality, Volume
from lib.infers.options import Options

TARGET = "target"
"""The label for whatever a free-text prompt names."""
ANYONE = "anonymous"
"""The user of clients that do not say who they are."""
SEG = ".seg.dcm"
_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", SEG)


@dataclass(frozen=True, eq=False)
class Answer:
    """What an infer task found."""

    mask: np.ndarray
    """uint8 `[i, j, k]` on the volume's grid."""
    volume: Volume
    labels: dict[str, int]
    """Name of each voxel value."""
    params: dict[str, Any]
    """JSON for the client."""
    automatic: bool = True
    """False when a person's clicks made it."""


class IBISInfer(InferTask):
    """An infer task: checked options in, a mask file on the source grid out.

    The file is uint8 with values 1..N without gaps as `label_names` says, all zeros when nothing was found, in the array order
    of the image file: OHIF copies its bytes one to one.
    """

    options: type[Options]

    def __init__(
        self, engine: Engine, volumes: VolumeCache, labels: Sequence[str], type: InferType, dimension: int, about: str
    ):
        names = {name: index + 1 for index, name in enumerate(labels)}
        super().__init__(type=type, labels=names, dimension=dimension, description=about, config=self.options.config())
        self.engine = engine
        self.volumes = volumes

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            extension = str(request.get("result_extension") or ".nrrd")
            if extension not in _EXTENSIONS:
                raise InputError(f"{extension!r} cannot be written: use {', '.join(_EXTENSIONS)}", "result_extension")
            answer = self.infer(request)
            path = write_answer(answer, extension, str(request.get("result_compress")).lower() in ("true", "1"))
            return path, {"label_names": answer.labels, **answer.params}
        except InputError as error:
            raise http_error(error) from error
        except EngineError as error:
            raise HTTPException(503, detail=str(error)) from error

    @abstractmethod
    def infer(self, request: Mapping[str, Any]) -> Answer:
        """Do the work. Raises InputError for what cannot be asked."""


def limits(request: Mapping[str, Any], budget_s: float) -> Limits:
    """The limits of a request whose time budget starts now: `budget_s`, or the stock `timeout` if that is shorter.

    The server can cancel it through the `limits` that it put in. Raises InputError with the field "timeout".
    """
    timeout = request.get("timeout")
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise InputError(f"{str(timeout)[:80]!r} is not a number of seconds above 0", "timeout")
        budget_s = min(budget_s, timeout)
    given = request.get("limits")
    cancelled = given.cancelled if isinstance(given, Limits) else threading.Event()
    return Limits(deadline=time.monotonic() + budget_s, cancelled=cancelled)


def user_of(request: Mapping[str, Any]) -> str:
    """Whose request it is: what the client calls itself in `client_id`. Raises InputError with that field."""
    user = request.get("client_id")
    if user is None or user == "":
        return ANYONE
    if not isinstance(user, str) or len(user) > 128 or not user.isprintable():
        raise InputError("must be at most 128 printable characters", "client_id")
    return user


def image_of(request: Mapping[str, Any], modality: Modality | None = None) -> ImageRef:
    """The image that the server put into a request: a file, or a DICOM series of a folder."""
    return ImageRef(Path(request["image"]), request.get("series"), modality)


def http_error(error: InputError) -> HTTPException:
    """422 with the field's name and the remedy."""
    return HTTPException(422, detail=f"{error.field}: {error.message}" if error.field else error.message)


def write_answer(answer: Answer, extension: str, compress: bool) -> str:
    """A new temporary file with the answer's mask, its path. Raises InputError when it cannot be of that kind."""
    handle, name = tempfile.mkstemp(prefix="ibis-", suffix=extension)
    os.close(handle)
    try:
        if extension == SEG:
            write_label_seg(Path(name), answer.mask, answer.volume, answer.labels, answer.automatic)
        else:
            write_mask(Path(name), answer.mask, answer.volume, compress=compress)
    except BaseException:
        os.unlink(name)
        raise
    return name
