"""WebSocket and other upgrades: straight to the origin, through the tunnel, and with cuts.

Clients and servers are the websockets library, Autobahn, python-socketio with aiohttp, and sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import socketio
from aiohttp import web
from harness import PATIENCE, Keys, environment, wait_until
from origins import Connection, Origin, Request, answering
from ways import WAYS, Line
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

BIG = bytes(range(256)) * 32_768  # 8 MiB
IDLE = 1.0  # seconds, of the gateway for exchanges of HTTP


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Line]:
    directory = tmp_path_factory.mktemp("websocket")
    with Line(directory, keys, outer=("--idle-timeout", str(round(IDLE * 1000)))) as line:
        yield line


class Way:
    """How clients get to a server: always at 127.0.0.1, so that no name is needed."""

    def __init__(self, kind: str, line: Line) -> None:
        self.kind = kind
        self.line = line

    def to(self, port: int, **fields: Any) -> int:
        if self.kind == "direct":
            return port
        self.line.outer.route(port, host="127.0.0.1", **fields)
        return self.line.outer.app_port

    async def cut(self) -> None:
        if self.kind == "cut":
            await asyncio.to_thread(self.line.cut)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, line: Line) -> Iterator[Way]:
    with line.idle_after():
        yield Way(request.param, line)


@pytest.fixture
def tunnel(line: Line) -> Iterator[Way]:
    with line.idle_after():
        yield Way("tunnel", line)


class Server:
    """A server of the websockets library, which echoes and does as it is told."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.ends: asyncio.Queue[tuple[int | None, str]] = asyncio.Queue()
        self.connections: list[ServerConnection] = []

    async def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.requests.append(connection.request)
        self.connections.append(connection)
        try:
            if connection.request.path == "/first":
                await connection.send("I speak first")
            async for message in connection:
                if message == "close":
                    await connection.close(4002, "as you wish")
                elif message == "kill":
                    connection.transport.abort()
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        self.ends.put_nowait((connection.close_code, connection.close_reason or ""))

    async def ended(self) -> tuple[int | None, str]:
        return await asyncio.wait_for(self.ends.get(), PATIENCE)


