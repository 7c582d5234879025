"""What part of a final label a target means: by name, by the anatomy's synonyms, or because someone said so, never by guess."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lib.agent.anatomy import Anatomy, anatomy
from lib.errors import InputError

_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "a an the and of in on this that there is are any all please can could you find show segment mark outline "
        "delineate contour me patient image scan slice volume ct mr mri where",
    )
)
"""What a request may say beside the structure."""
_SHORT = {"lt": "left", "rt": "right"}


def label_names(info: Any) -> dict[int, str]:
    """Voxel value -> name, of the `label_info` that viewers send with a label: a list of `{"name", "idx"}` in the order of the
    values. Raises InputError with the field "label_info" for anything else."""
    if not isinstance(info, list):
        raise InputError("must be a list of objects with name and idx", "label_info")
    names: dict[int, str] = {}
    for position, entry in enumerate(info, start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        value = entry.get("idx", position) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip() or isinstance(value, bool) or not isinstance(value, int):
            raise InputError("must be a list of objects with name and idx", "label_info")
        if not 1 <= value <= 65535 or value in names:
            raise InputError(f"idx {value} of {name!r} is taken or not a label value", "label_info")
        names[value] = name.strip()
    return names


def match(
    label: str, prompt: str, names: Mapping[int, str], aliases: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, ...]:
    """The voxel values that a target, with its label's name and its prompt, means; empty when none does for sure.

    `names` are the final label's; `aliases` say what a name of it means ("Segment_1" -> "liver") and go before all else. Words
    are compared without case, punctuation and order of side; structures by `configs/anatomy.yaml`, a pair also by its two
    parts together.
    """
    meant = {value: aliases.get(name, name) for value, name in names.items()}
    for said in (label, prompt):
        exact = [value for value, name in meant.items() if _words(name) == _words(said)]
        if exact:
            return tuple(exact)
    known = anatomy()
    wanted = _structure(known, label) or _structure(known, prompt)
    if wanted is None:
        return ()
    found = {value: _structure(known, name) for value, name in meant.items()}
    same = tuple(value for value, name in found.items() if name == wanted)
    if same:
        return same
    parts = known[wanted].parts
    there = {name for name in found.values() if name in parts}
    return tuple(value for value, name in found.items() if name in parts) if parts and there == set(parts) else ()


def _structure(known: Anatomy, text: str) -> str | None:
    """The structure that a text names, where it says nothing else."""
    found = known.find(text)
    if found is None:
        return None
    said = set(_words(text)) - _FILLERS
    phrases = [set(_words(phrase)) - _FILLERS for phrase in (found.name, found.label, *found.synonyms)]
    if found.side is not None:
        phrases += [phrase | {found.side} for phrase in phrases]
    if found.parts:
        phrases += [phrase | {"left", "right"} for phrase in phrases + [set(_words(known[p].label)) for p in found.parts]]
    return found.name if said in phrases else None


def _words(text: str) -> tuple[str, ...]:
    words = re.findall(r"\w+", re.sub(r"['\u2019]s\b", "", text.casefold()).replace("_", " "))
    return tuple(sorted(_SHORT.get(word, word) for word in words))
