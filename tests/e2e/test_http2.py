"""HTTP/2 at the edge, with clients that this project did not write, and with hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cable import Cable
from certmaker import Maker, pem
from clients import curl, sha256_of, start_curl
from h2wire import H2Wire
from harness import LOOPBACK, Inner, Keys, Outer, require, run, wait_until
from origins import Connection, Origin, Request, answering
from websockets.sync.server import Server, ServerConnection, serve
from wsclient import TEXT, masked

MEBIBYTE = 1024 * 1024


class Stand:
    """A gateway with a cable as its carrier, and an app port in clear text and one with TLS."""

    def __init__(self, directory: Path, keys: Keys) -> None:
        maker = Maker()
        certificates = directory / "certificates"
        for name in ("a.test", "b.test"):
            maker.certbot(directory / "letsencrypt", name)
        certificates = directory / "letsencrypt" / "live"
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(pem(maker.root))
        tls = f"tls:0:interface=127.0.0.1:certificates={certificates}:default=b.test"
        self.outer = Outer(
            directory,
            keys.certificate,
            "--app-port",
            LOOPBACK,
            "--max-h2-resets",
            "500",
            app=tls,
        )
        self.outer.admin_port = self.outer.socket_port
        self.ports = {
            found[1]: int(found[2])
            for line in self.outer.log.matching("listening on ")
            if (found := re.search(r"listening on (https?)://\S*:(\d+)", line))
        }
        self.cable = Cable(self.outer.socket_port)
        quick = ("--reconnect-delay", "50", "--max-reconnect-delay", "200")
        self.inner = Inner(directory, keys.private, self.cable.port, *quick)

    def __enter__(self) -> Stand:
        self.cable.__enter__()
        self.inner.wait_connected()
        self.outer.wait_for_tunnels(1)
        return self

    def __exit__(self, *reason: Any) -> None:
        for part in (self.inner, self.cable, self.outer):
            part.__exit__(*reason)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def wire(self, scheme: str = "http", **options: Any) -> H2Wire:
        """Return a connection of HTTP/2."""
        context = self.context() if scheme == "https" else None
        return H2Wire(self.ports[scheme], context, "a.test", **options)

    def curl(self, scheme: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return curl(self.ports[scheme], *self.options(scheme), *arguments)

    def options(self, scheme: str) -> tuple[str | Path, ...]:
        if scheme == "http":
            return ("--http2-prior-knowledge",)
        return ("--http2", "--cacert", self.ca)

    def cut(self) -> None:
        """Cut the carrier, and wait for the tunnel to be there again."""
        before = self.outer.metric("sockgw_resumes_total")
        self.cable.cut()
        wait_until(lambda: self.outer.metric("sockgw_resumes_total") > before, "it is resumed")

    def assert_idle(self) -> None:
        assert self.outer.status is None
        wait_until(lambda: self.outer.metric("sockgw_streams") == 0, "all streams are closed")


def echo(connection: Connection, request: Request) -> None:
    connection.answer(connection.body(request), "200 OK", f"X-Path: {request.target}")


@pytest.fixture
def echo_host(stand: Stand) -> Iterator[str]:
    with Origin(answering(echo)) as origin:
        yield stand.outer.route(origin.port, host="b.test")


@pytest.fixture(scope="module")
def _stand(
    tmp_path_factory: pytest.TempPathFactory, keys: Keys, nginx_port: int
) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("http2"), keys) as stand:
        stand.outer.route(nginx_port, host="a.test")
        stand.outer.route(nginx_port, host="b.test")
        yield stand


@pytest.fixture
def stand(_stand: Stand) -> Iterator[Stand]:
    yield _stand
    _stand.assert_idle()


# ---------------------------------------------------------------------- which version


@pytest.mark.parametrize(
    ("scheme", "options", "version"),
    [
        ("https", ["--http2"], "2"),
        ("https", ["--http1.1"], "1.1"),
        ("https", ["--no-alpn"], "1.1"),
        ("http", ["--http2-prior-knowledge"], "2"),
        ("http", ["--http2"], "1.1"),  # an upgrade to h2c is ignored
        ("http", ["--http1.1"], "1.1"),
    ],
)
def test_curl(stand: Stand, scheme: str, options: list[str], version: str) -> None:
    trust = ["--cacert", str(stand.ca)] if scheme == "https" else []
    for host in ("a.test", "b.test"):  # with certificates of their own
        url = f"{scheme}://{host}/hello"
        mark = stand.outer.access.mark()
        got = curl(stand.ports[scheme], *options, *trust, "--fail", "-w", "\n%{http_version}", url)
        assert got.returncode == 0, got.stderr
        assert got.stdout.rsplit(b"\n", 1)[1].decode() == version
        name = "HTTP/2.0" if version == "2" else "HTTP/1.1"
        stand.outer.access.wait(rf'"GET /hello {name}" 200', mark)


def test_a_refusal_is_in_the_log(stand: Stand) -> None:
    mark = stand.outer.access.mark()
    got = stand.curl("http", "-w", "%{http_code}", "-H", "Expect: a pony", "http://a.test/hello")
    assert got.stdout.endswith(b"417")
    stand.outer.access.wait(r'"- - HTTP/2.0" 417', mark)


def test_junk_behind_alpn(stand: Stand) -> None:
    context = stand.context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", stand.ports["https"]), 10) as wire,
        context.wrap_socket(wire, server_hostname="a.test") as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        said = b"".join(iter(lambda: tls.recv(65_536), b""))
    assert b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\1" in said  # GOAWAY, PROTOCOL_ERROR


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_download_through_a_cut(stand: Stand, files: Path, scheme: str) -> None:
    options = (*stand.options(scheme), "--fail", "--limit-rate", "60M")
    url = f"{scheme}://a.test/large"
    with start_curl(stand.ports[scheme], *options, url) as downloading:
        assert downloading.stdout
        digest = hashlib.sha256(downloading.stdout.read(MEBIBYTE))
        stand.cut()
        while piece := downloading.stdout.read(MEBIBYTE):
            digest.update(piece)
        assert downloading.wait() == 0, downloading.stderr and downloading.stderr.read()
    assert digest.hexdigest() == sha256_of(files / "large")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_upload_through_a_cut(stand: Stand, files: Path, scheme: str) -> None:
    got: dict[str, Any] = {}
    begun = threading.Event()

    def take(connection: Connection, request: Request) -> None:
        digest = hashlib.sha256()
        for piece in connection.pieces(request):
            digest.update(piece)
            begun.set()
        got["sum"] = digest.hexdigest()
        connection.answer(b"thanks")

    with Origin(answering(take)) as origin, ThreadPoolExecutor(1) as pool:
        host = stand.outer.route(origin, host="up.test")
        options = ("--insecure", "--fail", "--limit-rate", "80M", "-T", files / "large")
        sending = pool.submit(stand.curl, scheme, *options, f"{scheme}://{host}/")
        assert begun.wait(10)
        stand.cut()
        done = sending.result()
    assert (done.returncode, done.stdout) == (0, b"thanks"), done.stderr
    assert got["sum"] == sha256_of(files / "large")


@pytest.mark.parametrize("cut", [False, True])
def test_many_requests_on_one_connection_of_httpx(stand: Stand, echo_host: str, cut: bool) -> None:
    bodies = [os.urandom(1 << (number % 18)) for number in range(60)]
    url = f"https://127.0.0.1:{stand.ports['https']}"

    async def ask(client: httpx.AsyncClient, number: int) -> bool:
        answer = await client.post(
            f"{url}/{number}",
            content=bodies[number],
            headers={"Host": echo_host},
            extensions={"sni_hostname": echo_host},
        )
        assert answer.http_version == "HTTP/2"
        assert answer.headers["x-path"] == f"/{number}"
        return answer.status_code == 200 and answer.content == bodies[number]

    async def ask_all() -> bool:
        transport = httpx.AsyncHTTPTransport(
            http2=True, verify=stand.context(), limits=httpx.Limits(max_connections=1)
        )
        async with httpx.AsyncClient(transport=transport) as client:
            asking = asyncio.gather(*(ask(client, number) for number in range(60)))
            if cut:
                await asyncio.to_thread(stand.cut)
            return all(await asking)

    assert asyncio.run(ask_all())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_h2load(stand: Stand, scheme: str) -> None:
    tool = require("h2load")
    url = f"{scheme}://127.0.0.1:{stand.ports[scheme]}/hello"
    options = ("-n", "1000", "-c", "3", "-m", "60", "--header", ":authority: a.test")
    done = subprocess.run([tool, *options, url], capture_output=True, text=True, timeout=60)
    assert re.search(r"1000 succeeded, 0 failed, 0 errored", done.stdout), done.stdout
    assert "status codes: 1000 2xx" in done.stdout


def test_h2load_through_a_cut(stand: Stand) -> None:
    tool = require("h2load")
    counted = 'sockgw_requests_total{status="200",target="a.test"}'
    before = stand.outer.metric(counted)
    options = ("-n", "2000", "-c", "3", "-m", "60", "--header", ":authority: a.test")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(run, tool, *options, f"http://127.0.0.1:{stand.ports['http']}/hello")
        wait_until(lambda: stand.outer.metric(counted) > before, "some requests are answered")
        assert stand.outer.metric(counted) < before + 2000
        stand.cut()
        done = loading.result()
    assert re.search(r"2000 succeeded, 0 failed, 0 errored", done.stdout), done.stdout


def test_nghttp_with_trailers(stand: Stand, tmp_path: Path) -> None:
    tool = require("nghttp")
    trailers: list[bytes] = []

    def read(connection: Connection, request: Request) -> None:
        assert request.header("Transfer-Encoding") == "chunked"
        while size := int(connection.file.readline(1024), 16):
            connection.file.read(size + 2)
        while line := connection.file.readline(1024).rstrip(b"\r\n"):
            trailers.append(line)
        connection.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"2\r\nok\r\n0\r\nX-Sum: 17\r\n\r\n"
        )

    (tmp_path / "body").write_bytes(b"body")
    with Origin(answering(read)) as origin:
        host = stand.outer.route(origin, host="trailers.test")
        done = subprocess.run(
            [
                *(tool, "--verbose", "--no-content-length", "--data", str(tmp_path / "body")),
                *("--header", f":authority: {host}", "--trailer", "x-mine: 5"),
                f"http://127.0.0.1:{stand.ports['http']}/",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert re.search(r":status: 200", text), text
    assert re.search(r"x-sum: 17", text), text
    assert [line.lower() for line in trailers] == [b"x-mine: 5"]


# ---------------------------------------------------------------------- one beside the other


def test_a_slow_reader_beside_a_fast_stream(stand: Stand, files: Path, echo_host: str) -> None:
    with stand.wire() as wire:
        slow = wire.ask("a.test", "/large", read=False)
        wire.until(lambda: len(wire.bodies[slow]) == 65_535)
        before = stand.outer.memory()[0]
        began = time.monotonic()
        for number in range(30):
            stream = wire.ask(echo_host, f"/{number}", "POST", end=False)
            wire.send(stream, bytes(50_000), end=True)
            assert wire.answer(stream) == ("200", bytes(50_000))
        assert time.monotonic() - began < 10
        assert len(wire.bodies[slow]) == 65_535
        assert stand.outer.memory()[0] - before < 16 * MEBIBYTE
        # Now it reads: nothing was lost.
        digest = hashlib.sha256(wire.bodies[slow])
        wire.sink = lambda stream, data: digest.update(data)
        wire.reading.add(slow)
        wire.h2.increment_flow_control_window(4 * MEBIBYTE, slow)
        wire.flush()
        wire.until(lambda: slow in wire.ended)
    assert digest.hexdigest() == sha256_of(files / "large")


def test_an_upload_that_nobody_reads_beside_others(stand: Stand, echo_host: str) -> None:
    held = threading.Event()

    def wait(connection: Connection, request: Request) -> None:
        held.wait(10)
        connection.answer(connection.body(request)[:5])

    with Origin(answering(wait)) as origin, stand.wire() as wire:
        host = stand.outer.route(origin, host="held.test")
        streams = [wire.ask(host, "/", "POST", end=False) for _ in range(40)]
        for stream in streams:
            wire.send(stream, bytes(131_072))
        for number in range(20):
            stream = wire.ask(echo_host, f"/{number}", "POST", end=False)
            wire.send(stream, bytes(500_000), end=True)
            assert wire.answer(stream)[1] == bytes(500_000)
        held.set()
        for stream in streams:
            wire.send(stream, b"", end=True)
        assert {wire.answer(stream) for stream in streams} == {("200", bytes(5))}


def test_a_reset_reaches_the_origin(stand: Stand) -> None:
    gone = threading.Event()

    def wait(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        connection.wait_gone()
        gone.set()

    with Origin(answering(wait)) as origin, stand.wire() as wire:
        host = stand.outer.route(origin, host="reset.test")
        stream = wire.ask(host)
        wire.until(lambda: wire.bodies[stream] == b"hi")
        wire.h2.reset_stream(stream, 8)
        wire.flush()
        assert gone.wait(2)
        other = wire.ask("a.test", "/hello")
        assert wire.answer(other) == ("200", b"hello\n")


def test_an_origin_that_breaks_off(stand: Stand) -> None:
    def break_off(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.reset()

    with Origin(break_off) as origin, stand.wire() as wire:
        host = stand.outer.route(origin, host="broken.test")
        stream = wire.ask(host)
        wire.until(lambda: stream in wire.resets)
        assert stream not in wire.ended
        other = wire.ask("a.test", "/hello")
        assert wire.answer(other) == ("200", b"hello\n")


# ---------------------------------------------------------------------- WebSocket (RFC 8441)


@pytest.fixture(scope="module")
def chat() -> Iterator[int]:
    """The library websockets as the origin: it echoes, and closes in good order."""

    def talk(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    server: Server
    with serve(talk, "127.0.0.1", 0, subprotocols=["chat"], compression=None) as server:  # type: ignore[list-item]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
    thread.join(10)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_websocket(stand: Stand, chat: int, scheme: str) -> None:
    host = stand.outer.route(chat, host="chat.test")
    fields = (
        (":protocol", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    )
    with stand.wire(scheme) as wire:
        wire.until(lambda: wire.h2.remote_settings.enable_connect_protocol)
        stream = wire.ask(host, "/", "CONNECT", *fields, end=False)
        wire.until(lambda: stream in wire.heads)
        head = wire.heads[stream]
        assert (head[":status"], head["sec-websocket-protocol"]) == ("200", "chat")
        assert {"sec-websocket-accept", "upgrade", "connection"}.isdisjoint(head)
        for size in (5, 500, 70_000):
            text = b"x" * size
            wire.send(stream, masked(text, TEXT))
            expected = len(text) + (2 if size < 126 else 4 if size < 65_536 else 10)
            wire.until(lambda expected=expected: len(wire.bodies[stream]) == expected)  # type: ignore[misc]
            assert wire.bodies[stream].endswith(text)
            wire.bodies[stream].clear()
            stand.cut()
        wire.send(stream, masked(b"\x03\xe8bye", 8))  # Close
        wire.until(lambda: stream in wire.ended)
        assert wire.bodies[stream] == b"\x88\x05\x03\xe8bye"
        wire.send(stream, b"", end=True)
        other = wire.ask("a.test", "/hello")
        assert wire.answer(other) == ("200", b"hello\n")


def test_a_websocket_that_is_refused(stand: Stand) -> None:
    fields = ((":protocol", "websocket"), ("sec-websocket-version", "13"))
    with stand.wire() as wire:
        stream = wire.ask("a.test", "/missing", "CONNECT", *fields, end=False)
        wire.until(lambda: stream in wire.ended)
        assert wire.heads[stream][":status"] == "404"
        assert wire.answer(wire.ask("a.test", "/hello")) == ("200", b"hello\n")


# ---------------------------------------------------------------------- attacks


def test_rapid_reset(stand: Stand) -> None:
    mark = stand.outer.log.mark()
    with stand.wire() as wire:
        wire.answer(wire.ask("a.test", "/hello"))
        frames = []
        for _ in range(1_000):
            stream = wire.h2.get_next_available_stream_id()
            head = [(":method", "GET"), (":scheme", "http"), (":path", "/hello")]
            wire.h2.send_headers(stream, [*head, (":authority", "a.test")], end_stream=True)
            wire.h2.reset_stream(stream, 8)
            frames.append(wire.h2.data_to_send())
        with contextlib.suppress(OSError):
            wire.socket.sendall(b"".join(frames))
        while not wire.closed:
            wire.receive()
    assert wire.goodbyes in ([11], [])  # a reset of the connection may overtake it
    line = stand.outer.log.wait("too many streams end before their time", mark)
    assert "address=127.0.0.1" in line
    assert stand.curl("http", "--fail", "http://a.test/hello").stdout == b"hello\n"


def test_a_block_without_end(stand: Stand) -> None:
    mark = stand.outer.log.mark()
    before = stand.outer.memory()[0]
    with stand.wire() as wire:
        wire.flush(b"\0\0\0\1\1\0\0\0\1")  # HEADERS
        frame = b"\0\x40\0\x09\0\0\0\0\1" + bytes(16_384)  # CONTINUATION
        try:
            for _ in range(2_000):
                wire.socket.sendall(frame)
        except OSError:
            wire.closed = True
        while not wire.closed:
            wire.receive()
    stand.outer.log.wait("a header block is too long", mark)
    assert stand.outer.memory()[0] - before < 8 * MEBIBYTE


# ---------------------------------------------------------------------- the end


def test_draining(tmp_path: Path, keys: Keys, nginx_port: int, files: Path) -> None:
    outer = Outer(tmp_path, keys.certificate)
    with outer, Inner(tmp_path, keys.private, outer.socket_port) as inner:
        inner.wait_connected()
        outer.wait_for_tunnels(1)
        host = outer.route(nginx_port)
        options = ("--http2-prior-knowledge", "--fail", "--limit-rate", "100M")
        with start_curl(outer.app_port, *options, f"http://{host}/large") as downloading:
            assert downloading.stdout
            digest = hashlib.sha256(downloading.stdout.read(MEBIBYTE))
            outer.signal(15)
            outer.log.wait("draining: 1 requests? under way")
            while piece := downloading.stdout.read(MEBIBYTE):
                digest.update(piece)
            assert downloading.wait() == 0
        assert outer.wait() == 0
    assert digest.hexdigest() == sha256_of(files / "large")
