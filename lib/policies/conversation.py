"""What a language model is shown: the conversation of one turn, the same for a model in process and behind a server."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lib.agent.policy import Observation
from lib.agent.prompts import turn_prompt


@dataclass(frozen=True, eq=False)
class Message:
    """One message. A picture stands before the text."""

    role: Literal["system", "user", "assistant"]
    text: str
    picture: np.ndarray | None = None
    """uint8 RGB `[height, width, 3]`."""


def conversation(observation: Observation, history: bool = False, image_mark: bool = True) -> list[Message]:
    """The system text and the picture as it is now with its question; with `history` all earlier turns in between.

    Released weights run without history. `image_mark` as for `turn_prompt`.
    """
    now = turn_prompt(observation.prompt, observation.mask is not None, image_mark)
    messages = [Message("system", now.system)]
    if history:
        for turn, picture in zip(observation.past, observation.past_pictures(), strict=True):
            asked = turn_prompt(observation.prompt, turn.mask is not None, image_mark)
            messages += [Message("user", asked.user, picture), Message("assistant", turn.reply)]
    messages.append(Message("user", now.user, observation.picture()))
    return messages
