"""A PACS over DICOMweb (PS3.18): QIDO-RS, WADO-RS, STOW-RS.

Shared between threads: the HTTP client is made for that, and one lock covers what is known of the PACS's state. Every call may
block for the timeout. Nothing is logged: addresses and answers name patients.
"""

import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from lib.errors import EngineError

CONNECT_S = 5.0
IDLE_S = 0.5
"""Connections idle for longer are not used again: some servers (Orthanc: after 1 s) close them without a word."""
LIMITS = httpx.Limits(max_connections=32, max_keepalive_connections=16, keepalive_expiry=IDLE_S)
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
"""DICOM's unique identifiers (PS3.5 9.1); they become file names here, so nothing else is let in."""
_FINAL = (400, 406, 409, 413, 415, 422)
"""Refusals of what was sent; all others are of the moment, of the login, or of something in front of the PACS."""
_NOT_THERE = (404, 410)
_GATEWAY = (502, 503, 504)
"""Answers of something in front of a PACS that is away."""
_DUPLICATE = 0x0111
"""Failure Reason "Duplicate SOP Instance" (PS3.4 B.2.3)."""
_OF_THE_MOMENT = (0x0110, *range(0xA700, 0xA800))
"""Failure Reasons "Processing failure" and "Out of resources" (PS3.4 B.2.3, PS3.7 C.5.9)."""

SERIES = "0020000E"
STUDY = "0020000D"
INSTANCE = "00080018"
MODALITY = "00080060"
COUNT = "00201209"
_REFERENCED, _FAILED = "00081199", "00081198"
_REFERENCED_INSTANCE, _REASON = "00081155", "00081197"


class PacsError(EngineError):
    """The PACS did not do what it was asked for."""


class PacsUnreachable(PacsError):
    """No answer, or a broken one: worth trying again."""


class PacsRefused(PacsError):
    """The PACS answered, and said no. `passing`: it says that it will take the same later."""

    def __init__(self, status: int, reason: str, passing: bool = False):
        super().__init__(f"the PACS refused with {status}: {reason}" if reason else f"the PACS refused with {status}")
        self.status = status
        self.final = status in _FINAL and not passing
        """Whether asking the same again is useless."""


@dataclass(frozen=True)
class PacsState:
    """How the PACS was last seen."""

    reachable: bool | None
    """None before the first request."""
    since: float
    """Seconds since the epoch at which that began."""
    error: str
    """The last error; empty while all is well."""


