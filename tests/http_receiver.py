"""A real HTTP receiver on loopback: keeps what is posted, answers as it is told to, and can hold its answers back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    port: int = 0
    status: int = 200
    posts: list[dict[str, Any]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    trickle_seconds: float = 0.0  # between the bytes of an answer that never ends

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.port}/"

    @property
    def keys(self) -> list[str]:
        return [post["key"] for post in self.posts]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.go_on.set()
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = {"path": self.path, "key": self.headers["Idempotency-Key"], "title": body["title"]}
            receiver.posts.append(told | {"text": body["message"], "type": body["type"]})
            receiver.arrived.set()
            receiver.go_on.wait(30)
            while receiver.trickle_seconds and not stop.wait(receiver.trickle_seconds):
                self.wfile.write(b"H")
                self.wfile.flush()
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a sender was killed

    server = Server(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        stop.set()
        receiver.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
