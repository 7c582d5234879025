"""The reward function that was published with IBISAgent, reproduced for comparison, quirks and all.

It scores one turn by itself. What it asked a segmentation service for is given here: where the service was down it scored an
empty array, which is not reproduced. Source of the behaviour: the released training code, `med_seg` (docs/rewards.md).
"""

import re

import numpy as np

_NUMBER = r"(0(?:\.\d+)?|1(?:\.0+)?)"
_POINT = re.compile(rf"(Positive|Negative) Point \(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)")
_CLICK = re.compile(rf"<action>\n{_POINT.pattern}\n</action>")
_STOP = re.compile(r"<action>\n\s*Termination\s*\n</action>")
_ACTION = re.compile(r"<action>\n(.*?)\n</action>", re.DOTALL)
_THINKING = re.compile(r"<think>\n.*?\n</think>\n\s*<action>\n.*?\n</action>", re.DOTALL)
_BANDS = ((0.80, 3.0), (0.70, 2.0), (0.50, 1.0))
_PER_TURN = 0.2


class NotComputable(ValueError):
    """The published function would have scored a mask that was never drawn."""


def published_scores(
    text: str,
    reference: np.ndarray,
    before: np.ndarray | None,
    after: np.ndarray | None,
    pre_iou: float = 0.0,
    current_step: int | None = None,
    optimal_step: int = 5,
) -> dict[str, float]:
    """The scores of one reply: `score`, their average `format`, `answer`, `placement`, `progress`, `length`, and what format is
    made of, `think_format`, `point_format`, `answer_format`.

    Masks are bool `[height, width]`: `before` of the clicks so far (None without clicks), `after` of these and the reply's own.
    The published data leaves `pre_iou` and `current_step` out; they then default as there.

    Raises NotComputable when the text holds a click that it reads, and `after` is None.
    """
    current = np.zeros_like(reference) if before is None else before
    click, stops = _CLICK.search(text), _STOP.search(text) is not None
    if click is not None and after is None:
        raise NotComputable("the published function scores the mask of a click, and this one was not drawn")
    answer = progress = 0.0
    if click is not None or stops:
        iou = _iou(current if click is None or after is None else after, reference)
        answer = next((score for least, score in _BANDS if iou > least), 0.0)
        progress = 1.0 if iou > pre_iou and not stops else 0.0
    think, point, answered = _think_format(text), _point_format(text), _answer_format(text, stops)
    format_ = 1.0 if think == point == answered == 1.0 else 0.0
    placement = 0.0 if click is None else _placement(click, current, reference)
    length = _length(current_step, optimal_step)
    return {
        "score": (format_ + answer + placement + progress + length) / 5,
        "think_format": think,
        "point_format": point,
        "answer_format": answered,
        "format": format_,
        "answer": answer,
        "placement": placement,
        "progress": progress,
        "length": length,
    }


def _iou(mask: np.ndarray, reference: np.ndarray) -> float:
    """Empty against empty is 0."""
    union = int(np.count_nonzero(mask | reference))
    return int(np.count_nonzero(mask & reference)) / union if union else 0.0


def _think_format(text: str) -> float:
    return 1.0 if _THINKING.search(text) else 0.0


def _point_format(text: str) -> float:
    action = _ACTION.search(text)
    said = action[1].strip() if action else ""
    return 1.0 if said == "Termination" or _POINT.fullmatch(said) else 0.0


def _answer_format(text: str, stops: bool) -> float:
    opened = text.find("<answer>")
    if opened < 0:
        return 0.0 if stops else 1.0
    return 1.0 if text.find("</answer>") > opened else 0.0


def _placement(click: re.Match[str], mask: np.ndarray, reference: np.ndarray) -> float:
    height, width = reference.shape
    column, row = min(int(float(click[2]) * width), width - 1), min(int(float(click[3]) * height), height - 1)
    missed, extra = reference[row, column] and not mask[row, column], mask[row, column] and not reference[row, column]
    return 1.0 if (missed if click[1] == "Positive" else extra) else -1.0


def _length(current_step: int | None, optimal_step: int) -> float:
    if current_step is None:
        return 0.0
    return 1.0 if current_step <= optimal_step else -_PER_TURN * (current_step - optimal_step)
