"""Confidence of carried slices: an estimate of their Dice, linear in what is known without a reference mask."""

import math
from dataclasses import dataclass

from lib.agent.episode import Outcome
from lib.engines.volumes.strategy import Weights


@dataclass(frozen=True)
class Signs:
    """What speaks for and against a carried mask. Each but the distance is 0..1."""

    agreement: float
    """Of the masks that came to this slice by different ways."""
    continuity: float
    """IoU of the masks at both ends of the gap; 0 where the target ends in it."""
    trust: float
    """In the looks that it was carried from, the nearer ones counting more."""
    distance_cm: float
    """To the nearest of them."""


def estimate(signs: Signs, weights: Weights) -> float:
    """Estimated Dice, 0..1, with four decimals as records keep it."""
    value = (
        weights.constant
        + weights.agreement * signs.agreement
        + weights.continuity * signs.continuity
        + weights.trust * signs.trust
        + weights.per_cm * signs.distance_cm
    )
    return round(min(1.0, max(0.0, value)), 4)


def trust(outcome: Outcome) -> float:
    """In a slice that was looked at, 0..1: the policy's support of its mask, else the segmenter's score, and how sure a
    language model was of the step that it approved the mask with (mean log-probability of the action's tokens)."""
    sure = outcome.steps[-1].details.get("action_logprob") if outcome.steps else None
    believed = 1.0 if outcome.confidence is None else round(outcome.confidence, 4)
    return round(believed * (1.0 if sure is None else min(1.0, math.exp(float(sure)))), 4)
