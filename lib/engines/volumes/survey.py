"""The survey: where the target begins and ends, from what was found on the slices looked at so far."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lib.engines.volumes.strategy import StrategyConfig

Sightings = Mapping[int, bool]
"""Whether the target was found, for each slice looked at with an answer."""


@dataclass(frozen=True)
class Gap:
    """The slices between two neighbouring slices that were looked at, or between one and an end of the volume."""

    low: int | None
    """The slice below; None at the volume's lower end."""
    high: int | None
    slices: tuple[int, ...]
    """In between, ascending; slices without an answer are left out."""


def gaps(seen: Sightings, slices: Sequence[int]) -> Iterator[Gap]:
    """Between all neighbours in `seen`, and to both ends; those that hold no slice are left out. `slices` are those of the
    volume that were not looked at."""
    looked = sorted(seen)
    for low, high in pairwise([None, *looked, None]):
        between = tuple(
            index for index in slices if index not in seen and (low is None or index > low) and (high is None or index < high)
        )
        if between:
            yield Gap(low, high, between)


def next_looks(
    seen: Sightings, slices: Sequence[int], overlap: Callable[[int, int], float], mm: float, config: StrategyConfig
) -> list[int]:
    """The slices to look at next, ascending, all of them independent of each other; none when enough is known.

    `slices` are those that can still be looked at, `overlap` is the IoU of the masks of two slices with the target, `mm` the
    distance of neighbouring slices. One more look goes

    * to the volume's end where the target may run out of it,
    * half-way between a slice with the target and one without, until its end is known to `end_mm`, or to a quarter of the
      smallest piece of it that was found,
    * between two slices with the target whose masks are not alike, unless they are closer than twice that,
    * half-way between slices without the target that are further apart than that piece, and when none was found, further than
      `finest_mm`.
    """
    piece = _smallest_piece(seen)
    smallest, end = max(piece, config.finest_mm / mm), min(piece / 4, config.end_mm / mm)
    looks = []
    for gap in gaps(seen, slices):
        if gap.low is None or gap.high is None:
            near = gap.high if gap.low is None else gap.low
            if near is None or seen[near]:
                looks.append(gap.slices[0] if gap.low is None else gap.slices[-1])
            elif len(gap.slices) >= smallest:
                looks.append(_middle(gap))
            continue
        length, found = gap.high - gap.low, (seen[gap.low], seen[gap.high])
        if (
            (found[0] != found[1] and length > end)
            or (all(found) and length > 2 * end and overlap(gap.low, gap.high) < config.alike)
            or (not any(found) and length > smallest)
        ):
            looks.append(_middle(gap))
    return looks


def _smallest_piece(seen: Sightings) -> float:
    """How many slices the smallest separate piece of the target spans at most; 0 when nothing was found.

    A piece that an end of the volume may cut says nothing about how small pieces are.
    """
    absent = [index for index in sorted(seen) if not seen[index]]
    pieces = [high - low for low, high in pairwise(absent) if any(seen.get(index) for index in range(low, high))]
    return min(pieces, default=float("inf") if any(seen.values()) else 0)


def _middle(gap: Gap) -> int:
    return gap.slices[(len(gap.slices) - 1) // 2]
