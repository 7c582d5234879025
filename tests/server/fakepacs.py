"""A DICOMweb server in this process, with the faults that PACSs have: away, silent, slow to page, cut off, refusing."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset

from lib.server.process import free_port

_HEADERS = ("StudyDate", "StudyTime", "Modality", "PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")


class FakePacs:
    """Holds the DICOM files that it was given; from `with` to the end of the block."""

    def __init__(self, files: Iterable[Path] = ()):
        self.held: dict[str, bytes] = {}
        """Content by SOP Instance UID."""
        self._headers: dict[str, Dataset] = {}
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and query of every request."""
        self.requests: list[dict[str, str]] = []
        """Their headers."""
        self.most = 10_000
        """Answers per page, whatever is asked for."""
        self.pages = True
        """Whether `offset` is understood."""
        self.silent_s = 0.0
        """How long an answer takes."""
        self.fault: Callable[[str, str], int | tuple[int, str] | None] = lambda method, path: None
        """The status, and body, to answer with instead; 0 cuts the connection in the middle of the answer."""
        self.forgets_answers = False
        """Stores, and hangs up before it says so."""
        self.port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        for path in files:
            self.add(path.read_bytes())

    def add(self, content: bytes) -> str:
        header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
        self.held[header.SOPInstanceUID] = content
        self._headers[header.SOPInstanceUID] = header
        return str(header.SOPInstanceUID)

    def remove(self, uid: str) -> None:
        del self.held[uid], self._headers[uid]

    def segs(self) -> list[Dataset]:
        return [header for header in self._headers.values() if header.Modality == "SEG"]

    def count(self, method: str, words: str) -> int:
        """How many requests of that kind had these words in their path."""
        return sum(method == asked and words in path for asked, path, _ in self.asked)

    def __enter__(self) -> "FakePacs":
        self.start()
        return self

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"pacs": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *arguments: None  # clients hang up: that is what is tested
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def found(self, level: str, study: str, series: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        groups: dict[str, list[Dataset]] = {}
        for header in self._headers.values():
            if study in ("", header.StudyInstanceUID) and series in ("", header.SeriesInstanceUID):
                key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}[level]
                groups.setdefault(str(header[key].value), []).append(header)
        answers = []
        for members in groups.values():
            if query.get("Modality") and members[0].Modality != query["Modality"][0]:
                continue
            item = Dataset()
            for keyword in (*_HEADERS, *(("SOPInstanceUID",) if level == "instances" else ())):
                if keyword in members[0]:
                    setattr(item, keyword, members[0][keyword].value)
            if level == "series":
                item.NumberOfSeriesRelatedInstances = len(members)
            answers.append(item.to_json_dict())
        start = int(query.get("offset", ["0"])[0]) if self.pages else 0
        return answers[start : start + min(self.most, int(query.get("limit", ["1000"])[0]))]

    def metadata(self, series: str) -> list[dict[str, Any]]:
        headers = [header for header in self._headers.values() if header.SeriesInstanceUID == series]
        return [header.to_json_dict() for header in headers]


class _Handler(BaseHTTPRequestHandler):
    pacs: FakePacs
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.pacs._server is None:
            self.close_connection = True
            return None
        address = urlsplit(self.path)
        path = address.path.removeprefix("/dicom-web/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.pacs.asked.append((self.command, path, address.query))
        self.pacs.requests.append({name.lower(): value for name, value in self.headers.items()})
        time.sleep(self.pacs.silent_s)
        fault = self.pacs.fault(self.command, path)
        if isinstance(fault, tuple):
            return self._send(fault[0], fault[1].encode(), "application/json")
        if fault:
            return self._send(fault, b'{"Message": "no"}', "application/json")
        if self.command == "POST":
            return self._store(body)
        found = re.fullmatch(r"(?:studies/([^/]+)/)?(?:series/([^/]+)/)?(studies|series|instances|metadata)", path)
        if found and found[3] == "metadata":
            return self._json(self.pacs.metadata(found[2]))
        if found:
            return self._json(self.pacs.found(found[3], found[1] or "", found[2] or "", parse_qs(address.query)))
        content = self.pacs.held.get(path.rpartition("/instances/")[2])
        if content is None:
            return self._send(404, b'{"Message": "unknown"}', "application/json")
        whole = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--cut--\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary=cut'
        if fault == 0:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
            return None
        return self._send(200, whole, kind)

    def _store(self, body: bytes) -> None:
        content = body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]
        uid = self.pacs.add(content)
        if self.pacs.forgets_answers:
            self.close_connection = True
            return None
        receipt = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}}]}}
        return self._json(receipt)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, found: Any) -> None:
        self._send(200, json.dumps(found).encode(), "application/dicom+json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "secret=1")
        self.end_headers()
        self.wfile.write(body)
