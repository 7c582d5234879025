"""The reply grammar: the one parser and the one renderer for inference, rewards and training data.

A reply is reasoning, exactly one action, and on stopping an answer:

    <think>
    The mask misses the upper pole.
    </think>
    <action>
    Positive Point (0.5000, 0.2500)
    </action>

Newlines inside the tags are optional when parsing and always written. Both stop words of the released code are understood
(`Terminate`, `Termination`); `Terminate` is written. Anything else is a ProtocolError value, never an exception.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from lib.imaging.planes import ViewPoint


@dataclass(frozen=True)
class Click:
    """One point in the view: positive adds the region, negative removes it."""

    point: ViewPoint
    positive: bool

    def __str__(self) -> str:
        return f"{'Positive' if self.positive else 'Negative'} Point ({self.point.x:.4f}, {self.point.y:.4f})"


@dataclass(frozen=True)
class Terminate:
    """The mask is right; an empty mask means that the target is absent."""

    answer: str = ""

    def __str__(self) -> str:
        return "Terminate"


Action = Click | Terminate


@dataclass(frozen=True)
class Reply:
    """A well-formed reply."""

    thought: str
    action: Action


class ProtocolFault(StrEnum):
    """Why a reply could not be used."""

    EMPTY = "the reply is empty"
    TOO_LONG = "the reply is longer than 20,000 characters"
    LAYOUT = "the reply is not <think>...</think> <action>...</action>, with <answer>...</answer> only after Terminate"
    ACTION = "the action is not exactly one of Positive Point (x, y), Negative Point (x, y), Terminate"
    RANGE = "a coordinate is outside 0.0 to 1.0"


@dataclass(frozen=True)
class ProtocolError:
    """A reply that is not of the grammar."""

    fault: ProtocolFault
    text: str
    """The reply as it came."""


_LIMIT = 20_000
_INSIDE = r"((?:(?!</?(?:think|action|answer)>).)*)"
_LAYOUT = re.compile(
    rf"\s*<think>{_INSIDE}</think>\s*<action>{_INSIDE}</action>\s*(?:<answer>{_INSIDE}</answer>\s*)?", re.DOTALL
)
_POINT = re.compile(r"(Positive|Negative) Point\s*\(\s*(-?\d+(?:\.\d{1,17})?)\s*,\s*(-?\d+(?:\.\d{1,17})?)\s*\)", re.ASCII)
_FIRST = {tag: re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("think", "action", "answer")}
_PAIR = re.compile(r"\(([\d.]+),\s*([\d.]+)\)", re.ASCII)
_STOP = re.compile(r"Terminat(?:e|ion)")

_COORDINATE = r"(0\.[0-9]{4}|1\.0000)"
GRAMMAR = (
    r"<think>\n[^<>]{1,600}\n</think>\n<action>\n"
    rf"((Positive|Negative) Point \({_COORDINATE}, {_COORDINATE}\)\n</action>"
    r"|Terminate\n</action>\n<answer>\n[^<>]{1,200}\n</answer>)"
)
"""The replies that `render` writes, with bounded texts, as a regular expression for constrained decoding: no lookaround, no
groups that capture for a reason, so that every engine takes it."""


def complete(text: str) -> bool:
    """Whether a reply that is being written has all that belongs to it: a closed action, on stopping a closed answer too."""
    return _end(text) is not None


def cut(text: str) -> str:
    """A reply without what a model went on to write after its closing tag."""
    return text[: _end(text)]


def _end(text: str) -> int | None:
    action = _FIRST["action"].search(text)
    if action is None:
        return None
    if not _STOP.fullmatch(action[1].strip()):
        return action.end()
    answer = text.find("</answer>", action.end())
    return None if answer < 0 else answer + len("</answer>")


def parse(text: str) -> Reply | ProtocolError:
    """Read a model's reply. Never raises."""
    if not text.strip():
        return ProtocolError(ProtocolFault.EMPTY, text)
    if len(text) > _LIMIT:
        return ProtocolError(ProtocolFault.TOO_LONG, text)
    layout = _LAYOUT.fullmatch(text)
    if layout is None:
        return ProtocolError(ProtocolFault.LAYOUT, text)
    thought, action, answer = layout.groups()
    if _STOP.fullmatch(action.strip()):
        return Reply(thought.strip(), Terminate((answer or "").strip()))
    point = _POINT.fullmatch(action.strip())
    if point is None:
        return ProtocolError(ProtocolFault.ACTION, text)
    if answer is not None:
        return ProtocolError(ProtocolFault.LAYOUT, text)
    x, y = float(point[2]), float(point[3])
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return ProtocolError(ProtocolFault.RANGE, text)
    return Reply(thought.strip(), Click(ViewPoint(x, y), positive=point[1] == "Positive"))


def parse_released(text: str) -> Reply | ProtocolError:
    """Read a reply as the released inference code does: whatever stands around the tags, the first of each, `Terminate`
    anywhere in the action, else the first pair of numbers in parentheses. Coordinates beyond the picture are refused.
    """
    if not text.strip():
        return ProtocolError(ProtocolFault.EMPTY, text)
    thought, action, answer = (_FIRST[tag].search(text) for tag in ("think", "action", "answer"))
    said = action[1].strip() if action else ""
    thinking = thought[1].strip() if thought else ""
    if "Terminate" in said:
        return Reply(thinking, Terminate(answer[1].strip() if answer else ""))
    positive = "Positive Point" in said
    pair = _PAIR.search(said)
    if not (positive or "Negative Point" in said) or pair is None:
        return ProtocolError(ProtocolFault.ACTION, text)
    try:
        x, y = float(pair[1]), float(pair[2])
    except ValueError:
        return ProtocolError(ProtocolFault.ACTION, text)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return ProtocolError(ProtocolFault.RANGE, text)
    return Reply(thinking, Click(ViewPoint(x, y), positive))


def render(reply: Reply) -> str:
    """Write a reply as the released weights were trained to: four decimals, newlines, an answer on stopping only.

    `parse(render(reply))` gives the same reply, coordinates rounded to four decimals, if thought and answer hold no tags.
    """
    text = f"<think>\n{reply.thought}\n</think>\n<action>\n{reply.action}\n</action>"
    if isinstance(reply.action, Terminate):
        text += f"\n<answer>\n{reply.action.answer}\n</answer>"
    return text
