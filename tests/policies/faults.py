"""A small real HTTP server that answers chat completions as scripted: what a healthy model server does not do on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lib.agent.protocol import Reply, Terminate, render

STOP = render(Reply("right", Terminate("done")))


class Call(BaseHTTPRequestHandler):
    """One request. An answer is a function of it."""

    protocol_version = "HTTP/1.1"
    server: "FaultyServer"
    body: dict[str, Any]

    def do_GET(self) -> None:
        status, content = self.server.pages.get(self.path, (404, {"detail": "Not Found"}))
        self.reply(status, content)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.calls.append(self.body)
            self.server.keys.add(self.headers["Authorization"])
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
            answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.active -= 1

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events: Iterable[dict[str, Any] | str], end: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if end:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


Answer = Callable[[Call], None]


def chunk(text: str | None = None, finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    """One piece of a reply, as the API streams it."""
    content = {} if text is None else {"content": text}
    return {"id": "1", "choices": [{"index": 0, "delta": content | delta, "finish_reason": finish, "logprobs": logprobs}]}


def says(*texts: str, wait_s: float = 0.0) -> Answer:
    """A reply in pieces, the server's token counts behind it."""

    def events() -> Iterable[dict[str, Any] | str]:
        for text in texts:
            time.sleep(wait_s)
            yield chunk(text)
        yield chunk(finish="stop")
        yield {"id": "1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 9}}
        yield "[DONE]"

    return lambda call: call.stream(events())


def says_on(text: str, wait_s: float = 0.01) -> Answer:
    """A reply, and words behind it for ever."""

    def events() -> Iterable[dict[str, Any] | str]:
        yield chunk(text)
        while True:
            time.sleep(wait_s)
            yield chunk(" and so on")

    return lambda call: call.stream(events())


def breaks_off(text: str) -> Answer:
    """Half a reply, and the connection is gone."""
    return lambda call: call.stream([chunk(text)], end=False)


def garbles(call: Call) -> None:
    """A stream that is not JSON."""
    call.stream(["{broken"])


def echoes(call: Call) -> None:
    """Thinks what it was asked."""
    asked = call.body["messages"][-1]["content"][-1]["text"]
    says(render(Reply(asked.removeprefix("<image>"), Terminate("done"))))(call)


def refuses(status: int, message: str = "no", **headers: str) -> Answer:
    return lambda call: call.reply(status, {"detail": message}, {name.replace("_", "-"): v for name, v in headers.items()})


class FaultyServer(ThreadingHTTPServer):
    """Gives the answers in order, the last one again and again, from `with` to the end of the block."""

    daemon_threads = True

    def __init__(self, *answers: Answer, pages: dict[str, tuple[int, Any]] | None = None):
        super().__init__(("127.0.0.1", 0), Call)
        self.answers = list(answers or (says(STOP),))
        self.pages = pages or {}
        self.calls: list[dict[str, Any]] = []
        """The bodies of the requests."""
        self.keys: set[str] = set()
        """The Authorization headers that came with them."""
        self.active = self.most_active = 0
        self.hung_up = threading.Event()
        """Set when the client closes a stream that goes on."""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()
