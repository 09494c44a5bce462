"""What must not be gathered on its way: events, trickles, early answers, interim answers, trailers.

Nobody waits for time to pass here: the next piece is sent only when the one before has arrived, so
that whoever gathers them would wait for ever.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from harness import PATIENCE, Keys, run
from origins import Connection, Origin, Request, answering
from ways import WAYS, Line

HOST = "stream.test"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Line]:
    with Line(tmp_path_factory.mktemp("streaming"), keys) as line:
        yield line


class Way:
    """How clients get to an origin."""

    def __init__(self, kind: str, line: Line) -> None:
        self.kind = kind
        self.line = line

    def to(self, origin: Origin) -> int:
        if self.kind == "direct":
            return origin.port
        self.line.outer.route(origin, host=HOST)
        return self.line.outer.app_port

    def cut(self) -> None:
        if self.kind == "cut":
            self.line.cut()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, line: Line) -> Iterator[Way]:
    with line.idle_after():
        yield Way(request.param, line)


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield wire


def read_until(wire: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        more = wire.recv(65_536)
        assert more, data
        data += more
    return data


class Confirmed:
    """Lets an origin send its next piece when the client has the one before."""

    def __init__(self) -> None:
        self._received: queue.Queue[None] = queue.Queue()

    def confirm(self) -> None:
        self._received.put(None)

    def wait(self) -> None:
        self._received.get(timeout=PATIENCE)


@pytest.mark.parametrize(
    "kind", ["text/event-stream", "text/html", "application/octet-stream", "application/json"]
)
def test_events_come_one_by_one(way: Way, kind: str) -> None:
    """Server-sent events, read by httpx; whatever the content type, nothing is gathered."""
    confirmed = Confirmed()

    def respond(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Accel-Buffering: no\r\n"
            b"Cache-Control: no-transform\r\nTransfer-Encoding: chunked\r\n\r\n" % kind.encode()
        )
        for number in range(20):
            connection.chunk(b"id: %d\ndata: tick %d\n\n" % (number, number))
            confirmed.wait()
        connection.send(b"0\r\n\r\n")

    with (
        Origin(answering(respond)) as origin,
        httpx.Client(timeout=PATIENCE) as client,
        client.stream(
            "GET",
            f"http://127.0.0.1:{way.to(origin)}/events",
            headers={"Host": HOST, "Accept": "text/event-stream"},
        ) as response,
    ):
        assert response.headers["content-type"].startswith(kind)
        number = 0
        for text in response.iter_text():
            assert text == f"id: {number}\ndata: tick {number}\n\n"
            if number == 10:
                way.cut()
            number += 1
            confirmed.confirm()
        assert number == 20


def test_curl_shows_events_as_they_come(way: Way) -> None:
    def respond(connection: Connection, request: Request) -> None:
        assert request.header("Accept") == "text/event-stream"
        connection.answer(b"data: 1\n\ndata: 2\n\n", "200 OK", "Content-Type: text/event-stream")

    with Origin(answering(respond)) as origin:
        shown = run(
            *("curl", "-sSN", "-H", f"Host: {HOST}", "-H", "Accept: text/event-stream"),
            f"http://127.0.0.1:{way.to(origin)}/",
        )
        assert shown.stdout == "data: 1\n\ndata: 2\n\n", shown.stderr


def test_a_long_poll(way: Way) -> None:
    asked, go = threading.Event(), threading.Event()

    def respond(connection: Connection, request: Request) -> None:
        asked.set()
        assert go.wait(PATIENCE)
        connection.answer(b"at last")

    with Origin(answering(respond)) as origin, connected(way.to(origin)) as wire:
        wire.sendall(b"GET /poll HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode())
        assert asked.wait(PATIENCE)
        way.cut()
        go.set()
        assert read_until(wire, b"at last").startswith(b"HTTP/1.1 200 OK")


def test_single_bytes_go_there_and_back(way: Way) -> None:
    """An answer that begins before the upload has ended, and each byte of it at once."""

    def respond(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in connection.pieces(request):
            connection.chunk(piece.upper())
        connection.send(b"0\r\n\r\n")

    with Origin(answering(respond)) as origin, connected(way.to(origin)) as wire:
        wire.sendall(
            b"POST /echo HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % HOST.encode()
        )
        read_until(wire, b"\r\n\r\n")
        for number in range(200):
            letter = b"%c" % (ord("a") + number % 26)
            wire.sendall(b"1\r\n%b\r\n" % letter)
            assert read_until(wire, letter.upper() + b"\r\n") == b"1\r\n%b\r\n" % letter.upper()
            if number == 100:
                way.cut()
        wire.sendall(b"0\r\n\r\n")
        assert read_until(wire, b"0\r\n\r\n") == b"0\r\n\r\n"


def test_an_early_answer_to_a_long_upload(way: Way) -> None:
    """The origin answers at once, reads on, and the connection is not used again."""

    def script(connection: Connection) -> None:
        assert connection.request() is not None
        connection.answer(b"no need", "413 Content Too Large", "Connection: close")
        connection.wait_gone()

    with Origin(script) as origin, connected(way.to(origin)) as wire:
        wire.sendall(
            b"POST /up HTTP/1.1\r\nHost: %b\r\nContent-Length: 50000000\r\n\r\n" % HOST.encode()
        )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.sendall(b"x" * 100_000)
        assert read_until(wire, b"no need").startswith(b"HTTP/1.1 413 ")


def test_interim_answers(way: Way) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        if request.header("Expect"):
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.answer(connection.body(request))

    with Origin(answering(respond)) as origin, connected(way.to(origin)) as wire:
        wire.sendall(
            b"POST / HTTP/1.1\r\nHost: %b\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
            % HOST.encode()
        )
        interim = read_until(wire, b"100 Continue\r\n")
        assert interim.startswith(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n")
        assert b"</a.css>; rel=preload\r\n" in interim
        way.cut()
        wire.sendall(b"body")
        assert read_until(wire, b"body").count(b"HTTP/1.1 200 OK") == 1


def test_trailers_in_both_directions(way: Way) -> None:
    seen: dict[str, Any] = {}

    def script(connection: Connection) -> None:
        request = connection.request()
        assert request is not None
        seen["te"] = request.header("TE")
        seen["trailer"] = request.header("Trailer")
        assert connection.file.readline() == b"5\r\n"
        assert connection.file.read(7) == b"hello\r\n"
        assert connection.file.readline() == b"0\r\n"
        seen["trailers"] = [connection.file.readline() for _ in range(2)]
        connection.send(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\nX-Sum: 17\r\n\r\n"
        )
        connection.wait_gone()

    with Origin(script) as origin, connected(way.to(origin)) as wire:
        wire.sendall(
            b"POST / HTTP/1.1\r\nHost: %b\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Check\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" % HOST.encode()
        )
        way.cut()
        wire.sendall(b"0\r\nX-Check: 42\r\n\r\n")
        answer = read_until(wire, b"X-Sum: 17\r\n\r\n")
        assert answer.endswith(b"3\r\nabc\r\n0\r\nX-Sum: 17\r\n\r\n")
        assert b"Trailer: X-Sum\r\n" in answer
    assert seen == {
        "te": "trailers",
        "trailer": "X-Check",
        "trailers": [b"X-Check: 42\r\n", b"\r\n"],
    }
