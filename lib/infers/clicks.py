"""`ibis_click_2d` and `ibis_click_3d`: the annotator's points in, a mask out."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import place
from lib.agent.protocol import Click
from lib.engines.spread import spread
from lib.errors import EngineError, InputError
from lib.imaging import rle
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import Plane, ViewGrid, VoxelIndex
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.imaging.windows import Window, choose_window
from lib.infers.agent import AgentInfer
from lib.infers.options import ClickOptions
from lib.infers.task import TARGET, Answer, IBISInfer, image_of, limits

Clicks = dict[int, list[Click]]


class ClickInfer(IBISInfer):
    """Points are voxel indices `[i, j, k]` of the image file; slices are cut across the file's k axis.

    In two dimensions each slice with points is drawn on its own. In three, slices with foreground points are drawn and carried
    both ways until the object ends or another drawn slice is near; without a point, the agent looks for what `label` names.
    """

    options = ClickOptions

    def __init__(
        self, engine: Engine, volumes: VolumeCache, structures: tuple[str, ...], dimension: int, agent: AgentInfer
    ) -> None:
        about = "each slice on its own" if dimension == 2 else "carried through the volume; without points, the agent"
        super().__init__(engine, volumes, (TARGET, *structures), InferType.DEEPGROW, dimension, f"Your points, {about}")
        self._agent = agent

    def infer(self, request: Mapping[str, Any]) -> Answer:
        options = ClickOptions.read(request)
        assert isinstance(options, ClickOptions)
        if not options.foreground and self.dimension == 3:
            if options.background or options.label in ("", TARGET):
                raise InputError(
                    "place a foreground point; without any point, the segment's name says what the agent should look for",
                    "foreground",
                )
            return self._ask_agent(request, options)
        volume = self.volumes.get(image_of(request))
        bounds = limits(request, options.budget_s)
        grid = ViewGrid(volume, Plane.across(volume, 2))
        preset = self.engine.policy.window_preset(options.label.replace("_", " "))
        window = choose_window(volume, options.window, preset)
        positive, negative = _by_slice(grid, options)
        outcomes = {index: self._draw(View(grid, index, window), positive, negative, bounds) for index in sorted(positive)}
        carried = spread(outcomes, negative, grid, window, self.engine, bounds) if self.dimension == 3 else {}
        mask = np.zeros(volume.data.shape, dtype=np.uint8)
        for index, outcome in (outcomes | carried).items():
            grid.paste(rle.decode(outcome.mask), index, mask)
        params = _params(outcomes, carried, volume, window, mask)
        return Answer(mask, volume, {options.label or TARGET: 1}, params, automatic=False)

    def _ask_agent(self, request: Mapping[str, Any], options: ClickOptions) -> Answer:
        asked = {"label": options.label, "window": options.window, "budget_s": options.budget_s}
        where = {key: request.get(key) for key in ("image", "series", "limits")}
        answer = self._agent.infer(asked | where)
        return replace(answer, labels={options.label: 1})

    def _draw(self, view: View, positive: Clicks, negative: Clicks, bounds: Limits) -> Outcome:
        clicks = positive[view.index] + negative.get(view.index, [])
        episode = Episode(view, TARGET, max_turns=len(clicks))
        place(episode, clicks, self.engine, bounds)
        if episode.stop is None:
            episode.end(StopReason.ANNOTATED)
        outcome = episode.outcome()
        if outcome.stop is StopReason.FAILED:
            raise EngineError(outcome.detail)
        return outcome


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


def _params(
    drawn: Mapping[int, Outcome],
    carried: Mapping[int, Outcome],
    volume: Volume,
    window: Window,
    mask: np.ndarray,
) -> dict[str, Any]:
    return {
        "window": str(window),
        "warnings": list(volume.warnings),
        "status": "complete" if all(outcome.conclusive for outcome in drawn.values()) else "incomplete",
        "voxels": int(np.count_nonzero(mask)),
        "slices": [
            {"index": o.index, "stop_reason": o.stop.value, "carried": o.index in carried, "confidence": o.confidence}
            for o in sorted([*drawn.values(), *carried.values()], key=lambda o: o.index)
        ],
    }
