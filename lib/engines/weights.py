"""The published weights of `configs/weights.yaml`: where they lie, and fetching them: whole, checked, resumable, or not at all.

A file is written beside its place under a hidden name that carries its checksum, goes on from there when the connection or the
command broke off, and gets its own name when its length and its checksum are the hub's. `hf_hub_download` of huggingface_hub 2
begins a broken file again, which for gigabytes will not do, so its `http_get` is used. After the content was verified too, a
record beside the files says what they are and where they came from.

Shared between processes: a folder, under a lock file; a second fetch into it is refused, not made to wait.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from hashlib import file_digest, sha1
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Literal

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from pydantic import BaseModel, ConfigDict, Field

from lib.config import load_config
from lib.errors import EngineError, InputError

ROOT = Path(__file__).resolve().parent.parent.parent
_SCHEMA = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TIMEOUT_S = 30
_GATED = "accept its terms there and set HF_TOKEN"
_REMEDIES = {401: _GATED, 403: _GATED, 404: "look whether it has moved"}
"""By the hub's HTTP status."""


class Weights(BaseModel):
    """One entry of `configs/weights.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["language model", "segmenter"]
    use: str
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = "main"
    folder: str = ""
    files: tuple[str, ...] = Field(min_length=1)
    target: Path
    gigabytes: float = Field(gt=0)
    licence: str
    terms: str
    clean: bool
    sha256: dict[str, str] = {}

    @property
    def place(self) -> Path:
        """What an engine names: the folder of a language model, the file of a segmenter."""
        return self.target if self.kind == "language model" else self.target / self.files[0]

    @property
    def download(self) -> str:
        """The shell command that does the same with huggingface_hub alone, on any machine."""
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        if self.folder:
            below = f"--include '{self.folder}/*' --local-dir {self.target.parent}"
            return f"hf download {self.repo}{revision} {below} && mv {self.target.parent / self.folder} {self.target}"
        names = "" if self.kind == "language model" else f" {' '.join(self.files)}"
        return f"hf download {self.repo}{names}{revision} --local-dir {self.target}"


class WeightsConfig(BaseModel):
    """`configs/weights.yaml`."""

    model_config = ConfigDict(extra="forbid")
    weights: dict[str, Weights]


class Presence(StrEnum):
    """What is known about an entry without reading its tensors."""

    ABSENT = "not here"
    PARTLY = "partly here: fetch goes on"
    UNVERIFIED = "here, not verified"
    """Put there by other means, or changed since."""
    VERIFIED = "here, verified"
    """Fetched, with the hub's checksums, and its content verified; unchanged since."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository, as the hub describes it."""

    remote: str
    name: str
    """Here, without the folder of the repository."""
    size: int
    """In bytes."""
    algorithm: Literal["sha256", "git"]
    """"git": SHA-1 of git's blob, for small files that are not in large-file storage."""
    digest: str


