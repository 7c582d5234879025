"""Mask overlays: the one function that paints a mask on a view, for inference, training data and pictures alike."""

from dataclasses import dataclass

import numpy as np

from lib.errors import InputError


@dataclass(frozen=True)
class Overlay:
    """Blend = image * (1 - alpha) + colour * alpha on mask pixels, as uint8; the rest is untouched."""

    name: str
    colour: tuple[int, int, int]
    alpha: float
    rounded: bool
    """Whether the blend is rounded to the nearest grey level, or truncated."""


OVERLAYS = {
    overlay.name: overlay
    for overlay in (
        Overlay("inference", (34, 139, 34), 0.4, rounded=False),  # what the released weights see at inference
        Overlay("training", (0, 255, 0), 128 / 255, rounded=True),  # what the released RL data shows
    )
}


def overlay_named(name: str) -> Overlay:
    """Raises InputError with the field "overlay" for an unknown name."""
    if name not in OVERLAYS:
        raise InputError(f"overlay {name!r} is unknown: use {' or '.join(OVERLAYS)}", "overlay")
    return OVERLAYS[name]


def blend(image: np.ndarray, mask: np.ndarray, overlay: Overlay) -> np.ndarray:
    """A copy of `image` (uint8 `[height, width, 3]`) with `mask` (bool `[height, width]`) painted on it.

    Always start from the original image: overlays are never stacked.
    """
    painted = image.copy()
    for channel, level in enumerate(overlay.colour):
        mixed = np.arange(256) * (1 - overlay.alpha) + level * overlay.alpha
        table = (mixed + 0.5 if overlay.rounded else mixed).astype(np.uint8)
        np.copyto(painted[..., channel], table[image[..., channel]], where=mask)
    return painted
