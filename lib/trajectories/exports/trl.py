"""TRL (1.16): conversational rows with content blocks, as image folders that `datasets` loads by itself.

For supervised training a prompt and its completion: TRL learns the completion alone, so the prompt shows the conversation as it
was, wrong turns included. For GRPO prompts and the state that a reward function needs.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.policies.conversation import Message
from lib.trajectories.exports.conversations import prompt, supervised
from lib.trajectories.exports.pictures import Pictures
from lib.trajectories.exports.rows import Row, blocks, state
from lib.trajectories.exports.splits import PARTS
from lib.trajectories.exports.turns import Sample, Turn

FILE = "metadata.jsonl"
IMAGES = "images_file_names"
"""`datasets` makes of it a column `images` of pictures."""


class _Trl(ABC):
    """What both kinds of rows share: a folder for each part, with `metadata.jsonl` and `images/`."""

    name = "trl"

    def __init__(self, folder: Path, history: bool):
        self.history = history
        self._folder = folder
        self._pictures: dict[str, Pictures] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def put(self, part: str, row: Row) -> None:
        pictures = self._pictures.setdefault(part, Pictures(self._folder / part))
        content = {"id": row.digest, **self._content(row), IMAGES: [pictures.put(picture) for picture in row.pictures]}
        self._rows.setdefault(part, []).append(content)

    def finish(self) -> None:
        for part in (part for part in PARTS if part in self._rows):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows[part])
            (self._folder / part / FILE).write_text("".join(lines), "utf-8")

    def written(self, part: str) -> Iterator[tuple[int, int]]:
        path = self._folder / part / FILE
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            parts = [one for message in row["prompt"] + row.get("completion", []) for one in message["content"]]
            there = [name for name in row[IMAGES] if (self._folder / part / name).is_file()]
            yield sum(one["type"] == "image" for one in parts), len(there)

    @abstractmethod
    def _content(self, row: Row) -> dict[str, Any]:
        """The columns beside `id` and the pictures."""


class TrlSft(_Trl):
    """Implements `lib.trajectories.exports.rows.Format` for SFTTrainer: one row per turn that is learned."""

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        for position, turn in enumerate(turns):
            if supervised(turn):
                yield Row([*prompt(sample, turns, position, self.history), Message("assistant", turn.text)], (turn,))

    def _content(self, row: Row) -> dict[str, Any]:
        *before, reply = (blocks(message) for message in row.messages)
        return {"prompt": before, "completion": [reply]}

    def guide(self, longest: int | None) -> str:
        return (
            'TRL 1.16: `load_dataset("imagefolder", data_dir=FOLDER)["train"]` into SFTTrainer with '
            "`SFTConfig(max_length=None)`: a length cuts off image tokens. The completion alone is learned, which is "
            "the default for rows with a prompt and a completion."
        )


class TrlGrpo(_Trl):
    """Implements `lib.trajectories.exports.rows.Format` for GRPOTrainer: one row per state, `state` as JSON for the rewards."""

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        for position, turn in enumerate(turns):
            about = state(sample, turns, position, optimal) if turn.own else None
            if about is not None:
                yield Row(prompt(sample, turns, position, self.history), extra=about, originals=(sample.view.image(),))

    def _content(self, row: Row) -> dict[str, Any]:
        return {"prompt": [blocks(message) for message in row.messages], "state": json.dumps(dict(row.extra), sort_keys=True)}

    def guide(self, longest: int | None) -> str:
        return (
            'TRL 1.16: `load_dataset("imagefolder", data_dir=FOLDER)["train"]` into GRPOTrainer; a reward function gets the '
            "column `state` (JSON: what it needs to know of each state, the reference mask included). `max_completion_length` "
            "bounds the reply; nothing cuts the prompt."
        )
