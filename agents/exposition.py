"""The agent's own HTTP door: /metrics for Prometheus, /-/healthy and /-/ready for whoever runs the agent."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from agents.metrics import AgentCollector, Counts
from agents.text_format import format_for, render

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class PortTaken(Exception):
    """The address cannot be listened on; the message says what to do."""


def make_app(collector: AgentCollector, counts: Counts, alive: Callable[[], bool]) -> WSGIApplication:
    """A WSGI application over what the loop counts; `alive` says whether its threads do their work."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return _metrics(environ, start_response, collector)
            case "/-/healthy":
                return _say(start_response, *(("200 OK", "ok") if alive() else _BROKEN))
            case "/-/ready":
                return _say(start_response, *_readiness(counts))
            case _:
                return _say(start_response, "404 Not Found", "see /metrics, /-/healthy, /-/ready")

    return app


def serve(host: str, port: int, app: WSGIApplication) -> WSGIServer:
    """Listen and answer in threads of their own until `shutdown()`. Raises PortTaken."""
    try:
        server = _Server((host, port), _QuietHandler)
    except OSError as error:
        raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    server.set_app(app)
    threading.Thread(target=server.serve_forever, name="exposition", daemon=True).start()
    return server


def _metrics(
    environ: WSGIEnvironment, start_response: StartResponse, collector: AgentCollector
) -> list[bytes]:
    content_type = format_for(environ.get("HTTP_ACCEPT", ""))
    body = render(collector.collect(), content_type)
    headers = [("Content-Type", content_type)]
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = gzip.compress(body, 1)
        headers.append(("Content-Encoding", "gzip"))
    start_response("200 OK", headers)
    return [body]


_BROKEN = ("503 Service Unavailable", "the loop has ended; see the log")


def _readiness(counts: Counts) -> tuple[str, str]:
    if not counts.stored:
        return "503 Service Unavailable", "the outbox cannot be written; see the disk"
    if not counts.collect_success:
        return "503 Service Unavailable", "no GPU was read in the last cycle"
    return "200 OK", "ready"


def _say(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without the library's reverse DNS look-up, which can hang for seconds on a bare node."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line for every scrape would be most of the log."""

    def address_string(self) -> str:
        """The caller's address as a number."""
        return str(self.client_address[0])
