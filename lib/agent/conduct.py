"""How episodes are conducted: corrected, or step for step as the released code does."""

from collections.abc import Callable
from dataclasses import dataclass

from lib.agent.protocol import ProtocolError, Reply, parse, parse_released
from lib.errors import InputError


@dataclass(frozen=True)
class Conduct:
    """The rules of an episode that do not depend on the models."""

    name: str
    parse: Callable[[str], Reply | ProtocolError]
    reasks: int
    """How often a policy is asked again after a reply that could not be used, per turn."""
    same_mask: int | None
    """The same mask so many times, in a row or back and forth, ends the episode; None: never."""
    best_mask: bool
    """Whether an episode that ran out of turns keeps its best-supported mask, or blindly the last."""
    slice_window: bool
    """Whether the automatic window is chosen for each slice by itself."""
    clamp: bool
    """Whether a click on the far edge (coordinate 1.0) counts as the last pixel, or as the one behind it."""
    pixel_cap: bool
    """Whether pictures are capped at the size that the weights were trained with."""


CONDUCTS = {
    conduct.name: conduct
    for conduct in (
        Conduct("corrected", parse, 1, 3, best_mask=True, slice_window=False, clamp=True, pixel_cap=True),
        Conduct("released", parse_released, 0, None, best_mask=False, slice_window=True, clamp=False, pixel_cap=False),
    )
}
CORRECTED = CONDUCTS["corrected"]


def conduct_named(name: str) -> Conduct:
    """Raises InputError with the field "protocol" for an unknown name."""
    if name not in CONDUCTS:
        raise InputError(f"protocol {name!r} is unknown: use {' or '.join(CONDUCTS)}", "protocol")
    return CONDUCTS[name]
