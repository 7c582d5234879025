"""Rewards: what replies and episodes are worth against a reference mask. Pure functions, no shared state.

`grade` grades a whole recorded episode, `score_reply` one reply in a state; both are made of the same parts.
"""

from lib.trajectories.rewards.episode import grade
from lib.trajectories.rewards.recipes import Recipe, recipe_named
from lib.trajectories.rewards.reply import score_reply
from lib.trajectories.rewards.state import Reference, State, useful_error

__all__ = ["Recipe", "Reference", "State", "grade", "recipe_named", "score_reply", "useful_error"]
