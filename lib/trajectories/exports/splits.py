"""Splits by patient: the same patient is always in the same part, whatever else is exported."""

from collections.abc import Iterable
from hashlib import blake2b

from lib.errors import InputError

PARTS = ("train", "validation", "test")


def parse_shares(text: str) -> tuple[float, ...]:
    """ "0.8,0.1,0.1" as the shares of train, validation and test; fewer mean that the later parts are empty.

    Raises InputError with the field "split".
    """
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if not 1 <= len(shares) <= len(PARTS) or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise InputError(f"split {text!r} is not understood: write shares that add up to 1, such as 0.8,0.1,0.1", "split")
    return shares + (0.0,) * (len(PARTS) - len(shares))


def part_of(patient: str, shares: tuple[float, ...]) -> str:
    """The part that a patient is in; `patient` is a hash or any other name of a group that must stay together."""
    place = int.from_bytes(blake2b(patient.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    for part, share in zip(PARTS, shares, strict=True):
        if place < share:
            return part
        place -= share
    return next(part for part, share in zip(reversed(PARTS), reversed(shares), strict=True) if share)


def together(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For (patient, content) pairs the group of each patient, named after one of its patients: patients with the same image are
    one. An image that does not say whose it is counts as a patient, and may have been sent under several names.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    patients = set()
    for patient, content in pairs:
        patients.add(patient)
        first, second = sorted((find(f"1{patient}"), find(f"2{content}")))
        leader[second] = first
    return {patient: find(f"1{patient}")[1:] for patient in sorted(patients)}
