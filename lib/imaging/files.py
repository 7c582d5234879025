"""Writing files so that a reader never sees half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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


def _split(path: Path) -> tuple[str, str]:
    for suffixes in (".nii.gz", path.suffix):
        if suffixes and path.name.endswith(suffixes):
            return path.name.removesuffix(suffixes), suffixes
    return path.name, ""
