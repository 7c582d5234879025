"""Rows: what the formats have in common."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from lib.agent.prompts import IMAGE_MARK
from lib.agent.protocol import Terminate
from lib.imaging import rle
from lib.imaging.rle import Rle
from lib.policies.conversation import Message
from lib.trajectories.exports.turns import Sample, Turn, expert_reply
from lib.trajectories.rewards.state import Reference, State


@dataclass(frozen=True, eq=False)
class Row:
    """A row before it is written: nothing of it is on the disk yet."""

    messages: Sequence[Message]
    """All of them, the replies that are learned included."""
    learned: tuple[Turn, ...] = ()
    """The turns whose replies are learned; none for rows of reinforcement learning."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the format writes, JSON-ready."""
    originals: tuple[np.ndarray, ...] = ()
    """Pictures without a mask that stand beside the rows."""

    @cached_property
    def digest(self) -> str:
        """16 hex digits: the same for rows of the same content."""
        digest = blake2b(digest_size=8)
        for message in self.messages:
            digest.update(f"{message.role}\0{message.text}\0".encode())
            if message.picture is not None:
                digest.update(f"{message.picture.shape}".encode() + np.ascontiguousarray(message.picture).tobytes())
        digest.update(json.dumps(dict(self.extra), sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def pictures(self) -> list[np.ndarray]:
        return [message.picture for message in self.messages if message.picture is not None]


class Format(Protocol):
    """Makes rows of scenes and writes them into a folder. Single use."""

    name: str
    history: bool
    """Whether earlier turns stand in a row, as inference with history has them."""

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        """The rows of one trajectory; `optimal` as for `state`."""

    def put(self, part: str, row: Row) -> None:
        """Write a row, or keep it for `finish`."""

    def finish(self) -> None:
        """Write what is left."""

    def written(self, part: str) -> Iterator[tuple[int, int]]:
        """Read the part's file again: for each row the marks in its texts and its pictures."""

    def guide(self, longest: int | None) -> str:
        """How to train on it, as Markdown; `longest` is the longest row in tokens where they were counted."""


def marked(message: Message) -> dict[str, str]:
    """A message as text, with the mark that the consumer replaces where its picture stands."""
    return {"role": message.role, "content": (IMAGE_MARK if message.picture is not None else "") + message.text}


def blocks(message: Message) -> dict[str, Any]:
    """A message as content blocks."""
    picture = [{"type": "image"}] if message.picture is not None else []
    return {"role": message.role, "content": [*picture, {"type": "text", "text": message.text}]}


def state(sample: Sample, turns: Sequence[Turn], position: int, optimal: int, by_expert: bool = False) -> dict[str, Any] | None:
    """What a reward needs to know of a state, JSON-ready; None when the trajectory has no reference mask.

    `pre_iou` is the overlap of the shown mask with the reference, `best_iou` the best so far, `current_step` counts from 1,
    `optimal_step` is the first turn at which an episode of the same picture and prompt could have stopped. Clicks are in
    pixels, (column, row); masks are COCO run lengths of `image_size` (width, height). `answer` is the right action: the
    recorded one where that is right, otherwise or `by_expert` a simulated annotator's.
    """
    reference, turn = sample.reference, turns[position]
    right = expert_reply(sample, turn) if turn.fault or by_expert else turn.reply
    if reference is None or right is None:
        return None
    width, height = sample.view.size
    overlaps = [reference.iou(one.mask) for one in turns[: position + 1]]
    return {
        "query": sample.trajectory.prompt,
        "answer": str(right.action),
        "stop": isinstance(right.action, Terminate),
        "clicklist": [list(click.point.pixel(width, height)) for click in turn.clicks],
        "labels": [int(click.positive) for click in turn.clicks],
        "image_size": [width, height],
        "mask": _json(turn.shown),
        "reference": _json(rle.encode(reference.mask)),
        "pre_iou": round(overlaps[-1], 6),
        "best_iou": round(max(overlaps), 6),
        "current_step": turn.number,
        "optimal_step": optimal,
        "max_turns": sample.trajectory.max_turns,
        "overlay": sample.trajectory.overlay,
    }


def read_state(record: Mapping[str, Any]) -> State:
    """What `state` wrote, for `lib.trajectories.rewards.score_reply`."""
    reference = Reference(rle.decode(json.loads(record["reference"])))
    mask = rle.decode(json.loads(record["mask"])) if record["mask"] else None
    return State(reference, mask, record["current_step"], record["best_iou"])


def _json(mask: Rle | None) -> str:
    return "" if mask is None else json.dumps(mask, separators=(",", ":"), sort_keys=True)
