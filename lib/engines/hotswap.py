"""Other weights for a running engine."""

import re
from pathlib import Path
from typing import Any

from lib.agent.engine import Engine
from lib.config import CONFIGS
from lib.errors import InputError

WEIGHTS = CONFIGS.parent / "weights"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def describe(engine: Engine) -> dict[str, Any]:
    """What an engine is made of, for people and for the record."""
    return {
        "name": engine.name,
        "protocol": engine.conduct.name,
        "policy": {"name": engine.policy.name, **engine.policy.about},
        "segmenter": {"name": engine.segmenter.name, **engine.segmenter.about},
    }


def exchange(engine: Engine, model: str | None, adapter: str | None, weights: Path) -> None:
    """Let the policy go on with another language model, or another adapter of it; "" takes the adapter away.

    Both are names of folders in `weights`. They are verified first; requests that run go on, with the old weights to the end of
    the reply being written. Raises InputError when the engine has no weights, or these cannot be used; then nothing changes.
    """
    from lib.engines.shared import SharedPolicy
    from lib.engines.verify import verify_adapter, verify_language_model

    policy = engine.policy
    if not isinstance(policy, SharedPolicy):
        raise InputError(f"the policy {policy.name} of engine {engine.name} has no weights in this process", "model")
    if model is None and adapter is None:
        raise InputError("name a model, an adapter, or both", "model")
    changes: dict[str, str | None] = {"model": None, "adapter": adapter}
    if model is not None:
        changes["model"] = str(verify_language_model(_folder(weights, model, "model")).folder)
    if adapter:
        folder = _folder(weights, adapter, "adapter")
        verify_adapter(folder, changes["model"] or policy.about["weights"])
        changes["adapter"] = str(folder)
    policy.swap(**changes)


def _folder(weights: Path, name: str, field: str) -> Path:
    if not _NAME.fullmatch(name) or not (weights / name).is_dir():
        there = sorted(path.name for path in weights.iterdir() if path.is_dir()) if weights.is_dir() else []
        found = f"it has {', '.join(there)}" if there else "it has none"
        raise InputError(f"{name!r} is not a folder in {weights.name}/: {found}", field)
    return weights / name
