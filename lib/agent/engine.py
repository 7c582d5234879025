"""The engine: one policy and one segmenter, as configured."""

from dataclasses import dataclass

from lib.agent.conduct import CORRECTED, Conduct
from lib.agent.policy import Policy
from lib.agent.segmenter import Segmenter


@dataclass(frozen=True)
class Engine:
    """Weights and caches keyed by content live in its parts, nothing else: two requests at once never see each other."""

    name: str
    policy: Policy
    segmenter: Segmenter
    batch: int
    """How many slices of a run go through the parts together."""
    runs: int = 2
    """How many runs at a time it is made for."""
    shares_batches: bool = False
    """Whether runs that are played at once go through its models together, and so cost less than one after the other."""
    conduct: Conduct = CORRECTED
