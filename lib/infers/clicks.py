"""`ibis_click_2d` and `ibis_click_3d`: the annotator's points in, a mask out."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.agent.engine import Engine
from lib.agent.protocol import Click
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import Plane, ViewGrid, VoxelIndex
from lib.imaging.volume import Volume
from lib.infers.agent import AgentInfer
from lib.infers.asked import Annotator, Placed, Worked
from lib.infers.options import ClickOptions
from lib.infers.task import TARGET, Answer, IBISInfer, image_of, limits, user_of

Clicks = dict[int, list[Click]]


class ClickInfer(IBISInfer):
    """Points are voxel indices `[i, j, k]` of the image file; slices are cut across the file's k axis.

    They become steps of the run that looked for what `label` names, after the agent's: see `lib.infers.asked.Annotator`. In two
    dimensions the slices with points come back. In three they are carried both ways until the object ends or another drawn
    slice is near, and the whole object comes back; without a point, the agent looks for what `label` names. A box beside
    points (`roi`) is not looked at.
    """

    options = ClickOptions

    def __init__(
        self,
        engine: Engine,
        volumes: VolumeCache,
        structures: tuple[str, ...],
        dimension: int,
        agent: AgentInfer,
        annotator: Annotator,
    ) -> None:
        about = "each slice on its own" if dimension == 2 else "carried through the volume; without points, the agent"
        super().__init__(engine, volumes, (TARGET, *structures), InferType.DEEPGROW, dimension, f"Your points, {about}")
        self._agent = agent
        self._annotator = annotator

    def infer(self, request: Mapping[str, Any]) -> Answer:
        options = ClickOptions.read(request)
        assert isinstance(options, ClickOptions)
        if options.roi and not options.foreground:
            raise InputError("a box alone is not understood: place a foreground point in the object", "roi")
        if not options.foreground and self.dimension == 3:
            if options.background or options.label in ("", TARGET):
                raise InputError(
                    "place a foreground point; without any point, the segment's name says what the agent should look for",
                    "foreground",
                )
            return self._ask_agent(request, options)
        image = image_of(request)
        volume = self.volumes.get(image)
        grid = ViewGrid(volume, Plane.across(volume, 2))
        positive, negative = _by_slice(grid, options)
        name = "" if options.label == TARGET else options.label
        placed = Placed(
            image=image,
            image_id=str(request.get("image_id") or image.path.name),
            user=user_of(request),
            name=name,
            plane=grid.plane,
            window=options.window,
            positive=positive,
            negative=negative,
        )
        worked = self._annotator.work(placed, carry=self.dimension == 3, limits=limits(request, options.budget_s))
        mask = np.zeros(volume.data.shape, dtype=np.uint8)
        for index, outcome in {**worked.drawn, **worked.carried}.items():
            grid.paste(rle.decode(outcome.mask), index, mask)
        return Answer(mask, volume, {options.label or TARGET: 1}, _params(worked, volume, mask), automatic=False)

    def _ask_agent(self, request: Mapping[str, Any], options: ClickOptions) -> Answer:
        asked = {"label": options.label, "window": options.window, "budget_s": options.budget_s}
        where = {key: request.get(key) for key in ("image", "series", "limits")}
        answer = self._agent.infer(asked | where)
        return replace(answer, labels={options.label: 1})


def _by_slice(grid: ViewGrid, options: ClickOptions) -> tuple[Clicks, Clicks]:
    """Foreground and background clicks by slice. Raises InputError naming the list whose point is outside the image."""
    sides: list[Clicks] = []
    for field, points in (("foreground", options.foreground), ("background", options.background)):
        clicks: Clicks = defaultdict(list)
        for point in points:
            try:
                index, position = grid.to_view(VoxelIndex(*point))
            except InputError as error:
                raise InputError(error.message, field) from error
            clicks[index].append(Click(position, positive=field == "foreground"))
        sides.append(dict(clicks))
    return sides[0], sides[1]


def _params(worked: Worked, volume: Volume, mask: np.ndarray) -> dict[str, Any]:
    outcomes = {**worked.drawn, **worked.carried}
    windows = {str(outcome.window) for outcome in outcomes.values()}
    return {
        "run": worked.key,
        "window": ", ".join(sorted(windows)),
        "warnings": list(volume.warnings),
        "status": "complete" if all(outcome.conclusive for outcome in worked.drawn.values()) else "incomplete",
        "voxels": int(np.count_nonzero(mask)),
        "slices": [
            {"index": o.index, "stop_reason": o.stop.value, "carried": o.index in worked.carried, "confidence": o.confidence}
            for o in sorted(outcomes.values(), key=lambda o: o.index)
        ],
    }
