"""Writing files so that a reader never sees half of one, and telling when files have changed."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffixes, that becomes `path` when the block ends well.

    When the block raises, `path` stays as it was and nothing is left behind.
    """
    stem, suffixes = _split(path)
    temporary = path.with_name(f".{stem}.{uuid.uuid4().hex}{suffixes}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(files: Iterable[Path]) -> str:
    """12 hex digits that change when a file comes, goes, or gets another size or time. A file that vanishes is left out."""
    digest = blake2b(digest_size=6)
    for path in sorted(files):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _split(path: Path) -> tuple[str, str]:
    for suffixes in (".nii.gz", path.suffix):
        if suffixes and path.name.endswith(suffixes):
            return path.name.removesuffix(suffixes), suffixes
    return path.name, ""
