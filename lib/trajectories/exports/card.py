"""The data card: what an export holds, where it comes from, and what to mind, for people and for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lib.agent.protocol import Click, Terminate
from lib.trajectories.exports.rows import Row
from lib.trajectories.exports.splits import PARTS
from lib.trajectories.exports.turns import Sample
from lib.trajectories.privacy import BURNING
from lib.trajectories.trajectory import SCHEMA

LAYOUT = 1
"""Of the rows and of the card."""
CARD = "card.json"
_BINS = 10


@dataclass(frozen=True)
class Tally:
    """What is counted while an export is written."""

    trajectories: Counter[str] = field(default_factory=Counter)
    """By part."""
    patients: dict[str, set[str]] = field(default_factory=dict)
    slices: dict[str, set[str]] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    learned: Counter[str] = field(default_factory=Counter)
    """Replies that are learned, by who gave them and what they are."""
    dropped_rows: Counter[str] = field(default_factory=Counter)
    """By reason."""
    dropped_steps: Counter[str] = field(default_factory=Counter)
    """By reason."""
    dropped_trajectories: Counter[str] = field(default_factory=Counter)
    about: dict[str, Counter[str]] = field(default_factory=dict)
    """Trajectories by source, lesson, label, modality and so on."""
    rewards: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Of each row, where they were counted."""

    def add_trajectory(self, part: str, patient: str, sample: Sample, annotators: Sequence[str]) -> None:
        trajectory = sample.trajectory
        origin, maker = trajectory.origin, trajectory.maker
        self.trajectories[part] += 1
        self.patients.setdefault(part, set()).add(patient)
        self.slices.setdefault(part, set()).add(f"{origin.content_hash}:{origin.plane}:{origin.index}")
        for name, value in (
            ("source", trajectory.source.value),
            ("lesson", trajectory.lesson or "none"),
            ("label", trajectory.label),
            ("modality", origin.modality),
            ("burned_in_annotation", origin.burned_in or "not stated"),
            ("plane", origin.plane),
            ("stop", trajectory.outcome.stop.value),
            (
                "engine",
                f"{maker.engine}: {maker.policy} + {maker.segmenter}, protocol {maker.protocol}, weights {maker.weights}",
            ),
            *(("annotator", name) for name in annotators),
        ):
            self.about.setdefault(name, Counter())[value] += 1
        if sample.reward is not None:
            self.rewards.append(sample.reward)
            self.dice.append(sum(grade.dice for grade in sample.grades) / len(sample.grades))

    def add_row(self, part: str, row: Row) -> None:
        self.rows[part] += 1
        for turn in row.learned:
            action = turn.reply.action
            kind = "positive click" if isinstance(action, Click) and action.positive else "negative click"
            if isinstance(action, Terminate):
                kind = "stop" if turn.mask is not None and turn.mask.any() else "absent"
            self.learned[f"{turn.actor.value if turn.recorded else 'added'}: {kind}"] += 1


def warnings(tally: Tally) -> list[str]:
    """What a person should know before the pictures leave the house."""
    stated = tally.about.get("burned_in_annotation", Counter())
    modalities = tally.about.get("modality", Counter())
    found = []
    if stated["YES"]:
        found.append(
            f"{stated['YES']} trajectories are of images with BurnedInAnnotation YES: text in them may name the patient"
        )
    risky = {name: count for name, count in sorted(modalities.items()) if name in BURNING}
    if risky:
        named = ", ".join(f"{name} ({count})" for name, count in risky.items())
        found.append(f"trajectories of modalities whose pictures often have text burned in: {named}; look at them first")
    return found


