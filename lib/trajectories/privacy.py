"""Who is who, without saying it: identifiers become salted hashes that only this store can make.

The salt lies beside the store, readable by its owner alone. Whoever has it can test a guess; without it a hash says nothing.
"""

import os
import secrets
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from lib.imaging.volume import Volume

_SALT = "salt"
_BYTES = 32
BURNING = frozenset({"US", "XA", "OT"})
"""Modalities whose pictures often have text burned in, and so may name the patient."""


def read_salt(folder: Path) -> bytes:
    """The store's salt; made when there is none. Safe when several processes begin at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _SALT
    if not path.exists():
        draft = folder / f".{_SALT}.{secrets.token_hex(8)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:  # another process was first
            pass
        finally:
            draft.unlink()
    return path.read_bytes()


def fingerprint(salt: bytes) -> str:
    """32 hex digits that tell one salt from another and give neither away."""
    return hashed(salt, "salt", "")


def hashed(salt: bytes, kind: str, identifier: str) -> str:
    """32 hex digits for an identifier; `kind` ("image", "patient") keeps equal texts of different kinds apart."""
    return blake2b(f"{kind}\0{identifier}".encode(), key=salt, digest_size=16).hexdigest()


def patient_of(volume: Volume) -> tuple[str, str]:
    """PatientID with its issuer, and BurnedInAnnotation, of a DICOM volume; empty where the image does not say."""
    first = next((instance for instance in volume.instances if instance is not None), None)
    if first is None:
        return "", ""
    return _header(first.path)


@lru_cache(1024)
def _header(path: Path) -> tuple[str, str]:
    tags = ["PatientID", "IssuerOfPatientID", "BurnedInAnnotation"]
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except (OSError, InvalidDicomError):
        return "", ""
    issuer, patient = (str(header.get(tag, "") or "").strip() for tag in ("IssuerOfPatientID", "PatientID"))
    name = f"{issuer}\0{patient}" if issuer and patient else patient
    return name, str(header.get("BurnedInAnnotation", "") or "").strip()
