"""Clients in a process of their own (see control.py): transfers, probes, and misbehaviour.

Whatever a client sees comes back as a word: "ok", a status other than 200 as "502", "reset",
"refused", "cut short", "different" (the body is not what was sent), "timeout".
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from typing import Any

from asyncwire import CutShort, Pauses, Wire, serve_control
from content import PIECE, Checked, Content

RESET = struct.pack("ii", 1, 0)


class Status(Exception):
    """An answer other than 200."""


class Clients:
    """All of them."""

    def __init__(self) -> None:
        self._port = 0
        self._idle: list[Wire] = []
        self._probing: dict[int, asyncio.Event] = {}
        self._held: list[asyncio.Task[None]] = []

    async def run(self, descriptor: int) -> None:
        commands = ("port", "transfer", "probe", "end_probe", "hold", "release", "abort")
        await serve_control(descriptor, {name: getattr(self, name) for name in commands})

    async def port(self, port: int) -> dict[str, Any]:
        """Set the port that all connect to."""
        self._port = port
        return {}

    async def _connect(self, receive_buffer: int = 0) -> Wire:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        return Wire(sock)

    # ------------------------------------------------------------------ transfers

    async def transfer(
        self, kind: str, host: str, seed: str, size: int, timeout: float
    ) -> dict[str, Any]:
        """Perform one and tell all about it."""
        begun = time.monotonic()
        told: dict[str, Any] = {"bytes": 0, "equal": False, "differs_at": None, "pause": 0.0}
        saw = await self._saw(getattr(self, f"_{kind}")(host, seed, size, told), timeout)
        if saw == "ok" and not told["equal"]:
            saw = "different"
        ended = time.monotonic()
        return {
            **told,
            "kind": kind,
            "seed": seed,
            "size": size,
            "saw": saw,
            "begun": begun,
            "ended": ended,
        }

    async def _saw(self, work: Any, timeout: float) -> str:
        try:
            async with asyncio.timeout(timeout):
                await work
        except Status as status:
            return str(status)
        except TimeoutError:
            return "timeout"
        except CutShort:
            return "cut short"
        except ConnectionRefusedError:
            return "refused"
        except ConnectionError:
            return "reset"
        return "ok"

    async def _download(self, host: str, seed: str, size: int, told: dict[str, Any]) -> None:
        wire = await self._connect()
        try:
            await wire.send(_head("GET", host, f"/bytes/{seed}/{size}"))
            await self._check(wire, seed, size, told)
        finally:
            wire.close()

    async def _check(self, wire: Wire, seed: str, size: int, told: dict[str, Any]) -> None:
        checked, pauses = Checked(seed, size), Pauses()
        try:
            fields = await _expect_200(wire)
            pauses.step()
            async for piece in wire.body(fields):
                checked.add(piece)
                pauses.step()
        finally:
            told["bytes"] = checked.received
            told["differs_at"] = checked.differs_at
            pauses.step()
            told["pause"] = pauses.longest
        told["equal"] = checked.equal

    async def _upload(self, host: str, seed: str, size: int, told: dict[str, Any]) -> None:
        wire = await self._connect()
        try:
            await wire.send(_head("PUT", host, f"/sink/{seed}/{size}", size))
            await _send_content(wire, seed, size)
            fields = await _expect_200(wire)
            told.update(json.loads(await _whole(wire, fields)))
        finally:
            wire.close()

    async def _echo(self, host: str, seed: str, size: int, told: dict[str, Any]) -> None:
        wire = await self._connect()
        try:
            await wire.send(_head("POST", host, "/echo", size))
            async with asyncio.TaskGroup() as group:
                group.create_task(_send_content(wire, seed, size))
                group.create_task(self._check(wire, seed, size, told))
        except* (ConnectionError, Status) as errors:
            raise errors.exceptions[-1] from None
        finally:
            wire.close()

    # ------------------------------------------------------------------ probes

    async def probe(
        self, name: int, host: str, rate: float, method: str, path: str, timeout: float
    ) -> dict[str, Any]:
        """Send small requests at a steady rate, whether answers come or not, until ``end_probe``.

        ``*`` in the path becomes a number of each request. The answer has for each request its
        number, when it began, how long it took, and what the client saw.
        """
        over = self._probing[name] = asyncio.Event()
        samples: list[tuple[int, float, float, str]] = []

        async def one(number: int) -> None:
            begun = time.monotonic()
            saw = await self._saw(
                self._small(host, method, path.replace("*", str(number))), timeout
            )
            samples.append((number, begun, time.monotonic() - begun, saw))

        due = time.monotonic()
        number = 0
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                group.create_task(one(number))
                number += 1
                due += 1 / rate
                try:
                    async with asyncio.timeout(max(0, due - time.monotonic())):
                        await over.wait()
                except TimeoutError:
                    pass
        return {"samples": samples}

    async def end_probe(self, name: int) -> dict[str, Any]:
        self._probing.pop(name).set()
        return {}

    async def _small(self, host: str, method: str, path: str) -> None:
        wire = self._kept() if method == "GET" else None
        wire = wire or await self._connect()
        try:
            await wire.send(_head(method, host, path, None if method == "GET" else 0))
            await _whole(wire, await _expect_200(wire))
        except BaseException:
            wire.close()
            raise
        self._idle.append(wire)

    def _kept(self) -> Wire | None:
        """Return a connection that was used before and still stands, as far as one can see."""
        while self._idle:
            wire = self._idle.pop()
            try:
                wire.socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return wire
            except OSError:
                pass
            wire.close()
        return None

    # ------------------------------------------------------------------ those that misbehave

    async def hold(self, kind: str, host: str, count: int, after: int = 0) -> dict[str, Any]:
        """Begin ``count`` transfers of 1 GiB, which nobody reads beyond ``after`` bytes.

        "download": the clients stop reading; "upload": the origin does. They last until
        ``release``.
        """
        for _ in range(count):
            wire = await self._connect(65_536)
            self._held.append(asyncio.create_task(_stuck(wire, kind, host, after)))
        return {}

    async def release(self) -> dict[str, Any]:
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
        self._held.clear()
        return {}

    async def abort(self, host: str, count: int, at_a_time: int, seed: int) -> dict[str, Any]:
        """Perform ``count`` requests and leave each at a random point."""
        chance = random.Random(seed)
        limit = asyncio.Semaphore(at_a_time)

        async def one() -> None:
            async with limit:
                kind = chance.choice(("small", "bytes", "sink", "echo"))
                after = int(chance.expovariate(1 / 100_000))
                reset = chance.random() < 0.5
                await _abandon(await self._connect(), kind, host, after, reset)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
        return {}


def _head(method: str, host: str, path: str, length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _expect_200(wire: Wire) -> dict[str, str]:
    first, fields = await wire.head()
    status = first.split(" ")[1]
    if status != "200":
        raise Status(status)
    return fields


async def _whole(wire: Wire, fields: dict[str, str]) -> bytes:
    return b"".join([bytes(piece) async for piece in wire.body(fields)])


async def _send_content(wire: Wire, seed: str, size: int) -> None:
    content = Content(seed)
    while size:
        piece = content.take(min(size, PIECE))
        size -= len(piece)
        await wire.send(piece)


async def _stuck(wire: Wire, kind: str, host: str, after: int) -> None:
    size = 1 << 30
    try:
        if kind == "download":
            await wire.send(_head("GET", host, f"/bytes/stuck/{size}"))
            if after:
                async for piece in wire.body(await _expect_200(wire)):
                    after -= len(piece)
                    if after <= 0:
                        break
            await asyncio.Event().wait()
        else:
            await wire.send(_head("PUT", host, f"/stuck/{after}", size))
            await _send_content(wire, "stuck", size)
    finally:
        wire.close()


async def _abandon(wire: Wire, kind: str, host: str, after: int, reset: bool) -> None:
    """Begin a request, and leave after that many bytes of what is sent or comes."""
    size = 1 << 20
    try:
        async with asyncio.timeout(30):
            if kind == "small":
                await wire.send(_head("GET", host, "/small")[: 1 + after // 1000])
            elif kind == "bytes":
                await wire.send(_head("GET", host, f"/bytes/abandoned/{size}"))
                if after > 10_000:  # else before the answer
                    async for piece in wire.body(await _expect_200(wire)):
                        after -= len(piece)
                        if after <= 0:
                            break
            else:
                path = "/echo" if kind == "echo" else f"/sink/abandoned/{size}"
                await wire.send(_head("POST", host, path, size))
                await _send_content(wire, "abandoned", min(after, size - 1))
    except (ConnectionError, Status):
        pass
    finally:
        if reset:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.close()


if __name__ == "__main__":
    asyncio.run(Clients().run(int(sys.argv[1])))
