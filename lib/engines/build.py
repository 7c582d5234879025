"""Builds engines from `configs/engines.yaml`."""

from collections.abc import Callable
from functools import cache

from pydantic import BaseModel, ConfigDict, Field

from lib.agent.engine import Engine
from lib.agent.policy import Policy
from lib.agent.segmenter import Segmenter
from lib.config import load_config
from lib.errors import InputError


class PartConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: str


class EngineConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    policy: PartConfig
    segmenter: PartConfig
    batch: int = Field(ge=1)


class EnginesConfig(BaseModel):
    """`configs/engines.yaml`."""

    model_config = ConfigDict(extra="forbid")
    default: str
    engines: dict[str, EngineConfig]


def _rules() -> Policy:
    from lib.policies.rules import RulesPolicy

    return RulesPolicy()


def _graphcut() -> Segmenter:
    from lib.segmenters.graphcut import GraphCut

    return GraphCut()


POLICIES: dict[str, Callable[[], Policy]] = {"rules": _rules}
SEGMENTERS: dict[str, Callable[[], Segmenter]] = {"graphcut": _graphcut}


@cache
def build_engine(name: str = "") -> Engine:
    """The engine of that name, or the default one; built once per process.

    Raises InputError with the field "engine" for an unknown name or part.
    """
    config = load_config("engines", EnginesConfig)
    name = name or config.default
    if name not in config.engines:
        raise InputError(f"engine {name!r} is unknown: configs/engines.yaml has {', '.join(config.engines)}", "engine")
    engine = config.engines[name]
    if engine.policy.kind not in POLICIES:
        raise InputError(f"policy {engine.policy.kind!r} is unknown: use one of {', '.join(POLICIES)}", "engine")
    if engine.segmenter.kind not in SEGMENTERS:
        raise InputError(f"segmenter {engine.segmenter.kind!r} is unknown: use one of {', '.join(SEGMENTERS)}", "engine")
    return Engine(name, POLICIES[engine.policy.kind](), SEGMENTERS[engine.segmenter.kind](), engine.batch)
