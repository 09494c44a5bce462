"""An origin that speaks HTTP/2 in memory, on h2's other side, and frames that h2 would not send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hpack import Encoder
from originfakes import Transport

__all__ = ["H2Peer", "frame"]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return any frame at all."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


class H2Peer:
    """The origin's end of a transport."""

    def __init__(self, transport: Transport, settings: dict[int, int] | None = None) -> None:
        self.transport = transport
        self.events: list[Event] = []
        self._encoder = Encoder()
        configuration = H2Configuration(
            client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = H2Connection(configuration)
        for code, value in (settings or {}).items():
            self.h2.local_settings[SettingCodes(code)] = value
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.pump()

    def pump(self) -> list[Event]:
        """Take what was sent, answer as far as h2 does so by itself; return what it was."""
        new: list[Event] = []
        while True:
            data = self.transport.drain()
            if data:
                new += self.h2.receive_data(data)
            reply = self.h2.data_to_send()
            if reply:
                self.transport.decrypted(reply)
            elif not data:
                break
        self.events += new
        return new

    def send(self, *frames: bytes) -> None:
        """Send what h2 has, and then frames of one's own."""
        self.transport.decrypted(self.h2.data_to_send() + b"".join(frames))

    def head(self, stream: int, *fields: tuple[str, str], end: bool = False) -> None:
        """Send a response's head."""
        self.h2.send_headers(stream, fields or [(":status", "200")], end_stream=end)
        self.send()

    def raw_head(
        self, stream: int, fields: Iterable[tuple[str, str]], flags: int = END_HEADERS
    ) -> bytes:
        """Return a frame with these fields, whatever they are."""
        return frame(HEADERS, flags, stream, self._encoder.encode(list(fields)))

    def data(self, stream: int, data: bytes = b"", end: bool = False) -> None:
        """Send a part of a response's body."""
        self.h2.send_data(stream, data, end_stream=end)
        self.send()

    def answer(self, stream: int, body: bytes = b"ok") -> None:
        """Send a whole response."""
        self.h2.send_headers(stream, [(":status", "200")])
        self.h2.send_data(stream, body, end_stream=True)
        self.send()

    def reset(self, stream: int, code: int) -> None:
        self.h2.reset_stream(stream, code)
        self.send()

    # what came

    def _of(self, kind: type[Any]) -> list[Any]:
        self.pump()
        return [event for event in self.events if type(event) is kind]

    @property
    def requests(self) -> list[int]:
        """The streams that were opened."""
        return [event.stream_id for event in self._of(RequestReceived)]

    def fields(self, stream: int) -> list[tuple[bytes, bytes]]:
        """Return the fields of a request."""
        (event,) = (each for each in self._of(RequestReceived) if each.stream_id == stream)
        return [(name, value) for name, value in event.headers]

    def body(self, stream: int) -> bytes:
        """Return what has come of a request's body."""
        return b"".join(each.data for each in self._of(DataReceived) if each.stream_id == stream)

    def ended(self, stream: int) -> bool:
        """Whether the request is complete."""
        return any(event.stream_id == stream for event in self._of(StreamEnded))

    def resets(self) -> list[tuple[int, int]]:
        """Return which streams were reset, with which code."""
        return [(event.stream_id, int(event.error_code)) for event in self._of(StreamReset)]
