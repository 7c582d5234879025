"""LLaMA-Factory's ShareGPT layout (0.9.5): conversations in which every reply is learned, and every reply is right.

LLaMA-Factory has no weight per message: it learns all replies of a row, or with `mask_history` the last alone. So no row holds
a reply that must not be learned.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.agent.prompts import IMAGE_MARK
from lib.trajectories.exports.conversations import lessons
from lib.trajectories.exports.pictures import Pictures
from lib.trajectories.exports.rows import Row, marked
from lib.trajectories.exports.splits import PARTS
from lib.trajectories.exports.turns import Sample, Turn

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


class ShareGpt:
    """Implements `lib.trajectories.exports.rows.Format`: `train.json` and so on, `dataset_info.json`, `images/`."""

    name = "sharegpt"

    def __init__(self, folder: Path, history: bool):
        self.history = history
        self._folder = folder
        self._pictures = Pictures(folder)
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        for messages, learned in lessons(sample, turns, self.history):
            yield Row(messages, learned)

    def put(self, part: str, row: Row) -> None:
        images = [self._pictures.put(picture) for picture in row.pictures]
        content = {"id": row.digest, "messages": [marked(message) for message in row.messages], "images": images}
        self._rows.setdefault(part, []).append(content)

    def finish(self) -> None:
        info = {}
        for part in (part for part in PARTS if part in self._rows):
            (self._folder / f"{part}.json").write_text(json.dumps(self._rows[part], indent=1, ensure_ascii=False), "utf-8")
            columns = {"messages": "messages", "images": "images"}
            info[f"ibis_{part}"] = {"file_name": f"{part}.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
        (self._folder / "dataset_info.json").write_text(json.dumps(info, indent=2), "utf-8")

    def written(self, part: str) -> Iterator[tuple[int, int]]:
        path = self._folder / f"{part}.json"
        for row in json.loads(path.read_text("utf-8")) if path.exists() else []:
            there = [name for name in row["images"] if (self._folder / name).is_file()]
            yield sum(message["content"].count(IMAGE_MARK) for message in row["messages"]), len(there)

    def guide(self, longest: int | None) -> str:
        cutoff = "longer than every row: count with `--model`" if longest is None else f"{longest} or more"
        return (
            "LLaMA-Factory 0.9.5: `dataset_dir` and `media_dir` are this folder, `dataset: ibis_train`, `template: qwen2_vl` "
            f"(Qwen2.5-VL's too), `image_max_pixels: 262144`, and `cutoff_len` {cutoff}: what is beyond it is cut off "
            "without a word, image tokens too. Leave `train_on_prompt` and `mask_history` off: every reply in these rows is "
            "meant to be learned."
        )
