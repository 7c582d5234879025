"""The strategy: which settings decide what the agent looks at, and which requests they are for."""

from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lib.agent.run import STRIDE, select_slices
from lib.config import load_config
from lib.imaging.planes import Plane, ViewGrid

_NORMAL = (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)


class Weights(BaseModel):
    """The linear estimate of a carried slice's Dice; see `lib.engines.volumes.confidence`."""

    model_config = ConfigDict(extra="forbid")
    constant: float
    agreement: float
    continuity: float
    trust: float
    per_cm: float


class StrategyConfig(BaseModel):
    """`configs/strategy.yaml`."""

    model_config = ConfigDict(extra="forbid")
    stride_mm: float = Field(gt=0)
    first_looks: int = Field(ge=1)
    finest_mm: float = Field(gt=0)
    end_mm: float = Field(gt=0)
    alike: float = Field(ge=0, le=1)
    reach_mm: float = Field(ge=0)
    check_mm: float = Field(gt=0)
    doubtful: float = Field(ge=0, le=1)
    confidence: Weights


@cache
def strategy() -> StrategyConfig:
    return load_config("strategy", StrategyConfig)


def strides(text: str) -> bool:
    """Whether `text`, a request's slices, leaves slices to be filled in: "auto" or "every N"."""
    return text.strip().lower() == "auto" or STRIDE.fullmatch(text.strip()) is not None


def covered_slices(text: str, grid: ViewGrid) -> tuple[int, ...]:
    """The slices that have an outcome at the end of a run on the slices `text`. Raises InputError as `select_slices` does."""
    return grid.acquired if strides(text) else select_slices(text, grid)


def first_stride(text: str, grid: ViewGrid, config: StrategyConfig) -> str:
    """The slices that are looked at first, as a stride "every N"."""
    if text.strip().lower() != "auto":
        return text
    wanted = round(config.stride_mm / slice_mm(grid))
    most = int(np.ceil(len(grid.acquired) / config.first_looks))
    return f"every {max(1, min(wanted, most))}"


def slice_mm(grid: ViewGrid) -> float:
    """Distance in mm between neighbouring slices of the grid's plane."""
    return float(grid.volume.orientation.permute(grid.volume.spacing)[_NORMAL.index(grid.plane)])
