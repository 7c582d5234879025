"""Grey windows: which range of values a view spreads over black to white, one for the whole volume."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from lib.config import load_config
from lib.errors import InputError
from lib.imaging.volume import Modality, Volume

_SAMPLE = 500_000
"""At most about so many voxels decide a percentile window: enough to place it to a grey level."""


@dataclass(frozen=True)
class Window:
    """Values at or below `low` are black, at or above `high` white (HU for CT)."""

    low: float
    high: float
    name: str
    """How it was chosen: a preset's name, "percentile", "stored" or "given"."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape as uint8 grey levels of the same shape, truncated as the released code does."""
        scaled = (values.astype(np.float32) - self.low) * (255.0 / (self.high - self.low))
        return np.clip(scaled, 0, 255).astype(np.uint8)

    def __str__(self) -> str:
        return f"{self.name} [{self.low:g}, {self.high:g}]"


class Preset(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: float
    high: float


class WindowPresets(BaseModel):
    """`configs/windows.yaml`."""

    model_config = ConfigDict(extra="forbid")
    ct: dict[str, Preset]
    ct_default: str
    percentiles: tuple[float, float]


def window_names() -> tuple[str, ...]:
    return tuple(load_config("windows", WindowPresets).ct)


def choose_window(volume: Volume, requested: str = "auto", target_preset: str | None = None) -> Window:
    """The window for a whole volume.

    `requested` is "auto", a preset's name, "percentile" or "LOW,HIGH". With "auto" a CT takes the target's preset, a picture is
    shown as stored, and everything else goes from the 1st to the 99th percentile of the volume's non-background voxels.
    Raises InputError with the field "window" on anything else.
    """
    presets = load_config("windows", WindowPresets)
    text = requested.strip().lower()
    if "," in text:
        return _given(text)
    if text in presets.ct:
        return Window(presets.ct[text].low, presets.ct[text].high, text)
    if text == "percentile":
        return _percentile(volume, presets.percentiles)
    if text not in ("", "auto"):
        names = ", ".join(presets.ct)
        raise InputError(f"window {requested!r} is unknown: use auto, percentile, LOW,HIGH or one of {names}", "window")
    if volume.planar:
        return Window(0, 255, "stored")
    if volume.modality is Modality.CT:
        name = target_preset or presets.ct_default
        return Window(presets.ct[name].low, presets.ct[name].high, name)
    return _percentile(volume, presets.percentiles)


def slice_window(values: np.ndarray, percentiles: tuple[float, float] = (1, 99)) -> Window:
    """The window of one slice by itself, from its own values of any shape: what the released code shows. Greys of different
    slices then mean different things.
    """
    low, high = (float(v) for v in np.percentile(values, percentiles))
    return Window(low, high if high > low else low + 1, "slice percentile")


def _given(text: str) -> Window:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"window {text!r} is not two numbers LOW,HIGH with LOW below HIGH", "window")
    return Window(low, high, "given")


def _percentile(volume: Volume, percentiles: tuple[float, float]) -> Window:
    # Sampled in canonical order, so that the same voxels stored in another orientation give the same window.
    step = max(1, int(np.ceil((volume.data.size / _SAMPLE) ** (1 / 3))))
    values = volume.orientation.canonical(volume.data)[::step, ::step, ::step].ravel()
    foreground = values[values > values.min()]
    if foreground.size == 0:
        low = float(values[0])
        return Window(low, low + 1, "percentile")
    low, high = (float(v) for v in np.percentile(foreground, percentiles))
    return Window(low, high if high > low else low + 1, "percentile")
