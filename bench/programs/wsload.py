"""A load of WebSocket messages, in a process of its own; prints its figures as JSON.

``wsload.py HOST PORT HOSTNAME PATH SECONDS CONNECTIONS WINDOW``: each connection keeps WINDOW
messages under way, and sends the next one for each that has come back. Each message has 125 bytes,
masked as clients must, and each echo is compared. With one connection and a window of one the time
from one message to its echo is the latency; the median and the 99th percentile are told of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import selectors
import socket
import sys
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SIZE = 125  # bytes
PATIENCE = 10.0  # seconds without an echo
PAYLOAD = bytes(range(SIZE))
MASK = os.urandom(4)
MESSAGE = bytes((0x82, 0x80 | SIZE)) + MASK + bytes(c ^ MASK[i % 4] for i, c in enumerate(PAYLOAD))
ECHO = bytes((0x82, SIZE)) + PAYLOAD


class Problem(Exception):
    """Something other than the echo came."""


class Connection:
    """Sends messages and checks their echoes."""

    def __init__(self, address: tuple[str, int], host: str, path: str) -> None:
        self.wire = socket.create_connection(address, PATIENCE)
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16))
        self.wire.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = self.wire.recv(1)
            if not data:
                raise Problem(f"the connection ended at the handshake, after {head[:60]!r}")
            head += data
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        if b" 101 " not in head.split(b"\r\n")[0] or accept not in head:
            raise Problem(f"the handshake was answered with {head[:60]!r}")
        self.part = 0  # bytes of an echo that has come in part
        self.pattern = ECHO * 2001

    def fileno(self) -> int:
        return self.wire.fileno()

    def send(self, count: int) -> None:
        self.wire.sendall(MESSAGE * count)

    def receive(self) -> int:
        """Read; return how many echoes are complete by it."""
        data = self.wire.recv(2000 * len(ECHO) - len(ECHO))
        if not data:
            raise Problem("the connection ended")
        if data != self.pattern[self.part : self.part + len(data)]:
            raise Problem("an echo is not what was sent")
        count, self.part = divmod(self.part + len(data), len(ECHO))
        return count


def latency(connection: Connection, end: float) -> dict[str, object]:
    """Send one message at a time."""
    times = []
    now = began = time.perf_counter()
    while now < end:
        connection.send(1)
        while not connection.receive():
            pass
        before, now = now, time.perf_counter()
        times.append(now - before)
    times.sort()
    return {
        "messages": len(times),
        "seconds": now - began,
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
    }


def rate(connections: list[Connection], window: int, end: float) -> dict[str, object]:
    """Keep a window of messages under way on each connection."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection, selectors.EVENT_READ)
        connection.send(window)
    messages = 0
    now = began = time.perf_counter()
    while now < end:
        ready = selector.select(PATIENCE)
        if not ready:
            raise Problem(f"no echo within {PATIENCE:g} s")
        for key, _ in ready:
            count = key.fileobj.receive()  # type: ignore[union-attr]
            if count:
                messages += count
                key.fileobj.send(count)  # type: ignore[union-attr]
        now = time.perf_counter()
    return {"messages": messages, "seconds": now - began}


def main() -> None:
    host, port, name, path, seconds, count, window = sys.argv[1:]
    try:
        connections = [Connection((host, int(port)), name, path) for _ in range(int(count))]
        end = time.perf_counter() + float(seconds)
        if count == window == "1":
            result = latency(connections[0], end)
        else:
            result = rate(connections, int(window), end)
    except (OSError, Problem) as error:
        result = {"problem": str(error) or repr(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
