"""A WebSocket over a plain socket, and on it an inner layer that a test can make misbehave.

Written from RFC 6455 and not with the library that the system uses, so that what that library would
never send can be sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from harness import PATIENCE

from sockgw.keys import PrivateKey, load_private_key
from sockgw.protocol.handshake import InnerHandshake, Welcome

__all__ = ["BINARY", "CLOSE", "TEXT", "Stranger", "WebSocket", "frame", "masked", "upgrade_request"]

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def upgrade_request(host: str = "127.0.0.1", subprotocol: str = "sockgw.1") -> bytes:
    """Return the head with which an inner layer begins."""
    lines = (
        "GET / HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Protocol: {subprotocol}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def masked(payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    """Return a frame as a client sends it (RFC 6455, section 5.2)."""
    first = (0x80 if fin else 0) | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, 0x80 | size)
    elif size < 65_536:
        head = struct.pack(">BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", first, 0x80 | 127, size)
    mask = os.urandom(4)
    repeated = mask * (size // 4 + 1)
    data = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return head + mask + data.to_bytes(size, "big")


class WebSocket:
    """The client's end of a WebSocket to a port on loopback."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
        upgrade: bytes = b"",
    ) -> None:
        """Connect and upgrade; ``upgrade`` is sent instead of our own request, if given."""
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self._file = self.socket.makefile("rb")
        self.socket.sendall(upgrade or upgrade_request(host))
        self.status = int(self._file.readline().split()[1])
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: Any) -> None:
        self._file.close()
        self.socket.close()

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        """Send a message of one frame."""
        self.socket.sendall(masked(payload, opcode))

    def receive(self) -> tuple[int, bytes] | None:
        """Return opcode and payload of the next frame; None when the connection has ended."""
        try:
            head = self._file.read(2)
            if len(head) < 2:
                return None
            size = head[1] & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._file.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._file.read(8))
            return head[0] & 0x0F, self._file.read(size)
        except ConnectionResetError:
            return None

    def wait_closed(self) -> int | None:
        """Read until the connection has ended; return the WebSocket's close code if one came."""
        code: int | None = None
        while received := self.receive():
            opcode, payload = received
            if opcode == CLOSE:
                (code,) = struct.unpack_from(">H", payload)
                with contextlib.suppress(ConnectionError):
                    self.send(payload, CLOSE)
        return code


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """Return a frame of our protocol, well-formed or not."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class Stranger(WebSocket):
    """An inner layer by hand. ``sign`` and the rest replace what an honest one would use."""

    def greet(
        self,
        key: Path | str,
        *,
        identifier: str = "",
        sign: Callable[[bytes], bytes] | None = None,
        host: str = "127.0.0.1",
        binding: bytes | None = None,
    ) -> InnerHandshake:
        """Send HELLO and keep the handshake for :meth:`prove`."""
        self.key: PrivateKey = load_private_key(key)
        self.handshake = InnerHandshake(
            nonce=os.urandom(32),
            fingerprint=self.key.public_key.fingerprint,
            sign=sign or self.key.sign,
            identifier=identifier,
            host=host,
            channel_binding=binding,
            agent="test",
        )
        self.send(frame(*self.handshake.start()))
        return self.handshake

    def challenge(self) -> bytes:
        """Return the payload of the CHALLENGE."""
        received = self.receive()
        assert received is not None, "no CHALLENGE came"
        kind = received[1][3]
        assert kind == 0x02, f"a frame of type {kind} came, and no CHALLENGE"
        return received[1][9:]

    def prove(self) -> None:
        """Answer the challenge."""
        answer = self.handshake.receive(0x02, self.challenge())
        assert not isinstance(answer, Welcome)
        self.send(frame(*answer))

    def welcome(self) -> Welcome:
        """Read the WELCOME."""
        received = self.receive()
        assert received is not None, "no WELCOME came"
        payload = received[1]
        outcome = self.handshake.receive(payload[3], payload[9 : 9 + int.from_bytes(payload[:3])])
        assert isinstance(outcome, Welcome)
        return outcome

    def enter(self, key: Path | str, **options: Any) -> Welcome:
        """Go through the whole handshake."""
        self.greet(key, **options)
        self.prove()
        return self.welcome()