def to_card(tally: Tally, settings: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The card as JSON; the same for the same store and settings."""
    parts = {
        part: {
            "rows": count,
            "trajectories": tally.trajectories[part],
            "patients": len(tally.patients[part]),
            "slices": len(tally.slices[part]),
        }
        for part, count in ((part, tally.rows[part]) for part in PARTS)
        if count
    }
    return {
        "layout": LAYOUT,
        "trajectory_schema": SCHEMA,
        "settings": dict(settings),
        "reward_recipe": recipe,
        "parts": parts,
        "learned_replies": _sorted(tally.learned),
        "dropped": {
            "trajectories": _sorted(tally.dropped_trajectories),
            "rows": _sorted(tally.dropped_rows),
            "steps": _sorted(tally.dropped_steps),
        },
        "trajectories_by": {name: _sorted(counts) for name, counts in sorted(tally.about.items())},
        "reward": _histogram(tally.rewards, -1.0, 1.0),
        "dice": _histogram(tally.dice, 0.0, 1.0),
        "tokens": None if not tally.tokens else {"longest_row": max(tally.tokens), "all": sum(tally.tokens)},
        "versions": {name: version(name) for name in ("numpy", "pillow", "pyarrow")},
        "warnings": warnings(tally),
    }


def write_card(folder: Path, card: Mapping[str, Any], guide: str) -> None:
    """`card.json` and `README.md`."""
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(_readme(card, guide), "utf-8")


def _readme(card: Mapping[str, Any], guide: str) -> str:
    settings = card["settings"]
    lines = [
        f"# IBIS Label trajectories for {settings['format']} ({settings['rows']})",
        "",
        "Recorded episodes of an agent, of annotators and of simulated annotators who segment medical images click by click. "
        "The numbers below stand in `card.json` too.",
        "",
        "## What to mind",
        "",
        "- The pictures are medical images. No identifiers of patients, images or people stand in the rows; the pictures "
        "themselves, and what annotators typed as prompts, may still tell who it is.",
        "- Licence and consent are those of the images, which are not recorded here: ask before this folder is passed on.",
        *(f"- **{warning[0].upper()}{warning[1:]}.**" for warning in card["warnings"]),
        f"- Rewards are of recipe `{card['reward_recipe']}`. Of several annotators' gradings the mean counts; masks and "
        "overlaps in states of reinforcement learning are the newest label's.",
        "- Replies are learned when they are right: see `learned_replies`, and `dropped` for what is left out and why.",
        "- The texts hold no literal `<image>` beside the picture: serve what is trained on them with `image_mark: false`.",
        "",
        "## How to train on it",
        "",
        guide,
        "",
        "## Parts",
        "",
        "A patient is in one part only.",
        "",
        "| part | rows | trajectories | patients | slices |",
        "|---|---|---|---|---|",
    ]
    for part, counts in card["parts"].items():
        lines.append(f"| {part} | {' | '.join(str(counts[name]) for name in ('rows', 'trajectories', 'patients', 'slices'))} |")
    lines += _table("Learned replies", card["learned_replies"])
    for name, counts in card["trajectories_by"].items():
        lines += _table(f"Trajectories by {name.replace('_', ' ')}", counts)
    for name, counts in card["dropped"].items():
        lines += _table(f"Left out: {name}", counts)
    for name in ("reward", "dice"):
        lines += _table(f"{name.capitalize()} (trajectories)", card[name]["counts"])
    lines += _table("Settings", {name: json.dumps(value) for name, value in settings.items()})
    return "\n".join(lines) + "\n"


def _table(title: str, counts: Mapping[str, Any]) -> list[str]:
    if not counts:
        return []
    rows = (f"| {name.replace('|', '/')} | {count} |" for name, count in counts.items())
    return ["", f"## {title}", "", "| | |", "|---|---|", *rows]


def _histogram(values: Sequence[float], low: float, high: float) -> dict[str, Any]:
    """Counts by range, the last with its upper end; what lies outside counts to the nearest."""
    width = (high - low) / _BINS
    counts = Counter(min(_BINS - 1, max(0, int((value - low) / width))) for value in values)
    named = {f"{low + n * width:.1f} to {low + (n + 1) * width:.1f}": counts[n] for n in range(_BINS)} if values else {}
    mean = round(sum(values) / len(values), 6) if values else None
    return {"mean": mean, "counts": named}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
