"""Bodies go through whole, at once, and in order, whoever the client and the origin are."""

import contextlib
import json
import os
import queue
import select
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Client, curl, fetch, sha256_of, start_curl
from harness import PATIENCE, Gateway, wait_until
from origins import Connection, Nginx, Origin, PythonServer, Request, answering


def echo(connection: Connection, request: Request) -> None:
    """Answer with what the request's body was."""
    body = connection.body(request)
    connection.answer(body, "200 OK", f"X-Framing: {request.header('Transfer-Encoding')}")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(answering(echo)) as origin:
        yield origin


def url(host: str, path: str = "/") -> str:
    return f"http://{host}{path}"


# ---------------------------------------------------------------------- what curl and nginx do


def test_get(gateway: Gateway, nginx: Nginx, nginx_host: str) -> None:
    direct = fetch(nginx.port, "any", "/hello")
    answer = fetch(gateway.port, nginx_host, "/hello")
    assert answer.status == 200
    assert answer.body == b"hello\n"
    for name in ("Content-Length", "Content-Type", "ETag", "Last-Modified", "Server"):
        assert answer.header(name) == direct.header(name)
    assert answer.header("X-Request-ID")


def test_get_from_http_server_with_curl(gateway: Gateway, tmp_path: Path, files: Path) -> None:
    with PythonServer(tmp_path, files, sys.executable) as server:
        got = curl(gateway.port, "--fail", url(gateway.route(server), "/hello"))
    assert (got.returncode, got.stdout) == (0, b"hello\n")


