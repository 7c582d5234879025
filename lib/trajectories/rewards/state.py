"""What a reply is judged in: the reference, the mask as it is, and whether any click can still help."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.errors import InputError
from lib.policies.clicks import Error, largest_error
from lib.trajectories.rewards.recipes import Parts


@dataclass(frozen=True, eq=False)
class Reference:
    """The right mask of a view."""

    mask: np.ndarray
    """bool `[height, width]`; all False: the target is absent."""

    def __post_init__(self) -> None:
        if self.mask.dtype != bool or self.mask.ndim != 2:
            raise InputError(f"the reference is {self.mask.dtype} {self.mask.shape}: bool [height, width] is needed", "label")

    @cached_property
    def present(self) -> bool:
        return bool(self.mask.any())

    @cached_property
    def radius(self) -> float:
        """Of the largest circle inside the target, in pixels; 0 for an absent one."""
        error = largest_error(None, self.mask)
        return 0.0 if error is None else error.radius

    def iou(self, mask: np.ndarray | None) -> float:
        """Intersection over union, 0..1; no mask is an empty one, and an empty mask of an absent target is right: 1.

        Raises InputError with the field "label" for a mask of another size.
        """
        if mask is None:
            return 0.0 if self.present else 1.0
        if mask.shape != self.mask.shape:
            raise InputError(f"the reference has {self.mask.shape} rows and columns, the mask {mask.shape}", "label")
        union = int(np.count_nonzero(self.mask | mask))
        return int(np.count_nonzero(self.mask & mask)) / union if union else 1.0


@dataclass(frozen=True, eq=False)
class State:
    """A turn of an episode, before the reply."""

    reference: Reference
    mask: np.ndarray | None
    """The mask that the reply was given on, bool `[height, width]`; None before the first click."""
    turn: int
    """1 for the first."""
    best_so_far: float = 0.0
    """The best IoU of the episode's masks before this one."""

    @cached_property
    def iou(self) -> float:
        """Of the mask."""
        return self.reference.iou(self.mask)

    @property
    def best(self) -> float:
        """The best IoU so far, this mask's included."""
        return max(self.best_so_far, self.iou)

    @property
    def empty(self) -> bool:
        return self.mask is None or not self.mask.any()


def reach(reference: Reference, recipe: Parts) -> float:
    """How many pixels a click may miss by, and up to which inscribed radius an error is too thin to click on."""
    return min(recipe.reach * max(reference.mask.shape), recipe.reach_of_target * reference.radius)


def useful_error(mask: np.ndarray | None, reference: Reference, recipe: Parts) -> Error | None:
    """The largest error of `mask` (bool `[height, width]`) where a click there is useful; None where no useful click is left.

    A useful click is left when the mask's IoU is below `recipe.enough_iou` and the largest circle inside one of its errors is
    larger than the reach. So it always is while nothing of a present target, or anything of an absent one, is drawn.
    """
    if reference.iou(mask) >= recipe.enough_iou:
        return None
    error = largest_error(mask, reference.mask)
    return error if error is not None and error.radius > reach(reference, recipe) else None
