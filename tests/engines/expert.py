"""A policy that knows the truth: it clicks where the mask differs from it, and counts how often it is asked."""

from types import MappingProxyType

import numpy as np

from lib.agent.policy import Decision
from lib.agent.protocol import Reply, Terminate, render
from lib.engines.volumes.shapes import iou
from lib.errors import EngineError
from lib.policies.clicks import next_click


class Expert:
    """`truth` is bool `[i, j, k]`; `enough` is the IoU that it approves; it fails on the slices in `broken`."""

    name = "expert"
    structures = ()
    about = MappingProxyType({})

    def __init__(self, truth, enough=0.8, broken=(), on_ask=None):
        self.truth, self.enough, self.broken = truth, enough, set(broken)
        self.asked = []
        self.on_ask = on_ask

    def check(self, volume, prompt):
        pass

    def window_preset(self, prompt):
        return None

    def decide(self, observations, limits=None):
        if self.on_ask is not None:
            self.on_ask(self)
        return [self._decide(observation) for observation in observations]

    def _decide(self, observation):
        view = observation.view
        self.asked.append(view.index)
        if view.index in self.broken:
            return EngineError("the model's server is gone")
        there = np.ascontiguousarray(view.grid.enlarge(view.grid.cut(self.truth, view.index), order=0))
        mask = observation.mask
        if (mask is None and not there.any()) or (mask is not None and iou(mask, there) >= self.enough):
            return Decision(render(Reply("seen", Terminate("done"))), None if mask is None else iou(mask, there))
        click = next_click(mask, there)
        return Decision(render(Reply("here", click)), None if mask is None else iou(mask, there))
