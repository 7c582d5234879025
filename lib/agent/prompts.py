"""The texts that the released weights run with: data, byte for byte, for inference and training alike.

Source: the released IBISAgent inference code. History is off there: each turn sends the system text and one user message with
the current picture, so all that the model knows of its earlier clicks is the overlay.
"""

from dataclasses import dataclass

SYSTEM = (
    "You are a precise and expert medical segmentation agent. Your mission is to accurately segment a target object "
    "in a medical image through a series of interactive point placements. You will be given an image and an "
    "instruction. You must carefully analyze the image state. If there is no mask, it is an initialization step. "
    "Your goal is to place a Positive Point on a clear, representative part of the target object. If a "
    "semi-transparent green mask is present, it is a refinement step. Your goal is to improve its accuracy. Place a "
    "Positive Point on a region of the target that the mask has missed, or a Negative Point on an area the mask has "
    "incorrectly included.\n"
    "Your response must strictly follow this structure: first, your detailed reasoning within <think> tags, and then "
    "your single, decisive move within <action> tags. The only valid actions are Positive Point (x, y), Negative "
    "Point (x, y), or Terminate. All coordinates (x, y) must be normalized to a 0.0-1.0 scale and formatted to four "
    "decimal places, for example: Positive Point (0.5000, 0.2500). Only use Terminate when the mask perfectly aligns "
    "with the target boundary. If you Terminate, you must also append a final, concise summary in an <answer> tag."
)

IMAGE_MARK = "<image>"
"""Stays in the text at inference although the real image tokens stand before it; training frameworks replace it."""

_REFINEMENT = (
    '<image>This is a refinement step. User\'s original query: "{query}". Do you think the image with '
    "semi-transparent green mask need further segmentation? If so, please use point action; otherwise, use Terminate "
    "action."
)


@dataclass(frozen=True)
class Prompt:
    """One turn's conversation: the system text, then the picture, then the user's text."""

    system: str
    user: str


def turn_prompt(query: str, refining: bool, image_mark: bool = True) -> Prompt:
    """The texts of one turn.

    `refining` is False while there is no mask to look at. `image_mark` keeps the literal `<image>` in the text, as the released
    weights expect; switch it off where a framework counts the marks itself.
    """
    user = _REFINEMENT.replace("{query}", query) if refining else IMAGE_MARK + query
    return Prompt(SYSTEM, user if image_mark else user.removeprefix(IMAGE_MARK))
