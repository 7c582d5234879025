"""A hub on loopback: the routes of the Hugging Face hub that listing and fetching need, over real HTTP, able to misbehave."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".pt")


class Hub:
    """Serves `root/<owner>/<name>/...` as model repositories, at one commit. Large files redirect to another host, a CDN."""

    def __init__(self, root: Path):
        self.root = root
        self.url = ""
        self.cut_after: int | None = None
        """Close the connection after so many bytes of a large file, once."""
        self.dies = False
        """With that, answer 503 from then on."""
        self.down = False
        self.corrupt = False
        """Large files come with other bytes than listed."""
        self.pretended: int | None = None
        """Size that is listed for large files."""
        self.downloads: list[tuple[str, str]] = []
        """Name and Range header of every download."""

    def tree(self, repo: str) -> list[dict[str, object]]:
        entries = []
        for path in sorted((self.root / repo).rglob("*")):
            if path.is_file():
                content, name = path.read_bytes(), path.relative_to(self.root / repo).as_posix()
                size = self.pretended or len(content) if name.endswith(_LARGE) else len(content)
                oid = sha1(b"blob %d\0" % len(content) + content).hexdigest()
                entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": oid}
                if name.endswith(_LARGE):
                    entry["lfs"] = {"oid": sha256(content).hexdigest(), "size": size, "pointerSize": 134}
                entries.append(entry)
        return entries

    def siblings(self, repo: str) -> list[dict[str, object]]:
        siblings = []
        for entry in self.tree(repo):
            sibling = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            if isinstance(lfs := entry.get("lfs"), dict):
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
            siblings.append(sibling)
        return siblings


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            parts = path.split("/")
            if hub.down:
                self._send(503, b"")
            elif parts[:2] == ["api", "models"]:
                self._api("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "cdn":
                self._file("/".join(parts[1:3]), "/".join(parts[3:]))
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._send(404, b"")

        def _api(self, repo: str, rest: list[str]) -> None:
            if not (hub.root / repo).is_dir():
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                self._send(200, json.dumps(hub.tree(repo)).encode())
            else:
                body = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": []}
                self._send(200, json.dumps(body | {"siblings": hub.siblings(repo)}).encode())

        def _resolve(self, repo: str, name: str) -> None:
            entry = next((entry for entry in hub.tree(repo) if entry["path"] == name), None)
            if entry is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{entry["oid"]}"'}
            if isinstance(lfs := entry.get("lfs"), dict):
                headers |= {"X-Linked-ETag": f'"{lfs["oid"]}"', "X-Linked-Size": str(lfs["size"])}
                self._send(302, b"", headers | {"Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{repo}/{name}"})
            else:
                self._file(repo, name, headers)

        def _file(self, repo: str, name: str, headers: dict[str, str] | None = None) -> None:
            content = (hub.root / repo / name).read_bytes()
            asked = self.headers.get("Range", "")
            if self.command == "GET":
                hub.downloads.append((name, asked))
            large = name.endswith(_LARGE)
            if hub.corrupt and large:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
            self._send(206 if asked else 200, content[start:], (headers or {}) | extra, hub.cut_after if large else None)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[:cut])
            if cut is not None:
                hub.cut_after = None
                hub.down = hub.dies
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
