"""The run: all the episodes of one request on one volume, and the 3-D mask they add up to."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lib.agent.engine import Engine
from lib.agent.episode import Episode, Outcome
from lib.agent.limits import Limits
from lib.agent.loop import Observer, play
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.overlays import overlay_named
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.volume import Volume
from lib.imaging.windows import Window, choose_window, slice_window

DEFAULT_TURNS = 20
"""The released limit, in inference and in trajectory generation."""


@dataclass(frozen=True)
class RunRequest:
    """What to look for, and where."""

    prompt: str
    plane: Plane = Plane.AXIAL
    slices: str = "all"
    """"all", numbers and ranges such as "12, 20-35", or a stride such as "every 4", counted from the patient's left, posterior,
    inferior side. `lib.engines.volumes` also knows "auto", and fills the slices between those of a stride."""
    max_turns: int = DEFAULT_TURNS
    window: str = "auto"
    overlay: str = "inference"


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run came to."""

    request: RunRequest
    engine: Engine
    volume: Volume
    grid: ViewGrid
    window: Window
    """The window of the whole volume; an outcome has its own where the conduct chooses one for each slice."""
    mask: np.ndarray
    """uint8 `[i, j, k]` on the volume's grid: 1 where the target is."""
    outcomes: tuple[Outcome, ...]
    """One per slice looked at, in slice order."""
    seconds: float

    @property
    def unfinished(self) -> tuple[Outcome, ...]:
        """The slices that were cut short or failed: their empty mask is not an answer."""
        return tuple(outcome for outcome in self.outcomes if not outcome.conclusive)

    @property
    def status(self) -> str:
        """Either "complete", or "incomplete" when a deadline, a cancellation or a failure left slices without an answer."""
        return "incomplete" if self.unfinished else "complete"

    @property
    def voxels(self) -> int:
        return int(np.count_nonzero(self.mask))

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in millilitres."""
        return self.voxels * abs(float(np.linalg.det(self.volume.affine[:3, :3]))) / 1000

    @property
    def answer(self) -> str:
        """The run in a sentence."""
        prompt = self.request.prompt
        if self.status == "incomplete":
            reasons = ", ".join(sorted({o.detail or o.stop.value for o in self.unfinished}))
            return f"{prompt}: unfinished, {len(self.unfinished)} of {len(self.outcomes)} slices have no answer ({reasons})"
        if not self.voxels:
            return f"{prompt}: absent" + ("" if self.volume.planar else f" on all {len(self.outcomes)} slices")
        shown = [o for o in self.outcomes if o.found]
        if self.volume.planar:
            return f"{prompt}: {self.voxels} pixels, {100 * self.voxels / self.mask.size:.1f} % of the picture"
        return f"{prompt}: {self.volume_ml:.1f} ml on {len(shown)} of {len(self.outcomes)} slices"


STRIDE = re.compile(r"every\s+([1-9]\d{0,5})", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", re.ASCII)


def select_slices(text: str, grid: ViewGrid) -> tuple[int, ...]:
    """The acquired slices that `text` names ("all", "12, 20-35", "every 4"), ascending.

    Raises InputError with the field "slices".
    """
    if len(text) > 2000:
        raise InputError("the slices are longer than 2000 characters", "slices")
    if text.strip().lower() in ("", "all"):
        return grid.acquired
    stride = STRIDE.fullmatch(text.strip())
    if stride is not None:
        return grid.acquired[:: int(stride[1])]
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InputError(
                f'slices {text!r} is not understood: use all, auto, a stride such as "every 4", or "12, 20-35"', "slices"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"slices {part.strip()!r} runs backwards: write {last}-{first}", "slices")
        grid.check(first)
        grid.check(last)
        chosen.update(range(first, last + 1))
    return tuple(index for index in grid.acquired if index in chosen)


def run(
    request: RunRequest,
    volume: Volume,
    engine: Engine,
    limits: Limits | None = None,
    observers: Sequence[Observer] = (),
    known: Mapping[int, Outcome] = MappingProxyType({}),
) -> RunResult:
    """Play one episode on each chosen slice of `volume` and put the masks together on the volume's own grid.

    `known` holds conclusive outcomes of slices that need not be played again: a run goes on where an earlier one ended. Raises
    InputError when the request cannot be carried out; what goes wrong later is data on the result.
    """
    prompt = request.prompt.strip()
    if not prompt:
        raise InputError("the prompt is empty: say what to segment, such as liver or left kidney", "prompt")
    if len(prompt) > 2000:
        raise InputError("the prompt is longer than 2000 characters", "prompt")
    if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in prompt):
        raise InputError("the prompt holds control characters", "prompt")
    if request.max_turns < 1:
        raise InputError(f"max_turns is {request.max_turns}: at least one turn is needed", "max_turns")
    overlay = overlay_named(request.overlay)
    grid = ViewGrid(volume, request.plane)
    slices = select_slices(request.slices, grid)
    engine.policy.check(volume, prompt)
    window = choose_window(volume, request.window, engine.policy.window_preset(prompt))
    own = engine.conduct.slice_window and request.window.strip().lower() in ("", "auto") and not volume.planar
    open_slices = (index for index in slices if index not in known)
    views = (View(grid, index, slice_window(grid.cut(volume.data, index)) if own else window) for index in open_slices)
    began = time.perf_counter()
    mask = np.zeros(volume.data.shape, dtype=np.uint8)
    outcomes = [known[index] for index in slices if index in known]
    episodes = (Episode(view, prompt, request.max_turns, overlay, engine.conduct) for view in views)
    for episode in play(episodes, engine, limits or Limits(), observers):
        outcome = episode.outcome()
        outcomes.append(outcome)
        for watcher in observers:
            watcher.settled(outcome)
    for outcome in outcomes:
        grid.paste(rle.decode(outcome.mask), outcome.index, mask)
    return RunResult(
        request=request,
        engine=engine,
        volume=volume,
        grid=grid,
        window=window,
        mask=mask,
        outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.index)),
        seconds=time.perf_counter() - began,
    )
