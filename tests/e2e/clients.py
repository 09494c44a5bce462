"""Clients: curl, which we did not write, and a socket for what curl does not do."""

from __future__ import annotations

import hashlib
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from harness import PATIENCE, environment, require

__all__ = ["Answer", "Client", "curl", "fetch", "sha256_of", "start_curl"]


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool  #: whether the end was marked, or else came with the connection's
    trailers: list[tuple[str, str]]

    def header(self, name: str) -> str | None:
        """Return a field's only value."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name}: {values}"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A connection to a port on loopback, and the reading of HTTP/1 responses on it."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((address, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file: BinaryIO = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, host: str, path: str = "/", method: str = "GET", **fields: str) -> None:
        """Send a head; an underscore in a field's name stands for a dash."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Read a response's head."""
        line = self.file.readline(65536).decode("latin-1")
        assert line.startswith("HTTP/1."), f"no status line: {line!r}"
        return int(line.split()[1]), self._fields()

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while (line := self.file.readline(65536).decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            fields.append((name, value.strip()))
        return fields

    def answer(self, *, head_only: bool = False) -> Answer:
        """Read a whole response, as RFC 9112 delimits it; interim ones before it are skipped."""
        status, headers = self.head()
        while status < 200:
            status, headers = self.head()
        fields = {name.lower(): value for name, value in headers}
        if head_only or status in (204, 304):
            return Answer(status, headers, b"", True, [])
        if "transfer-encoding" in fields:
            assert fields["transfer-encoding"] == "chunked"
            body, complete = self._chunked()
            return Answer(status, headers, body, complete, self._fields() if complete else [])
        if "content-length" in fields:
            length = int(fields["content-length"])
            body = self.file.read(length)
            return Answer(status, headers, body, len(body) == length, [])
        return Answer(status, headers, self.file.read(), False, [])

    def _chunked(self) -> tuple[bytes, bool]:
        body = b""
        while (line := self.file.readline(1024)).endswith(b"\r\n"):
            size = int(line.split(b";")[0], 16)
            if size == 0:
                return body, True
            data = self.file.read(size)
            body += data
            if len(data) < size or self.file.read(2) != b"\r\n":
                break
        return body, False

    def request(self, host: str, path: str = "/", method: str = "GET", **fields: str) -> Answer:
        """Send a request without a body and read its response."""
        self.ask(host, path, method, **fields)
        return self.answer(head_only=method == "HEAD")

    def ends(self) -> bool:
        """Wait for the end of what the server sends; return whether it sent nothing before."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def was_reset(self) -> bool:
        """Wait for the connection's end; return whether that was a reset."""
        try:
            while self.file.read(65536):
                pass
        except ConnectionResetError:
            return True
        return False

    def reset(self) -> None:
        """Cut the connection off."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def fetch(port: int, host: str, path: str = "/", method: str = "GET", **fields: str) -> Answer:
    """Perform one request without a body on a connection of its own."""
    with Client(port) as client:
        return client.request(host, path, method, **fields)


def _curl_command(port: int, arguments: tuple[str | Path, ...]) -> list[str]:
    return [
        *(require("curl"), "--silent", "--show-error", "--max-time", "120"),
        # Whatever the URL says, this is where it is; the Host field is the URL's.
        *("--connect-to", f"::127.0.0.1:{port}"),
        *(str(argument) for argument in arguments),
    ]


def curl(
    port: int, *arguments: str | Path, input: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run curl, whose requests all go to that port on loopback; ``input`` is for it to read."""
    return subprocess.run(
        _curl_command(port, arguments),
        env=environment(),
        input=input,
        capture_output=True,
        timeout=150,
        check=False,
    )


def start_curl(port: int, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start curl; to be used as a context manager."""
    return subprocess.Popen(
        _curl_command(port, arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def sha256_of(read: Callable[[int], bytes] | BinaryIO | Path) -> str:
    """Return the SHA-256 of a file's content, or of what ``read(size)`` gives until b""."""
    if isinstance(read, Path):
        with open(read, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    call = read if callable(read) else read.read
    digest = hashlib.sha256()
    for piece in _pieces(call):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(262_144):
        yield piece
