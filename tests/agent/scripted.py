"""A policy that plays written replies: one script per slice."""

from types import MappingProxyType

from lib.agent.engine import Engine
from lib.agent.policy import Decision
from lib.agent.protocol import Click, Reply, Terminate, render
from lib.errors import EngineError
from lib.imaging.planes import ViewPoint
from lib.segmenters.graphcut import GraphCut


def click(x: float, y: float, positive: bool = True) -> str:
    return render(Reply("here", Click(ViewPoint(x, y), positive)))


STOP = render(Reply("right", Terminate("done")))


class Scripted:
    """`scripts[index]` are the replies for slice `index`, in turn; a pair is (reply, support); None fails. The last repeats."""

    name = "scripted"
    structures = ()
    about = MappingProxyType({})

    def __init__(self, scripts):
        self.scripts = scripts
        self.asked = []
        self._turns = {}

    def check(self, volume, prompt):
        pass

    def window_preset(self, prompt):
        return None

    def decide(self, observations, limits=None):
        self.asked.append([observation.view.index for observation in observations])
        decisions = []
        for observation in observations:
            index = observation.view.index
            turn = self._turns.get(index, 0)
            self._turns[index] = turn + 1
            script = self.scripts[index]
            said = script[min(turn, len(script) - 1)]
            if said is None:
                raise EngineError("the model's server is gone")
            reply, support = said if isinstance(said, tuple) else (said, None)
            decisions.append(Decision(reply, support))
        return decisions


def engine(scripts, batch=4) -> Engine:
    return Engine("test", Scripted(scripts), GraphCut(), batch)