def test_head_then_get_on_one_connection(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        head = client.request(nginx_host, "/hello", "HEAD")
        assert (head.status, head.header("Content-Length")) == (200, "6")
        assert client.request(nginx_host, "/hello").body == b"hello\n"


def test_head_with_curl(gateway: Gateway, nginx_host: str) -> None:
    got = curl(gateway.port, "--head", url(nginx_host, "/large"))
    assert got.returncode == 0, got.stderr
    assert b"HTTP/1.1 200 OK" in got.stdout


def test_204(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        answer = client.request(nginx_host, "/empty")
        assert answer.status == 204
        assert answer.header("Content-Length") is None
        assert answer.header("Transfer-Encoding") is None
        assert client.request(nginx_host, "/hello").body == b"hello\n"


def test_304(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        etag = client.request(nginx_host, "/hello").header("ETag")
        assert etag
        answer = client.request(nginx_host, "/hello", If_None_Match=etag)
        assert (answer.status, answer.header("ETag")) == (304, etag)
        assert client.request(nginx_host, "/hello").status == 200


def test_range(gateway: Gateway, nginx_host: str) -> None:
    answer = fetch(gateway.port, nginx_host, "/hello", Range="bytes=1-3")
    assert (answer.status, answer.body) == (206, b"ell")
    assert answer.header("Content-Range") == "bytes 1-3/6"


def test_post_with_curl(gateway: Gateway, origin: Origin) -> None:
    got = curl(gateway.port, "--fail", "--data", "a=1&b=2", url(gateway.route(origin)))
    assert (got.returncode, got.stdout) == (0, b"a=1&b=2")
    assert origin.requests[0].method == "POST"
    assert origin.requests[0].header("Content-Length") == "7"
    assert origin.requests[0].header("Content-Type") == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_other_methods(gateway: Gateway, origin: Origin, method: str) -> None:
    got = curl(
        gateway.port,
        "--fail",
        "-X",
        method,
        "--data",
        "body",
        url(gateway.route(origin), "/p?q=%20"),
    )
    assert (got.returncode, got.stdout) == (0, b"body")
    assert (origin.requests[0].method, origin.requests[0].target) == (method, "/p?q=%20")


# ---------------------------------------------------------------------- large ones, by their sums


def test_download(gateway: Gateway, nginx_host: str, files: Path) -> None:
    with start_curl(gateway.port, "--fail", url(nginx_host, "/large")) as downloading:
        assert downloading.stdout
        received = sha256_of(downloading.stdout)
    assert downloading.returncode == 0
    assert received == sha256_of(files / "large")


def summing(connection: Connection, request: Request) -> None:
    """Answer with the SHA-256 of the request's body and how that was framed."""
    pieces = connection.pieces(request)
    answer = {
        "sha256": sha256_of(lambda size: next(pieces, b"")),
        "length": request.header("Content-Length"),
        "coding": request.header("Transfer-Encoding"),
    }
    connection.answer(json.dumps(answer).encode())


def test_upload(gateway: Gateway, files: Path) -> None:
    with Origin(answering(summing)) as origin:
        got = curl(
            gateway.port,
            "--fail",
            "-H",
            "Expect:",
            "-T",
            files / "large",
            url(gateway.route(origin)),
        )
    assert got.returncode == 0, got.stderr
    assert json.loads(got.stdout) == {
        "sha256": sha256_of(files / "large"),
        "length": str((files / "large").stat().st_size),
        "coding": None,
    }


def test_chunked_upload(gateway: Gateway, files: Path) -> None:
    with Origin(answering(summing)) as origin:
        chunked = ("-H", "Expect:", "-H", "Transfer-Encoding: chunked", "-T", files / "large")
        got = curl(gateway.port, "--fail", *chunked, url(gateway.route(origin)))
    assert got.returncode == 0, got.stderr
    assert json.loads(got.stdout) == {
        "sha256": sha256_of(files / "large"),
        "length": None,
        "coding": "chunked",
    }


def test_chunked_download(gateway: Gateway, files: Path) -> None:
    def send_file(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with open(files / "large", "rb") as file:
            size = 1
            while data := file.read(size):
                connection.chunk(data)
                size = min(size * 3 + 1, 1_000_000)  # tiny ones, and far larger than any frame
        connection.send(b"0\r\n\r\n")

    with (
        Origin(answering(send_file)) as origin,
        start_curl(gateway.port, "--fail", "-i", "--raw", url(gateway.route(origin))) as raw,
    ):
        assert raw.stdout
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.stdout.readline()
        assert b"transfer-encoding: chunked" in head.lower()
        raw.kill()
    with (
        Origin(answering(send_file)) as origin,
        start_curl(gateway.port, "--fail", url(gateway.route(origin))) as downloading,
    ):
        assert downloading.stdout
        assert sha256_of(downloading.stdout) == sha256_of(files / "large")
    assert downloading.returncode == 0


def test_both_ways_at_once(gateway: Gateway) -> None:
    """What goes up comes down while the rest is still going up."""

    def mirror(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in connection.pieces(request):
            connection.chunk(piece)
        connection.send(b"0\r\n\r\n")

    size = 16 * 1024 * 1024
    sent = os.urandom(65_536) * (size // 65_536)
    with Origin(answering(mirror)) as origin, Client(gateway.port) as client:
        head = f"POST / HTTP/1.1\r\nHost: {gateway.route(origin)}\r\nContent-Length: {size}\r\n\r\n"
        uploading = threading.Thread(target=client.send, args=(head.encode() + sent,))
        uploading.start()
        answer = client.answer()
        uploading.join()
    assert answer.complete
    assert answer.body == sent


# ---------------------------------------------------------------------- Expect: 100-continue


def is_silent(connection: Connection) -> bool:
    """Return whether nothing arrives within 0.2 s."""
    return not select.select([connection.socket], [], [], 0.2)[0]


def test_continue_comes_from_the_origin(gateway: Gateway) -> None:
    silent = []

    def late(connection: Connection, request: Request) -> None:
        assert request.header("Expect") == "100-continue"
        silent.append(is_silent(connection))
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.answer(connection.body(request))

    # curl would go on without a 100 only after ten times the time that this may take.
    expecting = ("--expect100-timeout", "60", "--max-time", "6", "-H", "Expect: 100-continue")
    with Origin(answering(late)) as origin:
        got = curl(gateway.port, *expecting, "--data", "body", url(gateway.route(origin)))
    assert (got.returncode, got.stdout) == (0, b"body"), got.stderr
    assert silent == [True], "the body was sent before the origin asked for it"


def test_refused_expectation(gateway: Gateway) -> None:
    def refuse(connection: Connection, request: Request) -> None:
        connection.answer(b"too large\n", "413 Content Too Large", "Connection: close")
        assert connection.socket.recv(1) == b"", "the body was sent all the same"

    expecting = ("--expect100-timeout", "60", "--max-time", "6", "-H", "Expect: 100-continue")
    with Origin(answering(refuse)) as origin:
        got = curl(
            gateway.port, *expecting, "-i", "--data-binary", "x" * 5000, url(gateway.route(origin))
        )
    assert got.returncode == 0, got.stderr
    assert got.stdout.startswith(b"HTTP/1.1 413 ")
    assert got.stdout.endswith(b"\r\n\r\ntoo large\n")


def test_417(gateway: Gateway) -> None:
    def refuse(connection: Connection, request: Request) -> None:
        connection.answer(b"", "417 Expectation Failed")
        connection.wait_gone()

    with Origin(answering(refuse)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin), method="POST", Expect="100-continue", Content_Length="10")
        assert client.head()[0] == 417


# ---------------------------------------------------------------------- connections


def test_keep_alive_on_both_sides(gateway: Gateway, origin: Origin) -> None:
    host = gateway.route(origin)
    before = gateway.outer.metric("sockgw_clients")
    with Client(gateway.port) as client:
        for number in range(20):
            client.send(
                b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: 2\r\n\r\n%02d"
                % (host.encode(), number)
            )
            assert client.answer().body == b"%02d" % number
        assert gateway.outer.metric("sockgw_clients") == before + 1
    assert origin.accepted == 1, "the connection to the origin was not reused"


def test_pipelining(gateway: Gateway) -> None:
    def tell_path(connection: Connection, request: Request) -> None:
        connection.answer(request.target.encode())

    with Origin(answering(tell_path)) as origin, Client(gateway.port) as client:
        host = gateway.route(origin)
        client.send(
            b"".join(
                f"GET /{number} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for number in range(10)
            )
        )
        assert [client.answer().text for _ in range(10)] == [f"/{number}" for number in range(10)]
        assert client.request(host, "/more").text == "/more"


def test_pipelined_bodies(gateway: Gateway, origin: Origin) -> None:
    with Client(gateway.port) as client:
        host = gateway.route(origin).encode()
        bodies = [b"", b"one", b"2" * 100_000, b"last"]
        head = b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b"
        client.send(b"".join(head % (host, len(body), body) for body in bodies))
        assert [client.answer().body for _ in bodies] == bodies


def test_http_1_0_client(gateway: Gateway) -> None:
    """It cannot read chunks: the connection's end delimits what has no length."""

    def in_chunks(connection: Connection, request: Request) -> None:
        assert request.version == "HTTP/1.1"
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.chunk(b"hel")
        connection.chunk(b"lo\n")
        connection.send(b"0\r\n\r\n")

    with Origin(answering(in_chunks)) as origin:
        host = gateway.route(origin)
        got = curl(gateway.port, "--http1.0", "-i", url(host))
        with Client(gateway.port) as client:
            client.send(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = client.answer()
            assert not client.was_reset()
    assert got.returncode == 0, got.stderr
    assert got.stdout.endswith(b"\r\n\r\nhello\n")
    assert b"transfer-encoding" not in got.stdout.lower()
    assert answer.body == b"hello\n"
    assert answer.header("Connection") == "close"


def test_http_1_0_keep_alive(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        for _ in range(2):
            client.send(
                b"GET /hello HTTP/1.0\r\nHost: %b\r\nConnection: keep-alive\r\n\r\n"
                % nginx_host.encode()
            )
            answer = client.answer()
            assert (answer.body, answer.header("Connection")) == (b"hello\n", "keep-alive")


def test_connection_close(gateway: Gateway, nginx_host: str) -> None:
    with Client(gateway.port) as client:
        answer = client.request(nginx_host, "/hello", Connection="close")
        assert (answer.body, answer.header("Connection")) == (b"hello\n", "close")
        assert client.ends()


def test_http_1_0_origin(gateway: Gateway) -> None:
    """An answer that ends with the origin's connection is whole, and the client's goes on."""

    def old(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello\n")

    with Origin(old) as origin, Client(gateway.port) as client:
        host = gateway.route(origin)
        for _ in range(2):
            answer = client.request(host)
            assert (answer.body, answer.complete) == (b"hello\n", True)


def test_half_closed_client(gateway: Gateway) -> None:
    def slow(connection: Connection, request: Request) -> None:
        assert is_silent(connection), "the request was given up"
        connection.answer(b"late\n")

    with Origin(answering(slow)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin))
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.answer()
        assert answer.complete
        assert answer.body == b"late\n"
        assert client.ends()


def test_half_closed_client_gets_all_of_a_long_answer(
    gateway: Gateway, nginx_host: str, files: Path
) -> None:
    with Client(gateway.port) as client:
        client.ask(nginx_host, "/large", Range="bytes=0-33554431")
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.answer()
    assert answer.complete
    with open(files / "large", "rb") as file:
        assert answer.body == file.read(33_554_432)


def test_early_answer_to_a_large_upload(gateway: Gateway, files: Path) -> None:
    """The origin refuses after the first bytes; the client gets that, and the rest goes nowhere."""
    received = 0

    def refuse(connection: Connection) -> None:
        nonlocal received
        request = connection.request()
        assert request
        with contextlib.suppress(ConnectionError):
            for piece in connection.pieces(request):
                if not received:
                    connection.answer(b"no more\n", "403 Forbidden", "Connection: close")
                received += len(piece)

    with Origin(refuse) as origin:
        at_once = ("-H", "Expect:", "-T", files / "large")
        got = curl(gateway.port, "-i", *at_once, url(gateway.route(origin)))
    assert got.returncode == 0, got.stderr
    assert b"HTTP/1.1 403 Forbidden" in got.stdout
    assert got.stdout.endswith(b"\r\n\r\nno more\n")
    assert received < (files / "large").stat().st_size / 2


# ---------------------------------------------------------------------- at once


def test_drip_arrives_chunk_by_chunk(gateway: Gateway) -> None:
    """The next event is sent only after the client has got the one before."""
    arrived: queue.Queue[bytes] = queue.Queue()

    def events(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert arrived.get(timeout=PATIENCE) == b"head"
        for number in range(10):
            connection.chunk(b"data: %d\n\n" % number)
            assert arrived.get(timeout=PATIENCE) == b"data: %d\n\n" % number
        connection.send(b"0\r\n\r\n")

    with Origin(answering(events)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin))
        status, _ = client.head()
        assert status == 200
        arrived.put(b"head")
        for _ in range(10):
            size = int(client.file.readline(), 16)
            arrived.put(client.file.read(size))
            assert client.file.read(2) == b"\r\n"
        assert client.file.readline() == b"0\r\n"


def test_upload_arrives_piece_by_piece(gateway: Gateway) -> None:
    arrived: queue.Queue[bytes] = queue.Queue()

    def take(connection: Connection, request: Request) -> None:
        arrived.put(b"head")
        for piece in connection.pieces(request):
            arrived.put(piece)
        connection.answer(b"done")

    with Origin(answering(take)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin), method="POST", Transfer_Encoding="chunked")
        assert arrived.get(timeout=PATIENCE) == b"head"
        for piece in (b"a", b"bc", b"d" * 1000):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            got = b""
            while len(got) < len(piece):
                got += arrived.get(timeout=PATIENCE)
            assert got == piece
        client.send(b"0\r\n\r\n")
        assert client.answer().body == b"done"


def test_interim_answers_go_through(gateway: Gateway) -> None:
    def hinting(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        connection.answer(b"done")

    with Origin(answering(hinting)) as origin, Client(gateway.port) as client:
        client.ask(gateway.route(origin))
        status, fields = client.head()
        assert (status, dict(fields)["Link"]) == (103, "</style.css>; rel=preload")
        assert client.answer().body == b"done"


def test_many_at_a_time(gateway: Gateway, tmp_path: Path, files: Path, nginx_host: str) -> None:
    got = curl(
        gateway.port,
        *("--fail", "--parallel", "--parallel-immediate", "--parallel-max", "50"),
        *("-o", tmp_path / "#1", url(nginx_host, "/hello?[1-500]")),
    )
    assert got.returncode == 0, got.stderr
    bodies = [path.read_bytes() for path in tmp_path.iterdir()]
    assert bodies == [b"hello\n"] * 500


def test_a_small_answer_is_not_kept_waiting_by_large_ones(
    gateway: Gateway, nginx_host: str
) -> None:
    """While clients that read nothing hold their streams open, others are served."""
    clients = [Client(gateway.port) for _ in range(10)]
    for client in clients:
        client.ask(nginx_host, "/large")
    wait_until(lambda: gateway.outer.metric("sockgw_streams") == 10, "ten downloads have begun")
    assert fetch(gateway.port, nginx_host, "/hello").body == b"hello\n"
    assert gateway.outer.metric("sockgw_streams") == 10
    for client in clients:
        client.close()
