"""What clients may ask of an infer task: read from the request, checked, defaults applied.

Both viewers build their option forms from a task's `config`. Slicer sends every option, OHIF only those that were changed, so
defaults apply here. A choice is offered as a list; a client that sends the list back unchanged means its first entry.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lib.agent.run import DEFAULT_TURNS
from lib.errors import InputError
from lib.imaging.overlays import OVERLAYS
from lib.imaging.planes import Plane
from lib.imaging.volume import Modality
from lib.imaging.windows import window_names

DEFAULT_BUDGET_S = 600.0
MAX_POINTS = 1000


class Options(BaseModel):
    """Checked options; anything else in a request is ignored, because viewers send stale keys of other tasks along."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _first_choice(cls, value: Any, info: Any) -> Any:
        listed = info.field_name in cls.choices()
        return value[0] if listed and isinstance(value, list | tuple) and value else value

    @classmethod
    def choices(cls) -> dict[str, list[str]]:
        """Options that are offered as a list, default first."""
        return {}

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> "Options":
        """Raises InputError naming the first offending field."""
        try:
            return cls.model_validate({key: request[key] for key in cls.model_fields if request.get(key) is not None})
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            raise InputError(f"{first['msg']} (got {str(request.get(field))[:80]!r})", field) from error

    @classmethod
    def config(cls) -> dict[str, Any]:
        """The task's `config` entry of `GET /info/`."""
        defaults = {key: field.get_default() for key, field in cls.model_fields.items() if field.repr}
        return defaults | cls.choices()


class AgentOptions(Options):
    """Options of `ibis_agent`."""

    prompt: str = Field("", max_length=2000)
    slices: str = Field("all", max_length=2000)
    plane: Plane = Plane.AXIAL
    window: str = "auto"
    max_turns: int = Field(DEFAULT_TURNS, ge=1, le=100)
    budget_s: float = Field(DEFAULT_BUDGET_S, gt=0, le=86_400, allow_inf_nan=False)
    overlay: str = "inference"
    modality: Modality | None = Field(None, repr=False)
    label: str = Field("", max_length=2000, repr=False)
    label_prompt: tuple[int, ...] = Field((), max_length=255, repr=False)

    @classmethod
    def choices(cls) -> dict[str, list[str]]:
        return {
            "plane": [plane.value for plane in Plane],
            "window": ["auto", "percentile", *window_names()],
            "overlay": list(OVERLAYS),
        }

    @field_validator("modality", mode="before")
    @classmethod
    def _automatic(cls, value: Any) -> Any:
        return None if value in ("", "auto") else value


class ClickOptions(Options):
    """Options of `ibis_click_2d` and `ibis_click_3d`."""

    window: str = "auto"
    budget_s: float = Field(DEFAULT_BUDGET_S, gt=0, le=86_400, allow_inf_nan=False)
    label: str = Field("", max_length=2000, repr=False)
    foreground: tuple[tuple[int, int, int], ...] = Field((), max_length=MAX_POINTS, repr=False)
    background: tuple[tuple[int, int, int], ...] = Field((), max_length=MAX_POINTS, repr=False)
    roi: tuple[int, ...] = Field((), max_length=6, repr=False)

    @classmethod
    def choices(cls) -> dict[str, list[str]]:
        return {"window": ["auto", "percentile", *window_names()]}