class DicomWeb:
    """The DICOMweb services at `url`. `prefixes` go between it and the resources, by service: "qido", "wado", "stow"."""

    def __init__(
        self,
        url: str,
        login: tuple[str, str] | None = None,
        prefixes: Mapping[str, str | None] | None = None,
        timeout_s: float = 30,
        page: int = 500,
    ):
        self.base_url = url.rstrip("/")
        self.auth = httpx.BasicAuth(*login) if login else None
        self.timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        self._prefixes = dict(prefixes or {})
        self._page = page
        self._http = httpx.Client(auth=self.auth, timeout=self.timeout, limits=LIMITS)
        self._state_lock = threading.Lock()
        self._state = PacsState(None, time.time(), "")

    @property
    def state(self) -> PacsState:
        with self._state_lock:
            return self._state

    def address(self, service: str, path: str) -> str:
        """The address of a resource."""
        prefix = (self._prefixes.get(service) or "").strip("/")
        return "/".join(part for part in (self.base_url, prefix, path) if part)

    def series(self, **filters: str) -> Iterator[dict[str, Any]]:
        """All series that match, as DICOM JSON (PS3.18 F.2), page by page."""
        return self._search("series", SERIES, {**filters, "includefield": COUNT})

    def instances(self, study: str, series: str) -> list[str]:
        """The SOP Instance UIDs of a series, sorted."""
        found = self._search(f"studies/{study}/series/{series}/instances", INSTANCE, {})
        return sorted({uid for item in found if UID.fullmatch(uid := text(item, INSTANCE))})

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Whether the PACS says that it has that instance."""
        try:
            return instance in self.instances(study, series)
        except PacsRefused as refusal:
            if refusal.final or refusal.status in _NOT_THERE:
                return False
            raise

    def metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of a series' instances, as DICOM JSON."""
        return self._json(self._ask("GET", self.address("wado", f"studies/{study}/series/{series}/metadata"), headers=_JSON))

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """One instance as the DICOM file that the PACS holds, in its own transfer syntax."""
        address = self.address("wado", f"studies/{study}/series/{series}/instances/{instance}")
        answer = self._ask("GET", address, headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'})
        content = _part(answer.headers.get("content-type", ""), answer.content)
        if content is None or content[128:132] != b"DICM":
            raise self._failed("it sent something else than the DICOM file that was asked for", answered=True)
        return content

    def store(self, instance: str, content: bytes) -> None:
        """Store a DICOM file whose SOP Instance UID is `instance`; fine when the PACS has it already.

        Raises PacsRefused with the PACS's reason.
        """
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        headers = {**_JSON, "Content-Type": kind}
        answer = self._ask("POST", self.address("stow", "studies"), headers=headers, content=body, accepted=(409,))
        receipt = _object(answer)
        stored = {text(item, _REFERENCED_INSTANCE) for item in sequence(receipt, _REFERENCED)}
        failed = {text(item, _REFERENCED_INSTANCE): text(item, _REASON) for item in sequence(receipt, _FAILED)}
        if instance in stored or failed.get(instance) == str(_DUPLICATE):
            return
        if instance in failed:
            code = int(failed[instance]) if failed[instance].isdigit() else None
            reason = _reason(answer) if code is None else f"failure reason {code:04X}H (PS3.4 B.2.3)"
            raise PacsRefused(409, reason, passing=code in _OF_THE_MOMENT)
        raise PacsRefused(409, _reason(answer) if answer.status_code == 409 else "it did not confirm the segmentation")

    def _search(self, path: str, key: str, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            query = {**filters, "limit": str(self._page), "offset": str(len(seen))}
            page = self._json(self._ask("GET", self.address("qido", path), headers=_JSON, params=query))
            new = [item for item in page if text(item, key) and text(item, key) not in seen]
            yield from new
            before = len(seen)
            seen.update(text(item, key) for item in new)
            if len(seen) == before:
                return

    def _ask(self, method: str, address: str, accepted: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        try:
            try:
                answer = self._http.request(method, address, **options)
            except httpx.RemoteProtocolError:
                if method != "GET":
                    raise
                answer = self._http.request(method, address, **options)  # the connection was closed while it was idle
        except httpx.TimeoutException as error:
            raise self._failed("it did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(f"it cannot be reached ({type(error).__name__})") from error
        if answer.status_code >= 400 and answer.status_code not in accepted:
            refusal = PacsRefused(answer.status_code, _reason(answer))
            self._note(answer.status_code not in _GATEWAY, str(refusal))
            raise refusal
        self._note(True, "")
        return answer

    def _json(self, answer: httpx.Response) -> list[dict[str, Any]]:
        if answer.status_code == 204 or not answer.content:
            return []
        try:
            found = answer.json()
        except ValueError as error:
            raise self._failed("it answered with something else than DICOM JSON", answered=True) from error
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._failed("it answered with something else than a list of DICOM JSON", answered=True)
        return found

    def _failed(self, what: str, answered: bool = False) -> PacsUnreachable:
        self._note(answered, f"the PACS: {what}")
        return PacsUnreachable(f"the PACS: {what}")

    def _note(self, reachable: bool, error: str) -> None:
        with self._state_lock:
            since = self._state.since if self._state.reachable is reachable else time.time()
            self._state = PacsState(reachable, since, error)


_JSON = {"Accept": "application/dicom+json"}


def text(item: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON as text, of a person's name its alphabetic form; empty without one."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(values, list) or not values or values[0] is None:
        return ""
    value = values[0]
    return str(value.get("Alphabetic", "")) if isinstance(value, dict) else str(value)


def sequence(item: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """The items of a sequence in DICOM JSON."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [value for value in values or () if isinstance(value, dict)]


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _reason(answer: httpx.Response) -> str:
    """What the PACS says about a refusal, as one short line."""
    found = _object(answer)
    said = next((str(found[key]) for key in ("Details", "Message", "errorMessage", "message", "detail") if found.get(key)), "")
    said = said or ("" if found else re.sub(r"<[^>]*>", " ", answer.text)) or answer.reason_phrase
    return re.sub(r"\s+", " ", said).strip()[:300]


def _part(kind: str, body: bytes) -> bytes | None:
    """The content of a multipart body with one part (RFC 2046 5.1), or the body itself when it is DICOM; None when cut off."""
    if kind.lower().startswith("application/dicom"):
        return body
    found = re.search(r'boundary="?([^";,]+)"?', kind)
    if found is None:
        return None
    boundary = b"--" + found[1].strip().encode("latin-1")
    start, end = body.find(boundary), body.rfind(b"\r\n" + boundary + b"--")
    head = body.find(b"\r\n\r\n", start)
    return None if start < 0 or head < 0 or end < head else body[head + 4 : end]
