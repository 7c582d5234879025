"""An engine against reference masks: Dice where a structure is present, false voxels where it is absent."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from lib.agent.engine import Engine
from lib.agent.limits import StopReason
from lib.agent.run import RunRequest, RunResult
from lib.config import load_config
from lib.engines.volumes.run import run_volume
from lib.errors import ImageError, InputError, UnknownTarget
from lib.imaging import rle
from lib.imaging.labelmaps import OffGrid, load_labels
from lib.imaging.load import load_volume
from lib.imaging.volume import Modality, Volume


class EvaluationConfig(BaseModel):
    """`configs/evaluation.yaml`."""

    model_config = ConfigDict(extra="forbid")
    complete: int
    structures: dict[str, tuple[str, ...]]
    never_absent: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """An image with its reference: a label volume on the same grid."""

    name: str
    image: Path
    references: tuple[Path, ...]
    labels: dict[int, str]
    modality: Modality | None


@dataclass(frozen=True)
class Score:
    """One structure of one case."""

    structure: str
    dice: float | None = None
    """None where the reference says that the structure is absent."""
    reference_ml: float = 0.0
    mask_ml: float = 0.0
    false_voxels: int = 0
    """Voxels of the mask outside the reference."""
    turns: int = 0
    """How often the policy was asked."""
    seconds: float = 0.0
    carried: tuple[tuple[float, float], ...] = ()
    """Confidence and Dice of each slice whose mask came from other slices."""
    skipped: str = ""
    """Why it was not compared; empty when it was."""


def find_cases(folder: Path, names: Sequence[str]) -> Iterator[Case]:
    """The cases of `folder/manifest.json` that have a label volume; `names` narrows them to paths containing one of them.

    Raises InputError when the manifest is missing or not of the expected form.
    """
    path = folder / "manifest.json"
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["items"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name a folder with a manifest.json", "data") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest with a list `items`", "data") from error
    if not isinstance(items, list):
        raise InputError(f"{path} is not a manifest with a list `items`", "data")
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("path"), str):
            raise InputError(f"{path}: an item has no `path`", "data")
        labels = _labels(item)
        if not labels or (names and not any(name in item["path"] for name in names)):
            continue
        named = item.get("reference") or []
        given = named if isinstance(named, list) else [named]
        references = tuple(
            folder / entry.split()[0] for entry in given if entry.split()[0].endswith((".nii.gz", ".nii", ".nrrd"))
        )
        known = item.get("modality", "").split()
        modality = Modality(known[0]) if known and known[0] in set(Modality) else None
        yield Case(item["path"], folder / item["path"], references, labels, modality)


def evaluate_case(
    case: Case, engine: Engine, only: Sequence[str] = (), slices: Sequence[str] = ("all",)
) -> Iterator[tuple[Score, ...]]:
    """Run the engine for every structure of `configs/evaluation.yaml` (or those named in `only`) and compare.

    `slices` are what the runs look at, each as a request's; a structure has one score for each of them. What cannot be compared
    has one score that says why.
    """
    config = load_config("evaluation", EvaluationConfig)
    unknown = [name for name in only if name not in config.structures]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not in configs/evaluation.yaml: it has {', '.join(config.structures)}", "structure"
        )
    try:
        volume = load_volume(case.image, modality=case.modality)
        reference = reference_labels(case, volume)
    except ImageError as error:
        yield (Score("all structures", skipped=error.message),)
        return
    for name, patterns in config.structures.items():
        if only and name not in only:
            continue
        values = [value for value, label in case.labels.items() if any(fnmatch(label, pattern) for pattern in patterns)]
        if not values and (name in config.never_absent or len(case.labels) < config.complete):
            continue
        truth = np.isin(reference, values)
        try:
            yield tuple(_compare(name, truth, run_volume(RunRequest(name, slices=text), volume, engine)) for text in slices)
        except UnknownTarget as error:
            yield (Score(name, skipped=error.message),)


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """Dice overlap of two bool arrays of one shape; 1 when both are empty."""
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(mask & reference)) / total if total else 1.0


def _compare(name: str, truth: np.ndarray, result: RunResult) -> Score:
    mask = result.mask.astype(bool)
    voxel_ml = abs(float(np.linalg.det(result.volume.affine[:3, :3]))) / 1000
    return Score(
        structure=name,
        dice=dice(mask, truth) if truth.any() else None,
        reference_ml=int(np.count_nonzero(truth)) * voxel_ml,
        mask_ml=result.volume_ml,
        false_voxels=int(np.count_nonzero(mask & ~truth)),
        turns=sum(len(outcome.steps) for outcome in result.outcomes),
        seconds=result.seconds,
        carried=tuple(_carried(result, truth)),
    )


def _carried(result: RunResult, truth: np.ndarray) -> Iterator[tuple[float, float]]:
    grid = result.grid
    for outcome in result.outcomes:
        if outcome.stop is StopReason.PROPAGATED and outcome.confidence is not None:
            there = grid.enlarge(grid.cut(truth, outcome.index), order=0)
            yield outcome.confidence, dice(rle.decode(outcome.mask), there)


def _labels(item: dict[str, Any]) -> dict[int, str]:
    labels = item.get("labels") or {}
    return {int(value): str(name) for value, name in labels.items() if str(value).isdigit()}


def reference_labels(case: Case, volume: Volume) -> np.ndarray:
    """The case's label array `[i, j, k]` on the volume's grid. Raises ImageError when no reference lies on it."""
    for path in case.references:
        try:
            return load_labels(path, volume)
        except OffGrid:
            continue
    shape = "x".join(str(n) for n in volume.data.shape)
    raise ImageError(f"no reference of {case.name} lies on the image's grid of {shape} voxels")
