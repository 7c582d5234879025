"""DICOM series: which of the frames under a path belong together in one volume, and choosing among them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import ImageError, InputError
from lib.imaging.dicom_geometry import SAME_PLACE, arrange, distances
from lib.imaging.dicom_headers import KEYS, TIMES, Frame, Scan


@dataclass(frozen=True)
class SeriesInfo:
    """One volume that a path offers."""

    uid: str
    """What `series=` takes: the Series Instance UID, with "#n" for part n of a series that is more than one volume."""
    description: str
    modality: str
    slices: int
    """Number of images received."""
    size: tuple[int, int]
    """(columns, rows) of an image."""
    files: tuple[Path, ...]

    def __str__(self) -> str:
        columns, rows = self.size
        return f"{self.uid}  {self.modality} {columns} x {rows} x {self.slices}  {self.description}".rstrip()


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames of one series that make one volume: same size and directions, each place once."""

    info: SeriesInfo
    frames: tuple[Frame, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """All stacks of one Series Instance UID."""

    uid: str
    stacks: tuple[Stack, ...]
    main: int
    """So many of the stacks, from the first, have the size and directions of most images; the rest are scouts and such."""


def group(scan: Scan) -> list[Series]:
    """The series under a path, in the order of their UIDs; duplicates of one SOP instance are dropped."""
    by_uid: dict[str, list[Frame]] = {}
    for frame in scan.frames:
        by_uid.setdefault(frame.header.series_uid, []).append(frame)
    return [_series(uid, by_uid[uid], scan.notes) for uid in sorted(by_uid)]


def choose(series: Sequence[Series], wanted: str | None, where: str) -> Stack:
    """The stack to load: the only one there is, or the one that `wanted` names (a UID, "UID#n", or a unique beginning of a
    UID).

    Scouts in a series are passed over with a warning. Raises ImageError that lists the choices when there are several,
    InputError when `wanted` fits none or more than one.
    """
    if wanted is not None:
        uid, _, number = wanted.partition("#")
        series = [one for one in series if one.uid == uid] or [one for one in series if one.uid.startswith(uid)]
        if not series:
            raise InputError(f"{where} has no series {wanted}: list the series to see what it has", "series")
        if len(series) > 1:
            raise InputError(f"{len(series)} series of {where} begin with {uid}: give more of the UID", "series")
        if number:
            stacks = series[0].stacks
            if not number.isdecimal() or not 1 <= int(number) <= len(stacks):
                raise InputError(f"series {uid} has the parts #1 to #{len(stacks)}: {wanted} is none of them", "series")
            return stacks[int(number) - 1]
    if len(series) > 1 or series[0].main > 1:
        listing = "\n".join(f"  {stack.info}" for one in series for stack in one.stacks)
        what = f"{len(series)} series" if len(series) > 1 else f"one series of {len(series[0].stacks)} volumes"
        raise ImageError(f"{where} holds {what}: choose one with --series UID\n{listing}")
    chosen = series[0].stacks[0]
    rest = series[0].stacks[1:]
    if not rest:
        return chosen
    left_out = sum(len(stack.frames) for stack in rest)
    warning = (
        f"{left_out} images of another size or orientation in the series were left out; choose {series[0].uid}#2 "
        + (f"to #{len(rest) + 1} " if len(rest) > 1 else "")
        + "to load them"
    )
    return Stack(chosen.info, chosen.frames, (*chosen.warnings, warning))


def _series(uid: str, frames: list[Frame], notes: tuple[str, ...]) -> Series:
    frames, warnings = _without_duplicates(frames)
    groups = sorted(_same_geometry(frames), key=len, reverse=True)
    parts = [list(_split(members, KEYS)) for members in groups]
    tied = sum(len(members) == len(groups[0]) for members in groups)
    several = sum(len(part) for part in parts) > 1
    stacks: list[Stack] = []
    for part in parts:
        for label, members in part:
            header = members[0].header
            info = SeriesInfo(
                uid=f"{uid}#{len(stacks) + 1}" if several else uid,
                description=" ".join(filter(None, (header.description, f"({label})" if label else ""))),
                modality=header.modality,
                slices=len(members),
                size=(header.columns, header.rows),
                files=tuple(dict.fromkeys(frame.header.path for frame in members)),
            )
            stacks.append(Stack(info, tuple(members), (*notes, *warnings)))
    return Series(uid, tuple(stacks), main=sum(len(part) for part in parts[:tied]))


def _without_duplicates(frames: list[Frame]) -> tuple[list[Frame], list[str]]:
    kept: dict[tuple, Frame] = {}
    uids: dict[tuple, int] = {}
    for number, frame in enumerate(frames):
        uid = frame.header.sop_instance_uid
        place = None if frame.position is None else tuple(frame.position)
        times = tuple(frame.keys.get(key) for key in (*KEYS, *TIMES))
        # An anonymiser may have given all images one UID: only the same UID at the same place is the same image.
        kept.setdefault((uid or number, frame.number, frame.header.instance_number, place, times), frame)
        uids[(uid, frame.number)] = uids.get((uid, frame.number), 0) + 1
    warnings = []
    if len(kept) < len(frames):
        warnings.append(f"{len(frames) - len(kept)} duplicates of images in the series were left out")
    if len({(frame.header.sop_instance_uid, frame.number) for frame in kept.values()}) < len(kept):
        warnings.append("several images of the series have the same SOP Instance UID, or none")
    return list(kept.values()), warnings


def _same_geometry(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one size, orientation and pixel spacing each."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for members in groups:
            if _alike(members[0], frame):
                members.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _alike(first: Frame, second: Frame) -> bool:
    one, other = first.header, second.header
    if (one.rows, one.columns, one.samples) != (other.rows, other.columns, other.samples):
        return False
    if (first.position is None) != (second.position is None):
        return False
    for here, there, tolerance in ((first.orientation, second.orientation, 1e-3), (first.spacing, second.spacing, 1e-4)):
        if (here is None) != (there is None):
            return False
        if here is not None and there is not None and not np.allclose(here, there, rtol=0, atol=tolerance):
            return False
    return True


def _split(frames: list[Frame], keys: Sequence[str], label: str = "") -> Iterator[tuple[str, list[Frame]]]:
    """Sub-stacks in which every place occurs once, with what tells them apart.

    A series that repeats its places (phases, echoes, time points, repeated acquisitions) is split by the first attribute of
    `keys` that thins out every place, again until no place repeats; then by times that each sub-stack shares; at last by the
    order of the images at each place, which undoes both one-after-the-other and interleaved numbering.
    """
    if frames[0].position is None or frames[0].orientation is None:
        yield label, frames
        return
    place = _places(frames)
    most = int(np.bincount(place).max())
    if most == 1:
        if _regular(frames):
            yield label, frames
            return
        # Two regions of the body in one series: told apart only by an attribute that leaves every part regular.
        for key in keys:
            parts = _partition(frames, key)
            if 1 < len(parts) <= len(frames) / 3 and all(_single(part) and _regular(part) for part in parts.values()):
                yield from ((_joined(label, key, value), part) for value, part in parts.items())
                return
        yield label, frames
        return
    for number, key in enumerate(keys):
        parts = _partition(frames, key)
        enough = len(parts) <= max(len(frames) / 2, most)
        if len(parts) > 1 and enough and all(np.bincount(_places(part)).max() < most for part in parts.values()):
            for value, part in parts.items():
                yield from _split(part, keys[number + 1 :], _joined(label, key, value))
            return
    for key in TIMES:
        parts = _partition(frames, key)
        if len(parts) == most and all(_single(part) for part in parts.values()):
            yield from ((_joined(label, key, value), part) for value, part in parts.items())
            return
    yield from _by_turns(frames, label)


def _by_turns(frames: list[Frame], label: str) -> Iterator[tuple[str, list[Frame]]]:
    order = sorted(
        range(len(frames)),
        key=lambda index: (
            frames[index].header.instance_number,
            frames[index].number or 0,
            *(frames[index].keys.get(key, "") for key in TIMES),
        ),
    )
    place = _places(frames)
    turns: list[list[Frame]] = []
    seen: dict[int, int] = {}
    for index in order:
        turn = seen.get(int(place[index]), 0)
        seen[int(place[index])] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(frames[index])
    for number, members in enumerate(turns, start=1):
        yield _joined(label, "turn", str(number)), members


def _places(frames: Sequence[Frame]) -> np.ndarray:
    """For each frame the rank of its place along the normal; frames at one place share a rank."""
    along = distances(frames)
    order = np.argsort(along, kind="stable")
    ranks = np.empty(len(frames), dtype=int)
    ranks[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_PLACE)])
    return ranks


def _single(frames: Sequence[Frame]) -> bool:
    return int(np.bincount(_places(frames)).max()) == 1


def _regular(frames: Sequence[Frame]) -> bool:
    try:
        arrange(frames)
    except ImageError:
        return False
    return True


def _partition(frames: Sequence[Frame], key: str) -> dict[str, list[Frame]]:
    """By the value of an attribute, in the order of the values (numbers by size); {} when a frame lacks it."""
    if any(key not in frame.keys for frame in frames):
        return {}
    parts: dict[str, list[Frame]] = {}
    for frame in frames:
        parts.setdefault(frame.keys[key], []).append(frame)
    return {value: parts[value] for value in sorted(parts, key=_natural)}


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _joined(label: str, key: str, value: str) -> str:
    return f"{label}, {key} {value}" if label else f"{key} {value}"
