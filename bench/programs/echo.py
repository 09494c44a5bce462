"""An origin for WebSockets: sends each message back. ``python echo.py PORT``.

Messages have up to 125 bytes and are not fragmented, as those of wsload.py. What asks for no
upgrade gets a 200. One loop over all connections, with little work for each message: the origin
must not be what is measured.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import selectors
import socket
import sys

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE = 8


class Connection:
    """One client's."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.received = b""
        self.upgraded = False

    def ready(self) -> bool:
        """Read and answer; return whether the connection goes on."""
        data = self.wire.recv(1 << 18)
        if not data:
            return False
        self.received += data
        return self.echo() if self.upgraded else self.handshake()

    def handshake(self) -> bool:
        head, mark, rest = self.received.partition(b"\r\n\r\n")
        if not mark:
            return True
        self.received = rest
        key = re.search(rb"(?mi)^sec-websocket-key: *(\S+)", head)
        if key is None:
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\necho\n")
            return True
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.upgraded = True
        return self.echo()

    def echo(self) -> bool:
        data, at, answers = self.received, 0, []
        going_on = True
        while len(data) - at >= 6:
            size = data[at + 1] & 0x7F
            end = at + 6 + size
            if len(data) < end:
                break
            mask = data[at + 2 : at + 6] * (size // 4 + 1)
            plain = int.from_bytes(data[at + 6 : end]) ^ int.from_bytes(mask[:size])
            answers.append(bytes((data[at], size)) + plain.to_bytes(size))
            going_on = data[at] & 0x0F != CLOSE
            at = end
        self.received = data[at:]
        if answers:
            self.send(b"".join(answers))
        return going_on

    def send(self, data: bytes) -> None:
        self.wire.settimeout(10)
        self.wire.sendall(data)


def main() -> None:
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                wire, _ = listener.accept()
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(wire, selectors.EVENT_READ, Connection(wire))
                continue
            going_on = False
            with contextlib.suppress(OSError):
                going_on = key.data.ready()
            if not going_on:
                selector.unregister(key.fileobj)
                key.data.wire.close()


if __name__ == "__main__":
    main()
