"""What language models have in common as policies, in process and behind a server."""

from collections.abc import Sequence
from hashlib import blake2b

from lib.agent.anatomy import anatomy
from lib.agent.policy import Observation
from lib.imaging.volume import Volume


class LanguagePolicy:
    """The part of `lib.agent.policy.Policy` that reads the prompt: a language model takes any text, on any volume."""

    def __init__(self) -> None:
        self.structures = tuple(sorted(structure.name for structure in anatomy().structures))

    def check(self, volume: Volume, prompt: str) -> None:
        pass

    def window_preset(self, prompt: str) -> str | None:
        structure = anatomy().find(prompt)
        return None if structure is None else structure.window


def seed(observation: Observation) -> int:
    """A seed for sampling, below 2^56: the same for the same turn of the same slice, whoever asks and with whomever."""
    view = observation.view
    turn = f"{view.volume.content_hash} {view.plane} {view.index} {view.window} {observation.prompt} {observation.turn}"
    return int.from_bytes(blake2b(turn.encode(), digest_size=7).digest(), "big")


def action_log_probability(pieces: Sequence[str], values: Sequence[float]) -> float | None:
    """Mean log-probability of the tokens of the action, between its tags; None where there is no whole action.

    `pieces` are the reply's tokens as text, `values` their log-probabilities.
    """
    text = "".join(pieces)
    begin, end = text.find("<action>"), text.find("</action>")
    if begin < 0 or end < 0:
        return None
    begin += len("<action>")
    inside, start = [], 0
    for piece, value in zip(pieces, values, strict=True):
        if start < end and start + len(piece) > begin:
            inside.append(value)
        start += len(piece)
    return sum(inside) / len(inside) if inside else None
