"""What a labelled folder offers to look for: its cases, and the structures of each by name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lib.agent.anatomy import anatomy
from lib.config import load_config
from lib.engines.evaluation import Case, EvaluationConfig, find_cases
from lib.errors import InputError

_SIDES = ("left", "right")


@dataclass(frozen=True)
class Target:
    """A structure of a case."""

    number: int
    """1 for the first of the case."""
    name: str
    """The label's name."""
    words: str
    """The name as a person says it, without an article."""
    values: tuple[int, ...]
    """Its voxel values in the reference; none when the reference says that it is absent."""


@dataclass(frozen=True)
class Job:
    """All episodes of one structure of one case."""

    case: Case
    target: Target


def find_jobs(folder: Path, only: Sequence[str] = ()) -> list[Job]:
    """The jobs of a folder with a manifest, or of one case's folder in such a folder; `only` narrows them to these structures.

    Raises InputError with the field "folder" or "structure" when there is none.
    """
    jobs = [Job(case, target) for case in _cases(folder) for target in targets(case)]
    if not jobs:
        raise InputError(f"{folder} holds no image with a label volume and the names of its labels", "folder")
    chosen = [job for job in jobs if not only or {job.target.name.casefold(), job.target.words} & {n.casefold() for n in only}]
    if not chosen:
        known = ", ".join(sorted({job.target.words for job in jobs}))
        raise InputError(f"no case of {folder} has {' or '.join(only)}; there is {known}", "structure")
    return chosen


def targets(case: Case) -> Iterator[Target]:
    """The labels of a case, then the structures of `configs/evaluation.yaml` that its reference, if complete, says are
    absent."""
    by_name: dict[str, list[int]] = {}
    for value, name in case.labels.items():
        by_name.setdefault(name, []).append(value)
    for number, (name, values) in enumerate(by_name.items(), start=1):
        yield Target(number, name, spoken(name), tuple(values))
    config = load_config("evaluation", EvaluationConfig)
    if len(case.labels) < config.complete:
        return
    names = [name for name in config.structures if name not in config.never_absent]
    absent = [n for n in names if not any(fnmatch(label, p) for label in by_name for p in config.structures[n])]
    for number, name in enumerate(absent, start=1 + len(by_name)):
        yield Target(number, name.replace(" ", "_"), name, ())


def spoken(name: str) -> str:
    """A label's name in words, the side first: "left kidney" for `kidney_left`; what stands in brackets is left out."""
    words = re.sub(r"\(.*?\)", " ", name).replace("_", " ").split()
    structure = next((s for s in anatomy().structures if s.name == name), None)
    if structure is not None:
        return structure.label
    sides = [word for word in words if word.lower() in _SIDES]
    return " ".join([*sides, *(word for word in words if word.lower() not in _SIDES)])


def _cases(folder: Path) -> Iterator[Case]:
    if (folder / "manifest.json").is_file() or not (folder.parent / "manifest.json").is_file():
        yield from find_cases(folder, ())
    else:
        yield from (case for case in find_cases(folder.parent, ()) if folder.name in Path(case.name).parts)
