"""The teacher: a language model that puts a simulated annotator's reasons into its own words.

It sees the picture as the agent does, the action to justify, and what was measured. What it writes replaces the template only
when it could stand in a reply and gives nothing away that the picture does not show.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.policy import Observation
from lib.agent.protocol import Action, Click
from lib.errors import EngineError
from lib.policies.conversation import Message
from lib.policies.openai import OpenAIPolicy

SHORTEST, LONGEST = 40, 600
"""Letters; the longest is what `lib.agent.protocol.GRAMMAR` allows."""
_SYSTEM = (
    "You are an experienced radiologist who annotates medical images by clicks and thinks aloud. You are shown an image, on it "
    "in semi-transparent green the current mask if there is one, what is asked for, and the next step, which is right. Write "
    "the reasoning that leads from the picture to this step, in one to three plain sentences and at most 90 words. State only "
    "what can be seen: brightness, shape, place, edges, where the mask fits and where not. The notes are measurements that you "
    "may use. Do not write tags, lists or coordinates, and do not mention the notes, a reference or how the step was chosen."
)
_GIVEAWAYS = re.compile(r"\b(notes?|reference|ground[ -]truth|IoU|intersection over union|dice|hints?)\b", re.IGNORECASE)
_OWN = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""What a reasoning model thinks before it answers."""
_COORDINATES = re.compile(r"\(\s*0?\.\d+\s*,\s*0?\.\d+\s*\)")


@dataclass(frozen=True, eq=False)
class Draft:
    """A step to justify."""

    observation: Observation
    thought: str
    """The template's words, handed over as notes."""
    action: Action


@dataclass(frozen=True)
class Told:
    """What came of asking."""

    words: str
    fault: str = ""
    """Why the words cannot be used; empty when they can."""

    @property
    def usable(self) -> bool:
        return not self.fault


class Teacher:
    """Asks the servers of `client`; safe to call from several threads."""

    def __init__(self, client: OpenAIPolicy):
        self._client = client
        self.about: Mapping[str, str] = MappingProxyType({f"teacher {name}": text for name, text in client.about.items()})

    def explain(self, drafts: Sequence[Draft], limits: Bound = UNLIMITED) -> list[Told]:
        """Words for each draft, in order; a server that fails is a fault, never an exception."""
        answers = self._client.converse([_conversation(draft) for draft in drafts], limits)
        return [
            Told("", "the teacher did not answer") if isinstance(one, EngineError) else checked(_OWN.sub("", one.reply))
            for one in answers
        ]


def checked(text: str) -> Told:
    """The text as one line, with the reason why it cannot be used, if there is one."""
    words = " ".join(text.split())
    if "<" in words or ">" in words:
        return Told(words, "the teacher's text holds tags")
    if len(words) < SHORTEST:
        return Told(words, "the teacher's text is too short")
    if len(words) > LONGEST:
        return Told(words, "the teacher's text is too long")
    if _GIVEAWAYS.search(words) or _COORDINATES.search(words):
        return Told(words, "the teacher's text says what cannot be seen")
    return Told(words)


def _conversation(draft: Draft) -> list[Message]:
    observation, action = draft.observation, draft.action
    if isinstance(action, Click):
        # the picture's own directions: a model reads them more surely than numbers
        step = (
            f"a {'positive' if action.positive else 'negative'} point at {action.point.x:.2f} of the width from the left and "
        )
        step += f"{action.point.y:.2f} of the height from the top"
    else:
        step = "stop, because the mask is right (or the target is not there)"
    state = "There is no mask yet." if observation.mask is None else "The current mask is shown in green."
    text = f"Asked for: {observation.prompt}\n{state}\nNext step: {step}.\nNotes: {draft.thought}"
    return [Message("system", _SYSTEM), Message("user", text, observation.picture())]