@contextlib.asynccontextmanager
async def serving(way: Way, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    """Serve, and give the server with the URL under which clients reach it."""
    server = Server()
    async with serve(server.handle, "127.0.0.1", 0, max_size=None, **options) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        port = await asyncio.to_thread(way.to, port)
        yield server, f"ws://127.0.0.1:{port}"


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages(way: Way, compression: str | None) -> None:
    async def talk() -> None:
        async with (
            serving(way, compression=compression, subprotocols=["chat.2"]) as (server, url),
            connect(
                url + "/echo?x=1",
                max_size=None,
                compression=compression,
                subprotocols=["chat.1", "chat.2"],
                additional_headers={"Authorization": "Basic dTpw", "X-Room": "blue"},
                origin="https://app.example",
            ) as client,
        ):
            assert client.subprotocol == "chat.2"
            assert bool(client.protocol.extensions) is bool(compression)
            (request,) = server.requests
            assert request.path == "/echo?x=1"
            assert request.headers["Authorization"] == "Basic dTpw"
            assert request.headers["X-Room"] == "blue"
            assert request.headers["Origin"] == "https://app.example"
            for message in ("", "Grüße", b"", b"\0\xff", "ß" * 100_000, BIG):
                await client.send(message)
                if message is BIG:
                    await way.cut()
                assert await client.recv() == message
            await client.send(iter([b"in ", b"three ", b"frames"]))
            assert await client.recv() == b"in three frames"
            assert await (await client.ping(b"are you there?")) >= 0
            pong = await server.connections[0].ping(b"and you?")
            assert await pong >= 0

    asyncio.run(talk())


def test_many_messages_keep_their_order(way: Way) -> None:
    async def talk() -> None:
        async with serving(way) as (_, url), connect(url, max_queue=None) as client:
            for number in range(3_000):
                await client.send(f"{number}")
                if number in (1_000, 2_000):
                    await way.cut()
            assert [int(await client.recv()) for _ in range(3_000)] == list(range(3_000))

    asyncio.run(talk())


def test_close_codes(way: Way) -> None:
    async def talk() -> None:
        async with serving(way) as (server, url):
            async with connect(url) as client:
                await way.cut()
                await client.close(4001, "bye")
                assert await server.ended() == (4001, "bye")
                assert (client.close_code, client.close_reason) == (4001, "bye")
            async with connect(url) as client:
                await client.send("close")
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (4002, "as you wish")
                assert await server.ended() == (4002, "as you wish")

    asyncio.run(talk())


def test_ends_that_are_none(way: Way) -> None:
    """A server, or a client, that is killed: the other one must not take it for an end."""

    async def talk() -> None:
        async with serving(way) as (server, url):
            async with connect(url) as client:
                await way.cut()
                await client.send("kill")
                await client.wait_closed()
                assert client.close_code == 1006
                await server.ended()
            client = await connect(url)
            await client.send("x")
            await client.recv()
            client.transport.abort()
            assert (await server.ended())[0] == 1006
            with contextlib.suppress(ConnectionClosed):
                await client.close()

    asyncio.run(talk())


def test_a_server_that_speaks_first(way: Way) -> None:
    async def talk() -> None:
        async with serving(way) as (_, url), connect(url + "/first") as client:
            assert await client.recv() == "I speak first"

    asyncio.run(talk())


def test_silence_is_no_fault(tunnel: Way) -> None:
    async def talk() -> None:
        async with serving(tunnel) as (_, url), connect(url, ping_interval=None) as client:
            await asyncio.sleep(2 * IDLE)  # longer than an exchange of HTTP may be silent
            await client.send("still there?")
            assert await client.recv() == "still there?"

    asyncio.run(talk())


def test_a_refused_upgrade(way: Way) -> None:
    async def talk() -> None:
        def refuse(connection: ServerConnection, request: Any) -> Any:
            return connection.respond(403, "not you\n")

        async with serving(way, process_request=refuse) as (_, url):
            with pytest.raises(InvalidStatus) as caught:
                await connect(url)
            assert caught.value.response.status_code == 403
            assert caught.value.response.body == b"not you\n"

    asyncio.run(talk())


# ---------------------------------------------------------------------- Autobahn


@contextlib.contextmanager
def autobahn(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).parent / "autobahn_peer.py"
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    giving_up = threading.Timer(3 * PATIENCE, process.kill)
    giving_up.start()
    try:
        return dict(json.loads(process.stdout.readline()))
    finally:
        giving_up.cancel()


def test_autobahn(way: Way) -> None:
    """Fragmented, large and compressed messages between Autobahn's client and server."""
    with autobahn("server") as server:
        port = way.to(said(server)["port"])
        with autobahn("client", str(port)) as client:
            assert said(client) == {"extensions": ["PerMessageDeflate"]}
            for name in ("empty", "text", "binary", "frames", "bytewise"):
                assert said(client) == {"case": name, "equal": True}
            assert said(client) == {"half": True}
            asyncio.run(way.cut())
            assert client.stdin is not None
            client.stdin.write("go on\n")
            client.stdin.flush()
            assert said(client) == {"case": "halves", "equal": True}
            # Autobahn's server answers a close with a plain one of its own.
            assert said(client) == {"closed": 1000, "reason": None, "clean": True}
            assert said(server) == {"closed": 4001, "reason": "enough", "clean": True}


# ---------------------------------------------------------------------- python-socketio


def test_socketio(way: Way) -> None:
    """Long poll, upgrade to WebSocket, events both ways, and a client that comes back."""

    async def talk() -> None:
        sent = {"n": 1, "b": b"\0\1"}
        server = socketio.AsyncServer(async_mode="aiohttp")
        transports = []

        @server.event
        async def echo(sid: str, data: Any) -> Any:
            transports.append(server.transport(sid))
            await server.emit("news", data, to=sid)
            return data

        application = web.Application()
        server.attach(application)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = await asyncio.to_thread(way.to, runner.addresses[0][1])
        try:
            for allowed in (["polling"], ["polling", "websocket"]):
                async with aiohttp.ClientSession() as session:
                    news: asyncio.Queue[Any] = asyncio.Queue()
                    client = socketio.AsyncClient(http_session=session, reconnection_delay=0.05)
                    client.on("news", news.put)
                    await client.connect(f"http://127.0.0.1:{port}", transports=allowed)
                    for turn in range(2):
                        assert await client.call("echo", sent, timeout=10) == sent
                        assert await asyncio.wait_for(news.get(), PATIENCE) == sent
                        assert transports.pop() == allowed[-1]
                        if not turn:
                            await way.cut()
                    if allowed[-1] == "websocket":
                        again = asyncio.Event()
                        client.on("connect", again.set)
                        client.eio.ws._response.connection.transport.abort()
                        await asyncio.wait_for(again.wait(), PATIENCE)
                        assert await client.call("echo", "back", timeout=10) == "back"
                    await client.disconnect()
        finally:
            await runner.cleanup()

    asyncio.run(talk())


# ---------------------------------------------------------------------- other protocols, by hand


def ask(*fields: str, target: str = "/x", method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]
    return "\r\n".join(lines).encode()


UPGRADE = ("Connection: Upgrade", "Upgrade: custom/1")
SWITCHING = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: custom/1\r\n\r\n"


def read_until(wire: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = wire.recv(65_536)
        assert more, data
        data += more
    return data


def rest(wire: socket.socket) -> bytes:
    data = b""
    while more := wire.recv(65_536):
        data += more
    return data


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        yield wire


def test_early_bytes_on_both_sides(way: Way) -> None:
    """Both ends say something in the same segment as their head."""

    def respond(connection: Connection, request: Request) -> None:
        connection.send(SWITCHING + b"first")
        assert connection.file.read(5) == b"early"
        connection.send(b"last")
        connection.socket.shutdown(socket.SHUT_WR)
        heard.append(connection.file.read())

    heard: list[bytes] = []
    with Origin(answering(respond)) as origin, connected(way.to(origin.port)) as wire:
        wire.sendall(ask(*UPGRADE) + b"early")
        data = read_until(wire, b"last")
        head, _, rest_of_it = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"upgrade: custom/1" in head.lower()
        assert rest_of_it == b"firstlast"
        assert wire.recv(1) == b""  # its half is closed, and ours is open
        wire.sendall(b"bye")
        wire.shutdown(socket.SHUT_WR)
        wait_until(lambda: heard, "the origin has heard all")
        assert heard == [b"bye"]


@pytest.mark.parametrize("first", ["client", "origin"])
def test_half_closes(way: Way, first: str) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.send(SWITCHING)
        if first == "client":
            heard = connection.file.read()
            connection.send(b"heard %d" % len(heard))
            connection.socket.shutdown(socket.SHUT_WR)
        else:
            assert connection.file.read(2) == b"go"
            connection.send(b"y" * 100_000)
            connection.socket.shutdown(socket.SHUT_WR)
            heard_all.append(connection.file.read())

    heard_all: list[bytes] = []
    with Origin(answering(respond)) as origin, connected(way.to(origin.port)) as wire:
        wire.sendall(ask(*UPGRADE))
        read_until(wire, b"\r\n\r\n")
        asyncio.run(way.cut())
        if first == "client":
            wire.sendall(b"x" * 1_000_000)
            wire.shutdown(socket.SHUT_WR)
            assert rest(wire) == b"heard 1000000"
        else:
            wire.sendall(b"go")
            assert rest(wire) == b"y" * 100_000
            wire.sendall(b"x" * 1_000_000)
            wire.shutdown(socket.SHUT_WR)
            wait_until(lambda: heard_all, "the origin has heard all")
            assert heard_all == [b"x" * 1_000_000]


def test_after_a_refused_upgrade_the_next_request_is_filtered_as_always(tunnel: Way) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.answer(request.target.encode(), "426 Upgrade Required")

    with Origin(answering(respond)) as origin:
        policy = {"/chat": ["GET"], "/next": ["GET"]}
        with connected(tunnel.to(origin.port, policy=policy)) as wire:
            wire.sendall(
                ask(*UPGRADE, target="/chat")
                + ask(target="/next")
                + ask(target="/secret")
                + ask("Transfer-Encoding: chunked", "Content-Length: 3", target="/next")
            )
            data = rest(wire)
        statuses = re.findall(rb"HTTP/1\.1 (\d+) ", data)
        assert statuses == [b"426", b"426", b"403", b"400"]
        assert [request.target for request in origin.requests] == ["/chat", "/next"]
        tunnel.line.outer.route(origin, host="127.0.0.1")


def test_policy_applies_to_upgrades(tunnel: Way) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.send(SWITCHING)

    with Origin(answering(respond)) as origin:
        port = tunnel.to(origin.port, policy={"/chat": ["GET"]})
        for method, target, status in (
            ("GET", "/chat", b"101"),
            ("GET", "/chat/../admin", b"403"),
            ("POST", "/chat", b"403"),
        ):
            with connected(port) as wire:
                wire.sendall(ask(*UPGRADE, target=target, method=method))
                assert wire.recv(12).split()[1] == status
        assert len(origin.requests) == 1


def test_h2c_and_connect_are_refused(tunnel: Way) -> None:
    def respond(connection: Connection, request: Request) -> None:
        assert request.header("Upgrade") is None
        assert request.header("HTTP2-Settings") is None
        connection.answer(b"plain")

    with Origin(answering(respond)) as origin, connected(tunnel.to(origin.port)) as wire:
        wire.sendall(
            ask("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        )
        assert read_until(wire, b"plain").startswith(b"HTTP/1.1 200")
        wire.sendall(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert wire.recv(12).split()[1] == b"501"
        assert len(origin.requests) == 1


def test_an_upgrade_lives_through_a_download_beside_it(tunnel: Way) -> None:
    """Nobody waits for somebody else."""
    go = threading.Event()

    def respond(connection: Connection, request: Request) -> None:
        if request.target == "/large":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            with contextlib.suppress(OSError):
                while not go.is_set():
                    connection.send(b"z" * 65_536)
            return
        connection.send(SWITCHING)
        while data := connection.socket.recv(100):
            connection.send(data)

    with Origin(answering(respond)) as origin:
        port = tunnel.to(origin.port)
        with connected(port) as large, connected(port) as wire:
            large.sendall(ask(target="/large"))  # and reads nothing
            wire.sendall(ask(*UPGRADE))
            read_until(wire, b"\r\n\r\n")
            for number in range(100):
                wire.sendall(b"%d" % number)
                assert read_until(wire, b"%d" % number) == b"%d" % number
            go.set()
