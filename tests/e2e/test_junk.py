"""Whatever is thrown at a port: a bounded answer, one log line, and nothing else disturbed."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Client, fetch
from harness import Gateway, Inner, Keys, wait_until
from origins import Connection, Origin, Request, answering
from wsclient import upgrade_request

# Beginnings of what other protocols say. Each ends in a complete line or record.
TLS_HELLO = bytes.fromhex(
    "16030100310100002d0303000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "00000213010100000200"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
JUNK = {
    "random bytes": random.Random(1).randbytes(10_000),
    "zeros": bytes(1000),
    "TLS hello": TLS_HELLO,
    "HTTP/2 preface": PREFACE,
    "almost an HTTP/2 preface": PREFACE.replace(b"SM", b"MS"),
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "PROXY header": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\r\n",
    "lines without end": b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000,
    "a line without end": b"GET /" + b"a" * 100_000,
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    """A gateway that gives heads and handshakes half a second."""
    outer = ("--handshake-timeout", "500", "--head-timeout", "500")
    with Gateway(tmp_path_factory.mktemp("impatient"), keys, outer) as gateway:
        yield gateway


def drained(client: Client) -> bytes:
    """Read all that comes until the connection ends, whether in good order or not."""
    received = b""
    try:
        while data := client.socket.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def throw(port: int, data: bytes) -> tuple[bytes, float]:
    """Send data and return what comes back, and how long the connection lived."""
    begun = time.monotonic()
    with Client(port) as client:
        with contextlib.suppress(ConnectionError):  # it may be refused before it is all sent
            client.send(data)
        received = drained(client)
    return received, time.monotonic() - begun


@pytest.mark.parametrize("name", [name for name in JUNK if JUNK[name] != PREFACE])
def test_app_port(impatient: Gateway, nginx_port: int, name: str) -> None:
    host = impatient.route(nginx_port, host="nginx.test")
    events, requests = impatient.outer.log.mark(), impatient.outer.access.mark()
    received, took = throw(impatient.port, JUNK[name])
    assert took < 4
    assert received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ", b"HTTP/1.1 505 "))
    assert len(received) < 2000
    impatient.outer.access.wait("outcome=", requests)
    assert fetch(impatient.port, host, "/hello").body == b"hello\n"
    impatient.outer.access.wait('"GET /hello HTTP/1.1" 200 ', requests)
    assert len(impatient.outer.access.lines(requests)) == 2
    assert impatient.outer.log.lines(events) == []


def test_an_http2_client_that_says_no_more_than_its_preface(impatient: Gateway) -> None:
    requests = impatient.outer.access.mark()
    received, took = throw(impatient.port, PREFACE)
    assert took < 4
    assert received[3] == 4  # SETTINGS first, GOAWAY last
    assert received[-17:] == bytes.fromhex("00000807") + bytes(13)
    assert impatient.outer.access.lines(requests) == []


@pytest.mark.parametrize("name", JUNK)
def test_socket_port(impatient: Gateway, name: str) -> None:
    mark = impatient.outer.log.mark()
    received, took = throw(impatient.outer.socket_port, JUNK[name])
    assert took < 4
    assert not received or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505 "))
    assert len(received) < 2000
    impatient.outer.log.wait("socket port: refused 127.0.0.1: ", mark)
    assert fetch(impatient.outer.socket_port, "localhost", "/readyz").status == 200
    assert len(impatient.outer.log.lines(mark)) == 1


@pytest.mark.parametrize("port", ["app", "socket"])
def test_head_that_drips(impatient: Gateway, port: str) -> None:
    """Each byte comes in time, the whole does not."""
    number = impatient.outer.socket_port if port == "socket" else impatient.port
    begun = time.monotonic()
    with Client(number) as client:
        client.socket.settimeout(0.02)
        client.send(b"GET / HTTP/1.1\r\n")

        def answered() -> bool:
            try:
                client.send(b"A")
                client.socket.recv(1)
            except TimeoutError:
                return False
            except ConnectionError:
                pass
            return True

        wait_until(answered, "it is closed")
    assert 0.4 < time.monotonic() - begun < 2


def test_many_silent_connections(impatient: Gateway, nginx_port: int) -> None:
    """They are closed in time, and meanwhile others are served."""
    host = impatient.route(nginx_port, host="nginx.test")
    ports = (impatient.port, impatient.outer.socket_port)
    clients = [Client(port) for port in ports for _ in range(200)]
    begun = time.monotonic()
    try:
        for client in clients:
            client.send(b"G")
        assert fetch(impatient.port, host, "/hello").body == b"hello\n"
        for client in clients:
            drained(client)
        assert time.monotonic() - begun < 5
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: impatient.outer.metric("sockgw_clients") == 0, "all are forgotten")


def test_half_open_upgrade(impatient: Gateway) -> None:
    """What follows an upgrade before its answer is no part of a WebSocket."""
    mark = impatient.outer.log.mark()
    received, took = throw(impatient.outer.socket_port, upgrade_request() + b"\x82\x85too early")
    assert took < 2
    impatient.outer.wait_for_tunnels(1)
    assert len(impatient.outer.log.lines(mark)) <= 1
    assert len(received) < 1000


@pytest.mark.parametrize("path", ["/", "/admin", "/metrics", "/nothing", "/../etc/passwd", "//"])
def test_socket_port_has_no_more_than_it_says(impatient: Gateway, path: str) -> None:
    answer = fetch(impatient.outer.socket_port, "localhost", path)
    expected = {"/": 426, "/metrics": 200}.get(path, 404)
    assert answer.status == expected


def test_body_to_the_socket_port(impatient: Gateway) -> None:
    """twisted.web would store it before anybody looks at it."""
    with Client(impatient.outer.socket_port) as client:
        client.ask("localhost", "/metrics", "GET", Content_Length="1000000000")
        assert client.answer().status == 413


def test_connection_limit(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> None:
    directory = tmp_path_factory.mktemp("limited")
    with Gateway(directory, keys, ("--max-connections", "3")) as gateway:
        held = [Client(gateway.port) for _ in range(3)]
        for client in held:
            assert client.request("localhost", "/healthz").status == 200
        # The reset may come before connect() has returned.
        with contextlib.suppress(ConnectionResetError), Client(gateway.port) as refused:
            assert refused.ends()
        held.pop().close()

        def served() -> bool:
            try:
                return fetch(gateway.port, "localhost", "/healthz").status == 200
            except (AssertionError, ConnectionError):
                return False

        wait_until(served, "there is room again")
        for client in held:
            client.close()


def test_stream_and_tunnel_limits(tmp_path: Path, keys: Keys) -> None:
    def wait(connection: Connection, request: Request) -> None:
        if request.target == "/wait":
            assert released.wait(10)
        connection.answer(b"done")

    released = threading.Event()
    options = ("--max-streams", "2", "--max-tunnels", "1")
    with (
        Origin(answering(wait)) as origin,
        Gateway(tmp_path, keys, options) as gateway,
        Client(gateway.port) as one,
        Client(gateway.port) as two,
    ):
        host = gateway.route(origin)
        for client in (one, two):
            client.ask(host, "/wait")
        wait_until(lambda: gateway.outer.metric("sockgw_streams") == 2, "both are under way")
        answer = fetch(gateway.port, host)
        assert answer.status == 503
        assert answer.header("Retry-After") == "1"
        with Inner(tmp_path, keys.private, gateway.outer.socket_port, name="second") as second:
            gateway.outer.log.wait("inner layer innerLayer turned away: max-tunnels is reached")
            second.log.wait("no connection to the outer layer")
        released.set()
        assert [client.answer().text for client in (one, two)] == ["done", "done"]
        assert fetch(gateway.port, host).status == 200


def test_socket_that_is_reset_at_once(gateway: Gateway) -> None:
    for port in (gateway.port, gateway.outer.socket_port):
        for _ in range(20):
            client = Client(port)
            client.reset()
    assert fetch(gateway.port, "localhost", "/readyz").status == 200


def test_urgent_data(gateway: Gateway) -> None:
    with Client(gateway.port) as client:
        client.socket.send(b"!", socket.MSG_OOB)
        assert client.request("localhost", "/readyz").status == 200
