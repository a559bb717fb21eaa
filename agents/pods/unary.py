"""One gRPC call with one answer over a unix socket: as much of HTTP/2 as that takes, on the `h2` library.

grpcio would be the obvious choice and takes 17 MiB of memory where this takes 4.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

MOST_BYTES = 16 << 20
"""No answer is longer: gRPC's own limit is 4 MiB."""

_STATUS = {
    1: "cancelled",
    4: "deadline_exceeded",
    7: "permission_denied",
    8: "resource_exhausted",
    12: "unimplemented",
    13: "internal",
    14: "unavailable",
}


class CallFailed(Exception):
    """No answer; `reason` is a word for a label, the message for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def call(path: Path, method: str, request: bytes, timeout_s: float) -> bytes:
    """The answer's message, from a connection of its own. Raises CallFailed; takes no longer than `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            return _Call(connection, deadline_s).run(method, request)
    except TimeoutError as error:
        raise CallFailed("deadline_exceeded", f"no answer in {timeout_s:g} s") from error
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        raise CallFailed("absent" if absent else "broken", f"{path}: {error.strerror or error}") from error
    except ProtocolError as error:
        raise CallFailed("broken", f"not HTTP/2: {error}") from error


class _Call:
    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._socket, self._deadline_s = connection, deadline_s
        # strings are ASCII here; a name that is not is compared with nothing
        self._http = H2Connection(H2Configuration(header_encoding="latin-1"))
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._ended = False

    def run(self, method: str, request: bytes) -> bytes:
        self._http.initiate_connection()
        stream = self._http.get_next_available_stream_id()
        left_ms = max(1, round(1000 * (self._deadline_s - time.monotonic())))
        self._http.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("grpc-timeout", f"{left_ms}m"),
            ],
        )
        self._http.send_data(stream, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
        self._flush()
        while not self._ended:
            self._wait()
            received = self._socket.recv(1 << 16)
            if not received:
                raise CallFailed("broken", "the connection ended before the answer")
            for event in self._http.receive_data(received):
                self._take(event)
            self._flush()
        return self._answer()

    def _wait(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)

    def _flush(self) -> None:
        out = self._http.data_to_send()
        if out:
            self._wait()
            self._socket.sendall(out)

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self._headers |= {str(name): str(value) for name, value in event.headers or ()}
            case DataReceived():
                self._body += event.data or b""
                if len(self._body) > MOST_BYTES:
                    raise CallFailed("broken", f"the answer is longer than {MOST_BYTES} bytes")
                self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            case StreamReset() | ConnectionTerminated():
                raise CallFailed("broken", f"reset with {event.error_code}")
            case StreamEnded():
                self._ended = True
            case _:
                return

    def _answer(self) -> bytes:
        if self._headers.get(":status") != "200":
            raise CallFailed("broken", f"HTTP status {self._headers.get(':status')}")
        status = self._headers.get("grpc-status", "")
        if status != "0":
            number = int(status) if status.isdecimal() else -1
            raise CallFailed(_STATUS.get(number, "refused"), self._headers.get("grpc-message", "")[:200])
        if len(self._body) < 5:
            raise CallFailed("broken", "an answer without a message")
        packed, length = struct.unpack(">BI", self._body[:5])
        if packed or length != len(self._body) - 5:
            raise CallFailed("broken", "an answer that is not one plain message")
        return bytes(self._body[5:])


Caller = Callable[[Path, str, bytes, float], bytes]
"""`call`, or what a test puts in its place."""
