"""Things wanted from the PACS one by one, of which some cannot be had: none of them keeps the others from coming.

For one thread; others may read `reasons`.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from lib.server.pacs.web import PacsUnreachable

_MOST = 3
"""So many in a row without an answer: it is the PACS, not the things."""

T = TypeVar("T")


class Attempts:
    """What failed, and why."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._in_a_row = 0

    @property
    def reasons(self) -> dict[str, str]:
        """By name, the longest waiting first; not to be changed."""
        return self._reasons

    def order(self, wanted: Iterable[T], name: Callable[[T], str]) -> list[T]:
        """In the order to try them: what failed comes last, longest ago first. What is not wanted any more is forgotten."""
        things = list(wanted)
        names = {name(thing) for thing in things}
        self._reasons = {key: reason for key, reason in self._reasons.items() if key in names}
        self._in_a_row = 0
        rank = {key: place for place, key in enumerate(self._reasons, start=1)}
        return sorted(things, key=lambda thing: rank.get(name(thing), 0))

    def failed(self, name: str, error: Exception) -> bool:
        """Note a failure; True when the rest had better wait, as the PACS does not answer."""
        self._reasons = {**{key: reason for key, reason in self._reasons.items() if key != name}, name: str(error)}
        self._in_a_row = self._in_a_row + 1 if isinstance(error, PacsUnreachable) else 0
        return self._in_a_row >= _MOST

    def succeeded(self, name: str) -> None:
        self._reasons = {key: reason for key, reason in self._reasons.items() if key != name}
        self._in_a_row = 0
