"""A client of HTTP/2 on a socket that a test can make slow, odd or hostile."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from harness import PATIENCE

__all__ = ["H2Wire"]


class H2Wire:
    """A connection to a port on loopback, in clear text or with TLS.

    It gives windows back for the streams in ``reading``, and for no others.
    """

    def __init__(
        self, port: int, context: ssl.SSLContext | None = None, name: str = "", window: int = 65_535
    ) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            context.set_alpn_protocols(["h2", "http/1.1"])
            self.socket = context.wrap_socket(self.socket, server_hostname=name)
            assert self.socket.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.local_settings.initial_window_size = window
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**30)
        self.flush()
        self.scheme = "http" if context is None else "https"
        #: Streams whose windows are given back.
        self.reading: set[int] = set()
        self.heads: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.sink: Callable[[int, bytes], Any] = lambda stream, data: self.bodies[stream].extend(
            data
        )
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goodbyes: list[int] = []
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.socket.close()

    def flush(self, more: bytes = b"") -> None:
        data = self.h2.data_to_send() + more
        if data:
            self.socket.sendall(data)

    def ask(
        self,
        host: str,
        path: str = "/",
        method: str = "GET",
        *fields: tuple[str, str],
        end: bool = True,
        read: bool = True,
    ) -> int:
        """Send a request's head; return the stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", self.scheme), (":path", path)]
        pseudo = [field for field in fields if field[0].startswith(":")]
        others = [field for field in fields if not field[0].startswith(":")]
        self.h2.send_headers(
            stream, [*head, (":authority", host), *pseudo, *others], end_stream=end
        )
        self.flush()
        self.bodies[stream] = bytearray()
        if read:
            self.reading.add(stream)
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Send a body, as fast as it is taken."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), 16_384)
            if room == 0:
                self.receive()
                assert stream not in self.resets, "reset"
                continue
            self.h2.send_data(stream, bytes(view[:room]))
            view = view[room:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def receive(self) -> None:
        """Wait for something, and take it."""
        try:
            data = self.socket.recv(262_144)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, ResponseReceived):
                self.heads[event.stream_id or 0] = dict(event.headers or ())  # type: ignore[arg-type]
            elif isinstance(event, DataReceived):
                stream, size = event.stream_id or 0, event.flow_controlled_length or 0
                self.sink(stream, event.data or b"")
                if stream in self.reading and size:
                    with contextlib.suppress(StreamClosedError):
                        self.h2.increment_flow_control_window(size, stream)
                if size:
                    self.h2.increment_flow_control_window(size)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id or 0)
            elif isinstance(event, StreamReset):
                self.resets[event.stream_id or 0] = int(event.error_code or 0)
            elif isinstance(event, ConnectionTerminated):
                self.goodbyes.append(int(event.error_code or 0))
        self.flush()

    def until(self, condition: Callable[[], Any]) -> None:
        """Take what comes until something is so; fail once nothing can come any more."""
        while not condition():
            assert not self.closed, f"closed: {self.goodbyes} {self.resets}"
            self.receive()

    def answer(self, stream: int) -> tuple[str, bytes]:
        """Wait for the end of a response; return its status and body."""
        self.until(lambda: stream in self.ended or stream in self.resets)
        assert stream not in self.resets, ErrorCodes(self.resets[stream])
        return self.heads[stream][":status"], bytes(self.bodies[stream])

    def pieces(self, stream: int) -> Iterator[bytes]:
        """Give the body of what is switched, as it comes."""
        while True:
            self.until(lambda: self.bodies[stream] or stream in self.ended)
            if not self.bodies[stream]:
                return
            data = bytes(self.bodies[stream])
            self.bodies[stream].clear()
            yield data

    def settings(self, **values: int) -> None:
        """Say something else of ourselves."""
        self.h2.update_settings({SettingCodes[name.upper()]: n for name, n in values.items()})
        self.flush()