@dataclass(frozen=True)
class Listing:
    """The wanted files of a repository at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


def catalogue() -> dict[str, Weights]:
    """All entries by name. Raises InputError when the file is not valid."""
    return load_config("weights", WeightsConfig).weights


def find(name: str) -> Weights:
    """Raises InputError naming all entries for an unknown one."""
    known = catalogue()
    if name not in known:
        raise InputError(f"no weights are called {name!r}: there are {', '.join(known)}")
    return known[name]


def presence(name: str, weights: Weights, folder: Path) -> Presence:
    """Whether the entry lies in `folder`; a look at names, sizes and times."""
    if _unchanged(name, folder):
        return Presence.VERIFIED
    parts = [part.name for part in folder.glob(".*.part")]
    if any(fnmatch(part, f".{pattern}.*.part") for part in parts for pattern in weights.files):
        return Presence.PARTLY
    first = "config.json" if weights.kind == "language model" else weights.files[0]
    return Presence.UNVERIFIED if (folder / first).is_file() else Presence.ABSENT


def listing(weights: Weights, endpoint: str | None = None) -> Listing:
    """Ask the hub. `endpoint`: its URL, by default that of the environment variable HF_ENDPOINT or the public hub's.

    Raises EngineError when the hub cannot be reached, does not give the repository, or has other content than is pinned.
    """
    with _hub_errors(weights, endpoint):
        info = HfApi(endpoint=endpoint).model_info(
            weights.repo, revision=weights.revision, files_metadata=True, timeout=_TIMEOUT_S
        )
    files = []
    for sibling in info.siblings or ():
        path = PurePosixPath(sibling.rfilename)
        if str(path.parent) != (weights.folder or ".") or not any(fnmatch(path.name, pattern) for pattern in weights.files):
            continue
        if sibling.lfs is not None:
            files.append(RemoteFile(str(path), path.name, sibling.lfs.size, "sha256", sibling.lfs.sha256))
        elif sibling.size is not None and sibling.blob_id is not None:
            files.append(RemoteFile(str(path), path.name, sibling.size, "git", sibling.blob_id))
        else:
            raise EngineError(f"the hub gives no checksum for {path} of {weights.repo}; get it by hand: {weights.download}")
    if not files or not info.sha:
        raise EngineError(
            f"{weights.repo} at {weights.revision} has none of {', '.join(weights.files)}; look at its model card"
        )
    for file in files:
        if weights.sha256.get(file.name, file.digest) != file.digest:
            raise EngineError(f"{file.name} of {weights.repo} is not the file that configs/weights.yaml pins by its sha256")
    return Listing(info.sha, tuple(sorted(files, key=lambda file: file.name)))


def require_licence(name: str, weights: Weights, accepted: bool) -> None:
    """Raises InputError with the field "accept_licence" for a licence that is not clean and was not accepted."""
    if not weights.clean and not accepted:
        raise InputError(
            f"needed to fetch {name}, whose licence ({weights.licence}) is not clean for clinical use", "accept_licence"
        )


def fetch(name: str, weights: Weights, folder: Path, endpoint: str | None = None) -> dict[str, str]:
    """Get what is missing of the entry into `folder`, verify files and content, leave a record; returns what the weights are.

    Raises EngineError (hub, checksum, disk full, another fetch) or InputError (content that does not verify). A file never has
    its own name before it is whole; what came so far is kept, and the next call goes on from there.
    """
    from lib.engines.describe import describe

    remote = listing(weights, endpoint)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".fetch.lock", timeout=0):
            wanted = [file for file in remote.files if not _whole(folder / file.name, file)]
            _require_space(folder, wanted)
            for file in wanted:
                _download(weights, file, folder, remote.commit, endpoint)
    except Timeout as error:
        raise EngineError(f"another fetch is writing into {folder}; wait for it") from error
    facts = describe(folder if weights.kind == "language model" else folder / weights.files[0])
    _write_record(name, weights, folder, remote)
    return facts


def _download(weights: Weights, file: RemoteFile, folder: Path, commit: str, endpoint: str | None) -> None:
    part = _part(folder, file)
    for other in folder.glob(".*.part"):
        outdated = other.name.startswith(f".{file.name}.") and other != part
        if outdated or (other == part and part.stat().st_size > file.size):
            other.unlink()
    url = hf_hub_url(weights.repo, file.remote, revision=commit, endpoint=endpoint)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with _hub_errors(weights, endpoint), part.open("ab") as sink:
        http_get(url, sink, resume_size=sink.tell(), headers=headers, expected_size=file.size, displayed_filename=file.name)
    if not _whole(part, file):
        part.unlink()
        raise EngineError(f"{file.name} came with another checksum than the hub lists and was thrown away; fetch again")
    part.replace(folder / file.name)


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f".{file.name}.{file.digest[:16]}.part"


def _whole(path: Path, file: RemoteFile) -> bool:
    """Whether the file on disk has the length and the checksum that the hub lists."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.algorithm == "git":
        return sha1(b"blob %d\0" % file.size + path.read_bytes()).hexdigest() == file.digest
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest() == file.digest


def _require_space(folder: Path, files: list[RemoteFile]) -> None:
    parts = [_part(folder, file) for file in files]
    needed = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EngineError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; `--to` names another folder"
        )


@contextmanager
def _hub_errors(weights: Weights, endpoint: str | None) -> Iterator[None]:
    """Turns what the hub, the network and the disk do wrong into EngineError with one line."""
    hub = endpoint or constants.ENDPOINT
    by_hand = f"on a machine that can: {weights.download}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise EngineError(f"HF_HUB_OFFLINE is set, so nothing is fetched; {by_hand}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = _REMEDIES.get(status, "fetch again to go on")
        raise EngineError(f"{hub} answers {status} for {weights.repo} at {weights.revision}: {remedy}, or {by_hand}") from error
    except HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"{hub} cannot be reached, or broke off ({reason}); fetch again to go on, or {by_hand}") from error
    except JSONDecodeError as error:
        raise EngineError(f"{hub} does not answer as a hub does (a proxy's page?); {by_hand}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise EngineError(f"the disk is full ({error.strerror}); make room, then fetch again to go on") from error
        if error.errno is None:
            raise EngineError(f"{hub} broke off; fetch again to go on, or {by_hand}") from error
        raise


def _record(name: str, folder: Path) -> Path:
    return folder / f".{name}.weights.json"


def _write_record(name: str, weights: Weights, folder: Path, remote: Listing) -> None:
    files = {
        file.name: {"size": file.size, file.algorithm: file.digest, "changed_ns": (folder / file.name).stat().st_mtime_ns}
        for file in remote.files
    }
    origin = weights.model_dump(include={"repo", "revision", "folder", "licence"})
    path = _record(name, folder)
    draft = path.with_suffix(".new")
    draft.write_text(
        json.dumps({"schema": _SCHEMA, **origin, "commit": remote.commit, "files": files}, indent=2), encoding="utf-8"
    )
    draft.replace(path)


def _unchanged(name: str, folder: Path) -> bool:
    """Whether there is a record, and every file of it has the size and the time of then."""
    try:
        files = json.loads(_record(name, folder).read_text(encoding="utf-8"))["files"]
        stats = [((folder / file).stat(), seen) for file, seen in files.items()]
        return all((stat.st_size, stat.st_mtime_ns) == (seen["size"], seen["changed_ns"]) for stat, seen in stats)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False
