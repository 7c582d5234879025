"""The scoring method: the agent's quality over time, per week and engine, and per image where MONAI Label keeps its facts.

Shared between request threads. One lock covers the last result and is held while a new one is computed, which reads the
database and may write the datastore's index: who asks meanwhile waits.
"""

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.trajectories.gain import gain_config
from lib.trajectories.quality import VolumeQuality, state, volumes, weekly
from lib.trajectories.store import TrajectoryStore

METHOD = "ibis_quality"
_MINUTE_S = 60


class QualityScoring(ScoringMethod):
    """Dice, reward, turns, corrections and annotator's time, as the final labels that have arrived tell."""

    def __init__(self, store: TrajectoryStore):
        super().__init__("The agent's quality by week and weights: Dice, reward, turns, corrections, annotator's seconds")
        self._store = store
        self._lock = threading.Lock()
        self._state: tuple[int, int, str] | None = None
        self._weeks: list[dict[str, Any]] = []
        self._newest: dict[str, dict[str, Any]] = {}
        self._noted: dict[str, dict[str, Any]] = {}

    def info(self) -> dict[str, Any]:
        """What `/info/` shows: the description, and the result as it was last computed."""
        return {**super().info(), "weeks": self._weeks}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Compute it, and note each graded image's newest values with the image: `GET /datastore/` shows them."""
        with self._lock:
            now = state(self._store)
            if now != self._state:
                found = volumes(self._store, gain_config().idle_minutes * _MINUTE_S)
                self._weeks = [_rounded(asdict(week)) for week in weekly(found)]
                self._newest = {one.image: _facts(one) for one in found}
                self._state = now
            self._note(datastore)
            return {"weeks": self._weeks, "images": len(self._newest)}

    def _note(self, datastore: Datastore) -> None:
        """The datastore writes its whole index for each image: only what has changed is noted."""
        for image in datastore.list_images() if self._newest else ():
            facts = self._newest.get(self._store.hashed("image", image))
            if facts is None or self._noted.get(image) == facts:
                continue
            try:
                if datastore.get_image_info(image).get(METHOD) != facts:
                    datastore.update_image_info(image, {METHOD: facts})
            except ImageNotFoundException:  # a DICOMweb series that was never fetched
                continue
            self._noted[image] = facts


def _facts(volume: VolumeQuality) -> dict[str, Any]:
    shown = ("labelled", "engine", "weights", "recipe", "slices", "dice", "reward", "turns", "clicks", "seconds")
    return _rounded({name: getattr(volume, name) for name in shown})


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
