"""Origins: nginx and Python's http.server as others run them, and scripts that misbehave."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from harness import PATIENCE, Process, listening_socket, require, wait_until

__all__ = ["Connection", "Nginx", "Origin", "PythonServer", "Request", "answering"]


@dataclass
class Request:
    """The head of a request as an origin got it."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Return the values of a field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """Return the value of a field that stands there once at most."""
        values = self.all(name)
        assert len(values) <= 1, f"{name}: {values}"
        return values[0] if values else None


class Connection:
    """A connection as an origin's script sees it."""

    def __init__(self, wire: socket.socket, requests: list[Request]) -> None:
        self.socket = wire
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = wire.makefile("rb")
        self._requests = requests

    def request(self) -> Request | None:
        """Read a request's head; None if the connection ended before."""
        line = self.file.readline(65536).decode("latin-1").rstrip("\r\n")
        if not line:
            return None
        request = Request(*line.split(" "))
        while field := self.file.readline(65536).decode("latin-1").rstrip("\r\n"):
            name, _, value = field.partition(":")
            request.headers.append((name, value.strip()))
        self._requests.append(request)
        return request

    def pieces(self, request: Request) -> Iterator[bytes]:
        """Read a request's body, piece by piece as it comes."""
        if request.header("Transfer-Encoding") == "chunked":
            while size := int(self.file.readline(1024).split(b";")[0], 16):
                yield self._exactly(size)
                assert self.file.readline(3) == b"\r\n"
            while self.file.readline(65536).rstrip(b"\r\n"):
                pass
            return
        left = int(request.header("Content-Length") or 0)
        while left:
            piece = self.file.read1(min(left, 262_144))  # type: ignore[attr-defined]
            if not piece:
                raise ConnectionResetError("the body is cut short")
            left -= len(piece)
            yield piece

    def body(self, request: Request) -> bytes:
        """Read a request's whole body."""
        return b"".join(self.pieces(request))

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise ConnectionResetError("the body is cut short")
        return data

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, body: bytes = b"", status: str = "200 OK", *fields: str) -> None:
        """Send a response with a Content-Length."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    def chunk(self, data: bytes) -> None:
        """Send a chunk."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def wait_gone(self, patience: float = PATIENCE) -> None:
        """Read until the peer has closed the connection."""
        self.socket.settimeout(patience)
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass

    def reset(self) -> None:
        """Cut the connection off."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


Script = Callable[[Connection], None]
"""What an origin does with a connection; a thread of its own runs it."""


class Origin:
    """Runs a script for each connection, on a port of its own."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._context = context
        self._listener = listening_socket()
        self.port: int = self._listener.getsockname()[1]
        #: Heads of all requests that were read, in order.
        self.requests: list[Request] = []
        #: How many connections there were.
        self.accepted = 0
        self._errors: list[BaseException] = []
        self._wires: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in list(self._wires):
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "an origin's script does not end"
        if error is None and self._errors:
            raise self._errors[0]

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._wires.add(wire)
            self._start(self._serve, wire)

    def _serve(self, wire: socket.socket) -> None:
        try:
            if self._context is not None:
                self._wires.discard(wire)
                wire = self._context.wrap_socket(wire, server_side=True)
                self._wires.add(wire)
            connection = Connection(wire, self.requests)
            try:
                self._script(connection)
            finally:
                connection.close()
        except (ConnectionError, ssl.SSLError):
            pass  # the peer went away: whether it should have is for the test to say
        except BaseException as error:  # noqa: BLE001 - raised when the test is done
            self._errors.append(error)
        finally:
            self._wires.discard(wire)
            wire.close()


def answering(respond: Callable[[Connection, Request], None]) -> Script:
    """Return a script that calls ``respond`` for each request of a connection."""

    @functools.wraps(respond)
    def script(connection: Connection) -> None:
        while request := connection.request():
            respond(connection, request)

    return script


class Nginx(Process):
    """nginx with the given ``location`` blocks, which serves files of ``root``."""

    def __init__(self, directory: Path, root: Path, locations: str = "", listen: str = "") -> None:
        """``listen`` is more of that directive, such as ``ssl http2``."""
        # nginx cannot be told to choose a port. It takes over a socket that listens already, as it
        # does from itself when its executable is replaced.
        with listening_socket() as listener:
            self.port: int = listener.getsockname()[1]
            configuration = directory / "nginx.conf"
            # As root it would give its worker to somebody who cannot read our files.
            user = "user root;" if os.geteuid() == 0 else ""
            configuration.write_text(_NGINX % (user, self.port, listen, root, locations))
            for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
                (directory / name).mkdir(exist_ok=True)
            super().__init__(
                "nginx",
                [require("nginx"), "-e", "stderr", "-p", directory, "-c", configuration],
                directory,
                env={"NGINX": f"{listener.fileno()};"},
                pass_fds=(listener.fileno(),),
            )
        wait_until(self._answers, "nginx answers")

    def _answers(self) -> bool:
        assert self.status is None, self.log.lines()
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as wire:
            wire.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return wire.recv(1) != b""  # in HTTP/2 it is a frame


_NGINX = """
%s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    client_max_body_size 0;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:%d %s;
        root %s;
        location = /empty { return 204; }
        %s
    }
}
"""


class PythonServer(Process):
    """Python's own http.server with the files of ``root``."""

    def __init__(self, directory: Path, root: Path, python: str) -> None:
        super().__init__(
            "http.server",
            [python, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", root],
            directory,
        )
        line = self.log.wait(r"Serving HTTP on .* port \d+")
        self.port = int(re.search(r"port (\d+)", line)[1])  # type: ignore[index]

    def stop(self) -> None:
        """It knows no good end: SIGTERM kills it."""
        self.kill()
