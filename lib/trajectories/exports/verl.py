"""verl (0.9.1): parquet files as its `RLHFDataset` reads them, one row per turn as published, or one per episode."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lib.agent.prompts import IMAGE_MARK
from lib.trajectories.exports.conversations import prompt
from lib.trajectories.exports.pictures import Pictures, encode
from lib.trajectories.exports.rows import Row, marked, state
from lib.trajectories.exports.turns import Sample, Turn

SOURCE = "ibis"
"""`data_source`. verl's own rewards do not know it: `reward.custom_reward_function.path` must be set."""
_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_EXTRA = {
    "split": _TEXT,
    "index": _WHOLE,
    "id": _TEXT,
    "need_tools_kwargs": pa.bool_(),
    "query": _TEXT,
    "answer": _TEXT,
    "stop": pa.bool_(),
    "picture": _TEXT,
    "clicklist": pa.list_(pa.list_(_WHOLE)),
    "labels": pa.list_(_WHOLE),
    "image_size": pa.list_(_WHOLE),
    "mask": _TEXT,
    "reference": _TEXT,
    "pre_iou": _REAL,
    "best_iou": _REAL,
    "current_step": _WHOLE,
    "optimal_step": _WHOLE,
    "max_turns": _WHOLE,
    "overlay": _TEXT,
}
SCHEMA = pa.schema(
    {
        "data_source": _TEXT,
        "agent_name": _TEXT,
        "prompt": pa.list_(pa.struct({"role": _TEXT, "content": _TEXT})),
        "images": pa.list_(pa.struct({"bytes": pa.binary()})),
        "ability": _TEXT,
        "reward_model": pa.struct({"style": _TEXT, "ground_truth": _TEXT}),
        "extra_info": pa.struct(_EXTRA),
    }
)
"""One for all rows: Arrow wants the same keys in each."""
_TOGETHER = 64
"""Rows that wait for the disk together."""


class _Verl:
    """What both kinds of rows share: `train.parquet` and so on, and in `images/` the pictures without masks."""

    name = "verl"
    agent = ""

    def __init__(self, folder: Path, history: bool):
        self.history = history
        self._folder = folder
        self._pictures = Pictures(folder)
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._counts: dict[str, int] = {}

    def put(self, part: str, row: Row) -> None:
        index = self._counts[part] = self._counts.get(part, -1) + 1
        own = {"split": part, "index": index, "id": row.digest, "need_tools_kwargs": False}
        own["picture"] = self._pictures.put(row.originals[0])
        waiting = self._waiting.setdefault(part, [])
        waiting.append(
            {
                "data_source": SOURCE,
                "agent_name": self.agent,
                "prompt": [marked(message) for message in row.messages],
                "images": [{"bytes": encode(picture)} for picture in row.pictures],
                "ability": "reasoning",
                "reward_model": {"style": "rule", "ground_truth": row.extra["answer"]},
                "extra_info": {**row.extra, **own},
            }
        )
        if len(waiting) == _TOGETHER:
            self._write(part)

    def finish(self) -> None:
        for part, waiting in self._waiting.items():
            if waiting:
                self._write(part)
        for writer in self._writers.values():
            writer.close()

    def written(self, part: str) -> Iterator[tuple[int, int]]:
        path = self._folder / f"{part}.parquet"
        if not path.exists():
            return
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_TOGETHER, columns=["prompt", "images"]):
                for row in batch.to_pylist():
                    there = [picture for picture in row["images"] if picture["bytes"]]
                    yield sum(message["content"].count(IMAGE_MARK) for message in row["prompt"]), len(there)

    def _write(self, part: str) -> None:
        if part not in self._writers:
            self._writers[part] = pq.ParquetWriter(self._folder / f"{part}.parquet", SCHEMA)
        self._writers[part].write_table(pa.Table.from_pylist(self._waiting[part], SCHEMA))
        self._waiting[part] = []


class VerlTurns(_Verl):
    """Implements `lib.trajectories.exports.rows.Format`: one row per state, for single-turn GRPO as published."""

    agent = "single_turn_agent"

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        for position, turn in enumerate(turns):
            about = state(sample, turns, position, optimal) if turn.own else None
            if about is not None:
                yield Row(prompt(sample, turns, position, self.history), extra=about, originals=(sample.view.image(),))

    def guide(self, longest: int | None) -> str:
        return _guide(longest)


class VerlEpisodes(_Verl):
    """Implements `lib.trajectories.exports.rows.Format`: one row per episode, with the state in which it begins; the agent loop
    makes the turns."""

    agent = "ibis_agent"

    def rows(self, sample: Sample, turns: Sequence[Turn], optimal: int) -> Iterator[Row]:
        about = state(sample, turns, 0, optimal, by_expert=True) if turns and turns[0].own else None
        if about is not None:
            yield Row(prompt(sample, turns, 0, self.history), extra=about, originals=(sample.view.image(),))

    def guide(self, longest: int | None) -> str:
        loop = "`actor_rollout_ref.rollout.agent.agent_loop_config_path` names the file that registers `ibis_agent`. "
        return _guide(longest) + " " + loop + "The row holds the state in which the episode begins; the loop draws the others."


def _guide(longest: int | None) -> str:
    length = "longer than every prompt: count with `--model`" if longest is None else f"{longest} or more"
    return (
        f"verl 0.9.1: `data.image_key=images data.return_raw_chat=True data.max_prompt_length` {length}, "
        f"`data.truncation=error`. `data_source` is `{SOURCE}`, which verl's own rewards do not know: always set "
        "`reward.custom_reward_function.path`. Assert that the dataset is as long as the file: `data.filter_overlong_prompts` "
        "drops rows that it cannot read without saying so."
    )
