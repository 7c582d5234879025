"""Viewers' clicks: which run they belong to, and what is new about them.

A viewer sends all its points each time and names, at most, the object. Shared between threads; one lock keeps two requests from
opening a run for the same object twice.
"""

import threading
from collections.abc import Mapping, Sequence

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.agent.protocol import Click
from lib.agent.run import RunRequest
from lib.agent.takeover import annotator_clicks
from lib.imaging.cache import VolumeCache
from lib.imaging.planes import ViewGrid
from lib.infers.asked import Asked, Placed, Target, Worked
from lib.infers.task import TARGET
from lib.server.jobs.runs import Runs
from lib.server.jobs.takeover import Takeover

_NEWEST = 50
"""So many of a user's runs are looked through for the one that clicks belong to."""


class ClickDesk:
    """Implements `lib.infers.asked.Annotator`.

    Clicks on a named object go on with the newest run of this user that looked for it on this image, so that they correct the
    agent's mask. Without a name nobody knows whose mask is meant: such clicks have a run of their own, and when none of the
    clicks of before is among them, a new one: another object. Neither ever touches another target.
    """

    def __init__(self, runs: Runs, takeover: Takeover, engine: Engine, volumes: VolumeCache):
        self._runs = runs
        self._takeover = takeover
        self._engine = engine
        self._volumes = volumes
        self._lock = threading.Lock()

    def work(self, placed: Placed, carry: bool, limits: Limits) -> Worked:
        clicks = {index: [*placed.positive[index], *placed.negative.get(index, ())] for index in sorted(placed.positive)}
        with self._lock:
            key, target = self._find(placed, clicks) or (self._begin(placed), 1)
        drawn = self._takeover.synchronise(key, placed.user, target, clicks, limits)
        if not carry:
            return Worked(key, drawn, {})
        rest = {index: given for index, given in placed.negative.items() if index not in clicks}
        whole = self._takeover.carry(key, placed.user, target, rest, limits)
        return Worked(key, drawn, {index: outcome for index, outcome in whole.items() if index not in drawn and outcome.found})

    def _find(self, placed: Placed, clicks: Mapping[int, Sequence[Click]]) -> tuple[str, int] | None:
        """The run, and which of its targets."""
        for key, asked, _ in self._runs.of_user(placed.user)[:_NEWEST]:
            if asked.image != placed.image:
                continue
            for number, target in enumerate(asked.targets, start=1):
                same = target.request.plane == placed.plane and _words(target.request.prompt) == _words(placed.name or TARGET)
                if same and self._runs.status(key).ended:
                    return None if not placed.name and self._begun_anew(key, asked, clicks) else (key, number)
        return None

    def _begun_anew(self, key: str, asked: Asked, clicks: Mapping[int, Sequence[Click]]) -> bool:
        size = ViewGrid(self._volumes.get(asked.image), asked.targets[0].request.plane).size
        before = {
            (index, click)
            for index, outcome in self._runs.state(key).outcomes(1, size).items()
            for click in annotator_clicks(outcome)
        }
        now = {(index, click) for index, given in clicks.items() for click in given}
        return bool(before) and not before & now

    def _begin(self, placed: Placed) -> str:
        prompt = placed.name.replace("_", " ") or TARGET
        request = RunRequest(prompt, placed.plane, "all", window=placed.window)
        asked = Asked(placed.image, placed.image_id, (Target(request, placed.name or TARGET, 1),), placed.user)
        return self._runs.begin(asked)


def _words(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())
