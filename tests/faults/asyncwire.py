"""HTTP/1.1 on a socket for asyncio: bodies by the piece, and their longest pause."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from content import PIECE

__all__ = ["CutShort", "Headers", "Pauses", "Wire", "serve_control"]

Headers = dict[str, str]


class CutShort(ConnectionError):
    """The peer ended within a message."""


class Wire:
    """A connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._buffer = bytearray(PIECE)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what is read and not used
        self._loop = asyncio.get_running_loop()

    async def _fill(self) -> bool:
        """Read more behind what is there; return whether something came."""
        if self._start:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = await self._loop.sock_recv_into(self.socket, self._view[self._end :])
        self._end += count
        return count > 0

    async def _line(self) -> bytes:
        while (at := self._buffer.find(b"\r\n", self._start, self._end)) < 0:
            if not await self._fill():
                raise CutShort("within a line" if self._end > self._start else "before a line")
        line = bytes(self._view[self._start : at])
        self._start = at + 2
        return line

    async def head(self) -> tuple[str, Headers]:
        """Return the first line, and the fields by names in lower case."""
        first = (await self._line()).decode("latin-1")
        fields: Headers = {}
        while line := (await self._line()).decode("latin-1"):
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        return first, fields

    async def body(self, fields: Headers) -> AsyncIterator[memoryview]:
        """Yield the pieces of a body that has a length or is chunked, else nothing.

        A piece is good until the next one is asked for.
        """
        if fields.get("transfer-encoding") == "chunked":
            while size := int((await self._line()).split(b";")[0], 16):
                async for piece in self._exactly(size):
                    yield piece
                if await self._line():
                    raise CutShort("a chunk does not end where it should")
            while await self._line():
                pass
        else:
            async for piece in self._exactly(int(fields.get("content-length", 0))):
                yield piece

    async def _exactly(self, size: int) -> AsyncIterator[memoryview]:
        while size:
            if self._start == self._end:
                self._start = self._end = 0
                if not await self._fill():
                    raise CutShort(f"{size} bytes early")
            count = min(size, self._end - self._start)
            begin, self._start = self._start, self._start + count
            size -= count
            yield self._view[begin : begin + count]
            await asyncio.sleep(0)  # a socket that always has data does not let others run

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)
        if len(data) > 4096:
            await asyncio.sleep(0)

    def close(self) -> None:
        self.socket.close()


class Pauses:
    """The longest time between two steps."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.longest = 0.0

    def step(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now


Commands = dict[str, Callable[..., Awaitable[dict[str, Any]]]]


async def serve_control(descriptor: int, commands: Commands) -> None:
    """Carry out commands, several at a time, until the socket ends (see control.py)."""
    control = socket.socket(fileno=descriptor)
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    lock = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()

    async def obey(number: int, command: str, **arguments: Any) -> None:
        try:
            answer = await commands[command](**arguments)
        except Exception as error:  # noqa: BLE001 - raised in the test
            answer = {"error": repr(error)}
        async with lock:
            line = json.dumps({"number": number, **answer}).encode() + b"\n"
            await loop.sock_sendall(control, line)

    received = b""
    while True:
        try:
            data = await loop.sock_recv(control, 1 << 20)
        except ConnectionResetError:
            return
        if not data:
            return
        *lines, received = (received + data).split(b"\n")
        for line in lines:
            task = asyncio.create_task(obey(**json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
