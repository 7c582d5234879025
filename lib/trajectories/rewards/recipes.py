"""Reward recipes: which parts count how much. Read from `configs/rewards.yaml`."""

from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lib.config import load_config
from lib.errors import InputError

_SLACK = 1e-9


class Weights(BaseModel):
    """What each part counts; a total is their weighted sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: float = Field(gt=0)
    answer: float = Field(gt=0)
    placement: float = Field(gt=0)
    progress: float = Field(gt=0)
    overshoot: float = Field(gt=0)
    length: float = Field(gt=0)
    absence: float = Field(gt=0)
    stop: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Weights":
        end = max(self.absence, self.stop)
        others = self.placement + self.progress + self.overshoot + self.length + end
        if self.format + self.answer + others > 1 + _SLACK:
            raise ValueError("the weights add up to more than 1 (of absence and stop the larger counts)")
        if 2 * self.format <= others:
            raise ValueError(
                "twice the weight of format must exceed all others but answer: a reply that cannot be read is worst"
            )
        if min(self.absence, self.stop) < 2 * self.placement - _SLACK:
            raise ValueError("absence and stop must weigh twice as much as placement: going on never pays more than stopping")
        return self


class Parts(BaseModel):
    """A recipe of weighted, bounded parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rule: Literal["parts"]
    name: str = ""
    enough_iou: float = Field(gt=0.5, le=1)
    """A mask that overlaps the reference so well has no useful click left."""
    reach: float = Field(ge=0, le=0.1)
    """Share of the view's longer side: how far a click may miss, and which errors are too thin for one."""
    reach_of_target: float = Field(ge=0, lt=1)
    """Share of the target's inscribed radius that the reach never exceeds."""
    turns: tuple[int, int]
    """Up to the first the length costs nothing, from the second on all that it can."""
    weights: Weights

    @model_validator(mode="after")
    def _turns_ascend(self) -> "Parts":
        if not 0 <= self.turns[0] < self.turns[1]:
            raise ValueError("turns are two numbers, the first below the second")
        return self


class Released(BaseModel):
    """The published reward function."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rule: Literal["released"]
    name: str = ""
    optimal_turns: int = Field(ge=1)
    """The published `optimal_step`."""


Recipe = Parts | Released


class Recipes(BaseModel):
    """`configs/rewards.yaml`."""

    model_config = ConfigDict(extra="forbid")
    default: str
    recipes: dict[str, Annotated[Parts | Released, Field(discriminator="rule")]]

    @model_validator(mode="after")
    def _default_exists(self) -> "Recipes":
        if self.default not in self.recipes:
            raise ValueError(f"the default {self.default!r} is not among the recipes")
        return self


@cache
def _recipes() -> Recipes:
    return load_config("rewards", Recipes)


def recipe_named(name: str = "") -> Recipe:
    """The recipe of that name; the default for "". Raises InputError with the field "rewards" for an unknown name."""
    known = _recipes()
    chosen = name or known.default
    if chosen not in known.recipes:
        raise InputError(f"rewards {name!r} are unknown: use {' or '.join(known.recipes)}", "rewards")
    return known.recipes[chosen].model_copy(update={"name": chosen})
