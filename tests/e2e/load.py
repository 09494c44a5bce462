"""A load in a process of its own, which takes note of every request that is not answered well.

``python load.py PORT HOST REQUESTS_PER_SECOND SECONDS``: a part of the requests comes on
connections of their own, the rest on kept ones. It prints how many were answered, and what went
wrong with the others, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

KEPT = 25  # connections that are kept
OWN_SHARE = 0.3  # of the requests on connections of their own
TIMEOUT = 8.0  # seconds; longer than anybody is held
BODY = b"hello\n"


class Load:
    """Requests, and what became of them."""

    def __init__(self, port: int, host: str, rate: float, seconds: float) -> None:
        self.port = port
        self.request = f"GET /hello HTTP/1.1\r\nHost: {host}\r\n".encode()
        self.rate = rate
        self.seconds = seconds
        self.good = 0
        self.reconnected = 0
        self.problems: Counter[str] = Counter()

    async def run(self) -> None:
        self.end = asyncio.get_running_loop().time() + self.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(KEPT):
                group.create_task(self.keep(number))
            group.create_task(self.come_and_go(group))

    async def keep(self, number: int) -> None:
        """Ask again and again on one connection, until the server says that it closes it."""
        interval = KEPT / (self.rate * (1 - OWN_SHARE))
        loop = asyncio.get_running_loop()
        due = loop.time() + interval * number / KEPT
        connection = None
        while due < self.end:
            await asyncio.sleep(max(0, due - loop.time()))
            due += interval
            if connection is not None and connection[0].at_eof():
                connection[1].close()
                connection = None
            connection = await self.ask(connection, keep=True)
        if connection is not None:
            connection[1].close()

    async def come_and_go(self, group: asyncio.TaskGroup) -> None:
        """Ask on connections of their own, whatever becomes of those before."""
        interval = 1 / (self.rate * OWN_SHARE)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while due < self.end:
            await asyncio.sleep(max(0, due - loop.time()))
            due += interval
            group.create_task(self.ask(None, keep=False))

    async def ask(
        self,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
        keep: bool,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Perform a request; return the connection if it can take another one."""
        stage = "connecting"
        where = "own" if not keep else "new" if connection is None else "kept"
        writer = None
        try:
            async with asyncio.timeout(TIMEOUT):
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self.port)
                    self.reconnected += keep
                reader, writer = connection
                stage = "sending"
                writer.write(self.request + (b"\r\n" if keep else b"Connection: close\r\n\r\n"))
                stage = "awaiting the head"
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.lower().split(b"\r\n")
                stage = "reading the body"
                length = next(int(f[15:]) for f in fields if f.startswith(b"content-length:"))
                body = await reader.readexactly(length)
            if line.split()[1] == b"200" and body == BODY:
                self.good += 1
            else:
                self.problems[f"{where}: {line.decode()}: {body[:60].decode()!r}"] += 1
            if keep and b"connection: close" not in fields:
                return connection
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.problems[f"{where}: {stage}: {error!r}"] += 1
        if writer is not None:
            writer.close()
        return None


def main() -> None:
    load = Load(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
    asyncio.run(load.run())
    result = {"good": load.good, "reconnected": load.reconnected, "problems": load.problems}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
