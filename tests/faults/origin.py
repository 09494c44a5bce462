"""An origin in a process of its own (see control.py).

=========================== ==================================================================
``GET /bytes/SEED/SIZE``    content of that seed (content.py)
``PUT /sink/SEED/SIZE``     what came: number of bytes, SHA-256, longest pause, as JSON
``POST /echo``              sends the body back while it comes
``GET /small``              200 bytes
``POST /count/ID``          counts, and answers with the count
``PUT /stuck/BYTES``        reads so much of the body and then no more
=========================== ==================================================================
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import Counter
from typing import Any

from asyncwire import CutShort, Headers, Pauses, Wire, serve_control
from content import PIECE, Checked, Content

SMALL = bytes(200)


class Origin:
    """All of it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._counts: Counter[str] = Counter()
        self._step = 1
        self._open = 0
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, descriptor: int) -> None:
        accepting = asyncio.create_task(self._accept())
        commands = ("port", "counts", "twice", "release")
        await serve_control(descriptor, {name: getattr(self, name) for name in commands})
        accepting.cancel()

    async def port(self) -> dict[str, Any]:
        return {"port": self._listener.getsockname()[1]}

    async def counts(self) -> dict[str, Any]:
        return {"counts": self._counts, "open": self._open}

    async def twice(self) -> dict[str, Any]:
        """Count each request twice from now on: what checks the counts has to notice."""
        self._step = 2
        return {}

    async def release(self) -> dict[str, Any]:
        """Close the connections that are stuck."""
        self._released.set()
        self._released = asyncio.Event()
        return {}

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._serve(Wire(sock)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, wire: Wire) -> None:
        self._open += 1
        try:
            while True:
                first, fields = await wire.head()
                _, path, _ = first.split(" ")
                kind, *arguments = path.lstrip("/").split("/")
                await getattr(self, f"_{kind}")(wire, fields, *arguments)
        except (ConnectionError, CutShort):
            pass
        finally:
            self._open -= 1
            wire.close()

    async def _bytes(self, wire: Wire, fields: Headers, seed: str, length: str) -> None:
        size = int(length)
        content = Content(seed)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
        await wire.send(head)
        while size:
            piece = content.take(min(size, PIECE))
            size -= len(piece)
            await wire.send(piece)

    async def _sink(self, wire: Wire, fields: Headers, seed: str, length: str) -> None:
        checked, pauses = Checked(seed, int(length)), Pauses()
        async for piece in wire.body(fields):
            checked.add(piece)
            pauses.step()
        report = {
            "bytes": checked.received,
            "sha256": checked.sha256,
            "equal": checked.equal,
            "differs_at": checked.differs_at,
            "pause": pauses.longest,
        }
        await self._answer(wire, json.dumps(report).encode())

    async def _echo(self, wire: Wire, fields: Headers) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for piece in wire.body(fields):
            await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await wire.send(b"0\r\n\r\n")

    async def _small(self, wire: Wire, fields: Headers) -> None:
        await self._answer(wire, SMALL)

    async def _count(self, wire: Wire, fields: Headers, name: str) -> None:
        self._counts[name] += self._step
        async for _ in wire.body(fields):
            pass
        await self._answer(wire, str(self._counts[name]).encode())

    async def _stuck(self, wire: Wire, fields: Headers, after: str) -> None:
        left = int(after)
        if left:
            async for piece in wire.body(fields):
                left -= len(piece)
                if left <= 0:
                    break
        await self._released.wait()
        raise ConnectionAbortedError

    async def _answer(self, wire: Wire, body: bytes) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


if __name__ == "__main__":
    asyncio.run(Origin().run(int(sys.argv[1])))
