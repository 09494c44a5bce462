"""What lies between an inner and an outer layer: it can be cut, listened to, and tampered with."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import Any, Self

from harness import PATIENCE, listening_socket

__all__ = ["Cable", "ConnectProxy"]


class Cable:
    """Passes connections to its own port on to another one.

    The port stays when what it leads to is exchanged (``target``; None: nobody is there). With
    ``server`` and ``client`` contexts TLS ends here, and begins again. With ``every`` all
    connections end whenever so many more bytes have come, the last of which are lost.
    """

    def __init__(
        self,
        target: int | None,
        *,
        server: ssl.SSLContext | None = None,
        client: ssl.SSLContext | None = None,
        record: bool = True,
    ) -> None:
        self.target = target
        self.every: int | None = None
        self.cuts = 0
        self._passed = 0
        self._record = record
        self._server = server
        self._client = client
        self._listener = listening_socket()
        self.port: int = self._listener.getsockname()[1]
        #: When connections came, in seconds of the monotonic clock.
        self.accepted: list[float] = []
        #: For each connection, all that was sent towards the target.
        self.recordings: list[bytearray] = []
        self._wires: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *reason: Any) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a cable's thread does not end"

    def cut(self) -> None:
        """End all connections."""
        self.cuts += 1
        for wire in list(self._wires):
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def _start(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            self._start(self._serve, wire)

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            near.settimeout(PATIENCE)
            if self._server is not None:
                near = self._server.wrap_socket(near, server_side=True)
            stack.enter_context(near)
            target = self.prologue(near)
            if target is None:
                return
            far = socket.create_connection(("127.0.0.1", target), PATIENCE)
            if self._client is not None:
                far = self._client.wrap_socket(far, server_hostname="localhost")
            stack.enter_context(far)
            for wire in (near, far):  # it is to be as short as it looks
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wires |= {near, far}
            stack.callback(self._wires.difference_update, (near, far))
            recording = bytearray()
            self.recordings.append(recording)
            while True:
                for wire in _readable(near, far):
                    data = wire.recv(65_536)
                    if not data or self._too_many(len(data)):
                        return
                    if wire is near:
                        if self._record:
                            recording += data
                        far.sendall(data)
                    else:
                        near.sendall(data)

    def _too_many(self, size: int) -> bool:
        self._passed += size
        if self.every is None or self._passed < self.every:
            return False
        self._passed = 0
        self.cut()
        return True

    def prologue(self, near: socket.socket) -> int | None:
        """Return the port to pass a new connection on to."""
        return self.target


def _readable(*wires: socket.socket) -> list[socket.socket]:
    pending = [wire for wire in wires if isinstance(wire, ssl.SSLSocket) and wire.pending()]
    return pending or select.select(wires, [], [])[0]


class ConnectProxy(Cable):
    """An HTTP proxy that knows CONNECT, and one host name."""

    def __init__(self, host: str, target: int) -> None:
        super().__init__(target)
        self._host = host
        #: The heads of all requests.
        self.requests: list[str] = []

    def prologue(self, near: socket.socket) -> int | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = near.recv(1)  # one by one: what follows is not ours
            if not byte:
                return None
            head += byte
        self.requests.append(head.decode("latin-1"))
        if not self.requests[-1].startswith(f"CONNECT {self._host}:"):
            near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return None
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return self.target
