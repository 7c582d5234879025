"""The settings of `configs/simulation.yaml`."""

from enum import StrEnum
from functools import cache

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lib.config import load_config
from lib.errors import InputError
from lib.policies.strategies import Strategy


class Lesson(StrEnum):
    """What a simulated episode shows."""

    PLAIN = "plain"
    """Click until the mask is right, then terminate."""
    RECOVER = "recover"
    """One click is deliberately wrong; the next takes its damage back."""
    MISMATCH = "mismatch"
    """The episode begins with a mask of another structure, which has to go before, or instead of, the target's."""
    ABSENT = "absent"
    """The slice does not hold the target: terminate at once."""
    APPROVE = "approve"
    """The episode begins with a mask that is right: terminate at once."""


Shares = dict[Lesson, float]


class SimulationConfig(BaseModel):
    """`configs/simulation.yaml`."""

    model_config = ConfigDict(extra="forbid")
    lessons: Shares
    slices: int = Field(ge=1)
    max_steps: int = Field(ge=2, le=100)
    strategy: Strategy
    least_mm2: float = Field(gt=0)
    least_pixels: int = Field(ge=1)
    gone: float = Field(ge=0, le=1)
    questions: tuple[str, ...] = Field(min_length=1)

    @field_validator("lessons")
    @classmethod
    def _shared(cls, shares: Shares) -> Shares:
        return normalised(shares)


def normalised(shares: Shares) -> Shares:
    """The shares so that they add up to 1. Raises ValueError when they cannot."""
    if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise ValueError("shares of lessons are not negative, and not all zero")
    return {lesson: share / sum(shares.values()) for lesson, share in shares.items()}


def read_shares(text: str) -> Shares:
    """Shares as a person writes them, "plain=3,recover=1": lessons that are not named have none.

    Raises InputError with the field "lessons".
    """
    shares: Shares = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            shares[Lesson(name.strip())] = float(value or 1)
        except ValueError as error:
            known = ", ".join(Lesson)
            raise InputError(f"{part.strip()!r} is no share such as plain=0.5; lessons are {known}", "lessons") from error
    try:
        return normalised(shares)
    except ValueError as error:
        raise InputError(str(error), "lessons") from error


@cache
def simulation_config() -> SimulationConfig:
    """Raises InputError when the file is not valid."""
    return load_config("simulation", SimulationConfig)
