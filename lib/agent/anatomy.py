"""What the annotators' words mean: structures, their names in free text, their DICOM codes, and the rules that find them."""

import re
from functools import cache, cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from lib.config import load_config
from lib.errors import UnknownTarget

_SIDES: dict[str, frozenset[str]] = {
    "left": frozenset({"left", "lt", "sinister", "sinistra", "sinistrum"}),
    "right": frozenset({"right", "rt", "dexter", "dextra", "dextrum"}),
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Model):
    """A SNOMED CT concept, as DICOM PS3.16 lists it."""

    value: str
    meaning: str


class Rule(_Model):
    """How the rules know a structure in a CT, in Hounsfield units and the millilitres of an adult."""

    hu: tuple[float, float]
    """HU that its tissue has, in any contrast phase."""
    volume_ml: tuple[float, float]
    """Least and greatest volume when the whole of it is in the image."""
    aside: tuple[float, float] = (-300, 300)
    """How far its centre lies to its own side of the midline, in mm."""
    ahead: tuple[float, float] = (-300, 300)
    """How far its centre lies in front of the spinal canal, in mm."""
    source: str
    """Where the numbers come from."""


class Structure(_Model):
    """One thing that a prompt can name."""

    name: str
    """snake_case; TotalSegmentator's class name where it has one."""
    synonyms: tuple[str, ...] = ()
    """Other words for it, singular and plural."""
    side: Literal["left", "right"] | None = None
    parts: tuple[str, ...] = ()
    """For a pair: the names of its left and right structure."""
    organ: str | None = None
    """For a lesion: the structure that it sits in, when the prompt names that too."""
    code: Code
    """Segmented property type, CID 7166 and the like; the side is a modifier (CID 244)."""
    category: Literal["anatomical", "tissue", "lesion"] = "anatomical"
    tissue: str = "Soft tissue"
    """What to call it when describing a picture."""
    place: str = ""
    """Where it lies, in a radiologist's words."""
    window: str | None = None
    """Name of the CT window preset of `configs/windows.yaml` that shows it best; None for the default."""
    rule: Rule | None = None
    """None when the rules cannot find it."""

    @property
    def label(self) -> str:
        """For a person: `left kidney` for `kidney_left`."""
        words = self.name.split("_")
        if self.side is not None and words[-1] == self.side:
            words = [self.side, *words[:-1]]
        return " ".join(words)

    @property
    def laterality_code(self) -> Code | None:
        """Segmented property type modifier (CID 244 Laterality); None for a structure without a side."""
        if self.parts:
            return Code(value="51440002", meaning="Right and left")
        return {"left": Code(value="7771000", meaning="Left"), "right": Code(value="24028007", meaning="Right")}.get(
            self.side or ""
        )

    @property
    def category_code(self) -> Code:
        """Segmented property category (CID 7150)."""
        return {
            "anatomical": Code(value="123037004", meaning="Anatomical Structure"),
            "tissue": Code(value="85756007", meaning="Tissue"),
            "lesion": Code(value="49755003", meaning="Morphologically Abnormal Structure"),
        }[self.category]


class Anatomy(_Model):
    """`configs/anatomy.yaml`."""

    structures: tuple[Structure, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "Anatomy":
        names = [structure.name for structure in self.structures]
        if len(set(names)) != len(names):
            raise ValueError("a structure's name occurs twice")
        spoken: dict[str, str] = {}
        for structure in self.structures:
            unknown = {*structure.parts, *([structure.organ] if structure.organ else [])} - set(names)
            if unknown:
                raise ValueError(f"{structure.name} names structures that do not exist: {', '.join(sorted(unknown))}")
            for words in self._phrases(structure):
                if structure.organ is None and spoken.setdefault(words, structure.name) != structure.name:
                    raise ValueError(f"{words!r} means both {spoken[words]} and {structure.name}")
        return self

    @cached_property
    def _by_name(self) -> dict[str, Structure]:
        return {structure.name: structure for structure in self.structures}

    @cached_property
    def _by_phrase(self) -> dict[tuple[str, ...], Structure]:
        return {tuple(p.split()): s for s in self.structures if s.organ is None for p in self._phrases(s)}

    @staticmethod
    def _phrases(structure: Structure) -> set[str]:
        return {" ".join(_words(text)) for text in (structure.name, *structure.synonyms)}

    def __getitem__(self, name: str) -> Structure:
        """The structure of that exact name. Raises KeyError."""
        return self._by_name[name]

    @property
    def findable(self) -> tuple[str, ...]:
        """Names of the structures that the rules can find, sorted."""
        return tuple(sorted(structure.name for structure in self.structures if structure.rule is not None))

    def find(self, text: str) -> Structure | None:
        """The structure that free English text names; None when it names none.

        "Can you find the patient's right lung?" is lung_right: a side may stand anywhere; with both sides, or none, a paired
        organ means the pair. A lesion counts before the organ that it sits in ("tumour in the liver"); otherwise the structure
        named first counts, by its longest name ("spinal cord" before "spine").
        """
        words = _words(text)
        mentions = self._mentions(words)
        if not mentions:
            return None
        chosen = next((structure for structure in mentions if structure.category == "lesion"), mentions[0])
        if chosen.category == "lesion":
            lesions = [s for s in self.structures if s.organ in {m.name for m in mentions} and chosen.name in s.synonyms]
            return lesions[0] if lesions else chosen
        sides = {side for side, spoken in _SIDES.items() if spoken & set(words)}
        if chosen.parts and len(sides) == 1:
            return next(self[part] for part in chosen.parts if self[part].side in sides)
        return chosen

    def rule_target(self, text: str) -> Structure:
        """The structure that `text` names, if the rules can find it. Raises UnknownTarget, which lists those they can."""
        structure = self.find(text)
        if structure is None or structure.rule is None:
            raise UnknownTarget(
                f"I do not know the structure {text.strip()!r}. Without weights I know: {', '.join(self.findable)}"
            )
        return structure

    def _mentions(self, words: list[str]) -> list[Structure]:
        """The structures named, in the order of the words."""
        longest = max(len(phrase) for phrase in self._by_phrase)
        found: list[Structure] = []
        start = 0
        while start < len(words):
            for length in range(min(longest, len(words) - start), 0, -1):
                structure = self._by_phrase.get(tuple(words[start : start + length]))
                if structure is not None:
                    found.append(structure)
                    start += length
                    break
            else:
                start += 1
        return found


def _words(text: str) -> list[str]:
    """Lower-case words; `patient's` gives patient, underscores and hyphens separate."""
    return re.findall(r"[a-z0-9]+", re.sub(r"['\u2019]s\b", "", text.lower()))


@cache
def anatomy() -> Anatomy:
    """The anatomy of `configs/anatomy.yaml`. Raises InputError when the file is not valid."""
    return load_config("anatomy", Anatomy)
