"""An origin for uploads: reads a request's body to its end, then answers how much it was.

``python sink.py PORT``. A thread for each connection, which reads into one large buffer, so that
the sink takes as fast as a loop of recv(2) can.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading

BUFFER = 1 << 20  # bytes
MAX_HEAD = 1 << 16


class Cut(Exception):
    """The connection has ended."""


class Connection:
    """Reads requests, one after the other."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.buffer = memoryview(bytearray(BUFFER))
        self.start = 0
        self.end = 0

    def serve(self) -> None:
        with contextlib.suppress(Cut, ConnectionError), self.wire:
            while True:
                head = self.head()
                if re.search(rb"(?mi)^expect: *100-continue", head):
                    self.wire.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                if re.search(rb"(?mi)^transfer-encoding: *chunked", head):
                    size = self.chunks()
                else:
                    found = re.search(rb"(?mi)^content-length: *(\d+)", head)
                    size = int(found[1]) if found else 0
                    self.skip(size)
                body = b"%d\n" % size
                self.wire.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )

    def fill(self) -> None:
        """Read more behind what is there."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.end == BUFFER:
            rest = bytes(self.buffer[self.start : self.end])
            self.start, self.end = 0, len(rest)
            self.buffer[: self.end] = rest
        count = self.wire.recv_into(self.buffer[self.end :])
        if not count:
            raise Cut
        self.end += count

    def until(self, mark: bytes) -> bytes:
        """Return what comes before a mark, and go behind it."""
        while True:
            data = bytes(self.buffer[self.start : min(self.end, self.start + MAX_HEAD)])
            at = data.find(mark)
            if at >= 0:
                self.start += at + len(mark)
                return data[:at]
            if len(data) >= MAX_HEAD:
                raise Cut
            self.fill()

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def skip(self, size: int) -> None:
        """Go over some bytes."""
        while size:
            if self.start == self.end:
                self.fill()
            step = min(size, self.end - self.start)
            self.start += step
            size -= step

    def chunks(self) -> int:
        """Go over a chunked body; return its size."""
        total = 0
        while size := int(self.line().split(b";")[0], 16):
            self.skip(size)
            self.skip(2)
            total += size
        while self.line():
            pass
        return total

    def line(self) -> bytes:
        # Mostly short: a copy of a whole head for each would cost more than all the rest.
        data = bytes(self.buffer[self.start : min(self.end, self.start + 32)])
        at = data.find(b"\r\n")
        if at < 0:
            return self.until(b"\r\n")
        self.start += at + 2
        return data[:at]


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        wire, _ = listener.accept()
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(wire).serve, daemon=True).start()


if __name__ == "__main__":
    main()
