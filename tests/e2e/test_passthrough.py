"""TLS that is passed through: real servers hold the only key, and the outer layer knows nothing.

One port of the outer layer ends TLS for ``open.test`` and passes it through for all else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cable import Cable
from clients import curl, fetch, sha256_of
from harness import PATIENCE, Gateway, Inner, Keys, Outer, Process, closed_port, require, wait_until
from identities import Identity
from origins import Connection, Nginx, Origin, Request, answering

ALERT = b"\x15\x03\x03\0\2\2"
INTERNAL_ERROR = ALERT + b"\x50"
DECODE_ERROR = ALERT + b"\x32"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """What the outer layer has."""
    return Identity(tmp_path_factory.mktemp("ours"), "outer", "open.test", "*.sealed.test")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """What only the origins have."""
    return Identity(tmp_path_factory.mktemp("theirs"), "origin", "sealed.test", "*.sealed.test")


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A client with a certificate."""
    return Identity(tmp_path_factory.mktemp("person"), "Alice", "alice.test")


@pytest.fixture(scope="module")
def sealed_nginx(
    tmp_path_factory: pytest.TempPathFactory, files: Path, theirs: Identity, person: Identity
) -> Iterator[Nginx]:
    settings = f"""
        ssl_certificate {theirs.certificate};
        ssl_certificate_key {theirs.key};
        ssl_client_certificate {person.ca};
        ssl_verify_client optional;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_early_data on;
        large_client_header_buffers 4 32k;
        location = /who {{ return 200 "$ssl_client_s_dn $server_protocol $ssl_server_name"; }}
        location = /early {{ return 200 "early:$ssl_early_data."; }}
    """
    directory = tmp_path_factory.mktemp("sealed-nginx")
    with Nginx(directory, files, settings, "ssl http2") as server:
        yield server


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
    keys: Keys,
    ours: Identity,
    sealed_nginx: Nginx,
    nginx: Nginx,
) -> Iterator[Gateway]:
    """A gateway with a plain port and one of TLS, which is its ``port``."""
    directory = tmp_path_factory.mktemp("both")
    with Gateway(directory, keys, ("--app-port", ours.endpoint())) as gateway:
        gateway.route(nginx, host="open.test")
        for host in ("sealed.test", "*.sealed.test"):
            gateway.route(sealed_nginx, host=host, protocol="tls")
        yield gateway
        gateway.assert_idle()


def plain_port(gateway: Gateway) -> int:
    line = gateway.outer.log.matching(r"listening on http://")[-1]
    return int(line.rpartition(":")[2])


def connect(port: int, name: str | None, context: ssl.SSLContext, **options: Any) -> ssl.SSLSocket:
    wire = socket.create_connection(("127.0.0.1", port), PATIENCE)
    return context.wrap_socket(wire, server_hostname=name, **options)


def get(wire: ssl.SSLSocket, host: str, path: str = "/hello") -> bytes:
    """Ask on a connection of its own, and return the whole answer."""
    wire.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while data := wire.recv(65_536):
        answer += data
    return answer


def said(port: int, data: bytes) -> bytes:
    """Send this, and return what comes until the connection's end."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        wire.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := wire.recv(65_536):
                answer += piece
        return answer


def hello_for(name: str, context: ssl.SSLContext | None = None) -> bytes:
    """Return a ClientHello of OpenSSL's."""
    out = ssl.MemoryBIO()
    context = context or ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


# ---------------------------------------------------------------------- whose TLS it is


def test_one_port(both: Gateway, ours: Identity, theirs: Identity) -> None:
    """Whoever answers has the certificate that he should, also to clients at the same time."""
    with contextlib.ExitStack() as stack:
        wires = [
            (stack.enter_context(connect(both.port, name, whose.client())), name, whose)
            for name, whose in [
                ("sealed.test", theirs),
                ("open.test", ours),
                ("a.sealed.test", theirs),
                ("open.test", ours),
            ]
        ]
        for wire, name, whose in wires:
            assert wire.getpeercert(binary_form=True) == whose.der
            answer = get(wire, name)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nhello\n")
            assert (b"X-Request-ID" in answer) is (whose is ours)


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        *(("SEALED.test", True), ("x.sealed.test", True), ("x.y.sealed.test", True)),
        *(("notsealed.test", False), ("test", False), ("elsewhere.test", False), (None, False)),
    ],
)
def test_names(
    both: Gateway, ours: Identity, theirs: Identity, name: str | None, passed: bool
) -> None:
    context = (theirs if passed else ours).client()
    context.check_hostname = False
    with connect(both.port, name, context) as wire:
        assert wire.getpeercert(binary_form=True) == (theirs if passed else ours).der
        who = get(wire, name or "nobody.test", "/who")
    assert who.split()[1] == (b"200" if passed else b"404")
    if passed and name is not None:
        assert who.lower().endswith(b" " + name.lower().encode())


def test_curl(both: Gateway, ours: Identity, theirs: Identity) -> None:
    version = ("-w", "%{http_version}")
    for whose, name, protocol in (
        (theirs, "sealed.test", "2"),
        (theirs, "b.sealed.test", "2"),
        (ours, "open.test", "2"),
    ):
        got = curl(both.port, "--cacert", whose.ca, *version, f"https://{name}/hello")
        assert (got.returncode, got.stdout) == (0, f"hello\n{protocol}".encode()), got.stderr
    got = curl(both.port, "--cacert", theirs.ca, "--http1.1", *version, "https://sealed.test/hello")
    assert got.stdout == b"hello\n1.1", got.stderr
    # The one's authority is not the other's.
    for whose, name in ((ours, "sealed.test"), (theirs, "open.test")):
        assert curl(both.port, "--cacert", whose.ca, f"https://{name}/hello").returncode == 60


def test_client_certificate(both: Gateway, theirs: Identity, person: Identity) -> None:
    """The origin sees it, for it has spoken with the client itself."""
    certificate = ("--cert", person.certificate, "--key", person.key)
    got = curl(both.port, "--cacert", theirs.ca, *certificate, "https://sealed.test/who")
    assert got.stdout == b"CN=Alice HTTP/2.0 sealed.test", got.stderr


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_resumption(both: Gateway, theirs: Identity, version: ssl.TLSVersion) -> None:
    context = theirs.client()
    context.minimum_version = context.maximum_version = version
    with connect(both.port, "sealed.test", context) as wire:
        assert b"hello" in get(wire, "sealed.test")
        session = wire.session
    with connect(both.port, "sealed.test", context, session=session) as wire:
        assert wire.session_reused
        assert b"hello" in get(wire, "sealed.test")


def test_early_data(both: Gateway, theirs: Identity, tmp_path: Path) -> None:
    """It comes with the ClientHello, and gets there with it."""
    tickets, request = tmp_path / "tickets", tmp_path / "request"
    request.write_bytes(b"GET /early HTTP/1.1\r\nHost: sealed.test\r\nConnection: close\r\n\r\n")
    where = ("-connect", f"127.0.0.1:{both.port}", "-servername", "sealed.test")
    client = [require("openssl"), "s_client", *where, "-CAfile", theirs.ca, "-tls1_3", "-ign_eof"]

    def run(*more: Any) -> bytes:
        arguments = [str(each) for each in (*client, *more)]
        got = subprocess.run(
            arguments, input=request.read_bytes(), capture_output=True, timeout=30, check=False
        )
        return got.stdout + got.stderr

    assert b"early:." in run("-sess_out", tickets)
    got = run("-sess_in", tickets, "-early_data", request)
    assert b"Early data was accepted" in got
    assert b"early:1." in got


class Reverser(Process):
    """openssl s_server that sends each line back in reverse."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        files = ("-cert", identity.certificate, "-key", identity.key)
        where = ("-accept", "127.0.0.1:0", "-rev")
        super().__init__("s_server", [require("openssl"), "s_server", *where, *files], directory)
        self.port = int(self.log.wait(r"ACCEPT .*:\d+").rpartition(":")[2])

    def stop(self) -> None:
        """It knows no good end."""
        self.kill()


def test_openssl_to_openssl(both: Gateway, theirs: Identity, tmp_path: Path) -> None:
    """No HTTP at all."""
    with Reverser(tmp_path, theirs) as server:
        name = both.route(server, host="rev.sealed.test", protocol="tls")
        where = ("-connect", f"127.0.0.1:{both.port}", "-servername", name)
        trust = ("-CAfile", theirs.ca, "-verify_return_error", "-verify_hostname", name, "-quiet")
        command = [str(each) for each in (require("openssl"), "s_client", *where, *trust)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            for line, answer in ((b"hello\n", b"olleh\n"), (b"CLOSE it\n", b"ti ESOLC\n")):
                client.stdin.write(line)
                client.stdin.flush()
                assert client.stdout.readline() == answer
            client.stdin.write(b"CLOSE\n")  # upon which s_server closes
            client.stdin.flush()
            assert client.stdout.read() == b""
            assert client.wait(PATIENCE) == 0


# ---------------------------------------------------------------------- how the ClientHello comes


def handshake(wire: socket.socket, context: ssl.SSLContext, name: str, step: int) -> ssl.SSLObject:
    """Do a handshake with a ClientHello in pieces of ``step`` bytes."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(into, out, server_hostname=name)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            data = out.read()
            for start in range(0, len(data), step):
                wire.sendall(data[start : start + step])
            into.write(wire.recv(65_536))
            continue
        wire.sendall(out.read())
        return tls


@pytest.mark.parametrize("size", [0, 1_300, 17_000, 40_000])
@pytest.mark.parametrize("name", ["sealed.test", "open.test"])
def test_large_hello_in_small_writes(
    both: Gateway, ours: Identity, theirs: Identity, name: str, size: int
) -> None:
    """As large as post-quantum key shares make it, or as two and three records are."""
    whose = theirs if name == "sealed.test" else ours
    offered = ["http/1.1", *(f"{number:03}" + "x" * 97 for number in range(size // 100))]
    with socket.create_connection(("127.0.0.1", both.port), PATIENCE) as wire:
        # What is as long as the link is small comes in no single bytes, for the test's sake.
        tls = handshake(wire, whose.client(*offered), name, 1 if size < 2_000 else 1_000)
        assert tls.getpeercert(binary_form=True) == whose.der


def test_fragments(both: Gateway, ours: Identity, theirs: Identity) -> None:
    """A ClientHello in records of a few bytes each: OpenSSL takes that, so do we."""
    for name in ("sealed.test", "open.test"):
        message = hello_for(name)[5:]
        pieces = [message[i : i + 7] for i in range(0, len(message), 7)]
        records = b"".join(
            b"\x16\x03\x01" + struct.pack(">H", len(piece)) + piece for piece in pieces
        )
        with socket.create_connection(("127.0.0.1", both.port), PATIENCE) as wire:
            wire.sendall(records)
            answer = b""
            while (theirs if name == "sealed.test" else ours).name.encode() not in answer:
                data = wire.recv(65_536)
                assert data
                answer += data
                if len(answer) > 500:  # TLS 1.3 encrypts the certificate
                    break
            assert answer[:3] == b"\x16\x03\x03"


# ---------------------------------------------------------------------- what the outer layer knows


def memory_holds(process: Process, secret: bytes) -> bool:
    """Return whether a process has this anywhere in its memory."""
    with (
        open(f"/proc/{process.pid}/maps") as maps,
        open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory,
    ):
        for line in maps:
            bounds, permissions, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if not permissions.startswith("rw"):
                continue
            with contextlib.suppress(OSError, ValueError):
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False


def test_the_outer_layer_sees_no_plain_text(
    both: Gateway, ours: Identity, theirs: Identity
) -> None:
    """While a request is under way its head is in the memory of whoever can read it."""
    arrived, go_on = threading.Event(), threading.Event()

    def wait(connection: Connection, request: Request) -> None:
        arrived.set()
        assert go_on.wait(30)
        connection.answer(b"done")

    key = b"".join(theirs.key.read_bytes().splitlines()[1:3])
    for whose, context, fields in (
        (theirs, theirs.server(), {"host": "secret.sealed.test", "protocol": "tls"}),
        (ours, None, {"host": "open2.test"}),
    ):
        arrived.clear()
        go_on.clear()
        with Origin(answering(wait), context) as origin:
            name = both.route(origin, **fields)
            secret = os.urandom(16).hex()
            client = whose.client()
            client.check_hostname = False
            with connect(both.port, name, client) as wire:
                wire.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nX: {secret}\r\n\r\n".encode())
                assert arrived.wait(PATIENCE)
                known = memory_holds(both.outer, secret.encode())
                known_inside = memory_holds(both.inner, secret.encode())
                go_on.set()
                assert wire.recv(65_536).endswith(b"done")
            assert known is known_inside is (whose is ours)
            assert origin.requests[0].header("X") == secret
    assert not memory_holds(both.outer, key)


# ---------------------------------------------------------------------- HTTP for such a name


def test_misdirected(both: Gateway, ours: Identity) -> None:
    mark = both.outer.access.mark()
    answer = fetch(plain_port(both), "sealed.test", "/hello")
    assert answer.status == 421
    with connect(both.port, "open.test", ours.client()) as wire:
        assert get(wire, "a.sealed.test").startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
    # A client of HTTP/2 may believe that the certificate of one connection is good for both names.
    other = ("-H", "Host: a.sealed.test", "-w", "%{http_version} %{http_code} ")
    got = curl(both.port, "--cacert", ours.ca, *other, "https://open.test/hello")
    assert got.stdout.endswith(b"2 421 "), got
    lines = [both.outer.access.wait(r" 421 .*target=sealed.test", mark)]
    lines.append(both.outer.access.wait(r" 421 .*target=\S*\*.sealed.test", mark))
    assert all("tries=0" in line for line in lines)


# ---------------------------------------------------------------------- the carrier, the origin


@pytest.fixture
def cuttable(
    tmp_path: Path, keys: Keys, ours: Identity, sealed_nginx: Nginx
) -> Iterator[tuple[Outer, Cable]]:
    with (
        Outer(tmp_path, keys.certificate, app=ours.endpoint()) as outer,
        Cable(outer.socket_port) as cable,
        Inner(tmp_path, keys.private, cable.port, "--reconnect-delay", "20"),
    ):
        outer.wait_for_tunnels(1)
        outer.route(sealed_nginx, host="sealed.test", protocol="tls")
        yield outer, cable


def test_the_carrier_is_cut(
    cuttable: tuple[Outer, Cable], theirs: Identity, files: Path, tmp_path: Path
) -> None:
    """In the middle of a download; TLS would notice a single bit."""
    outer, cable = cuttable
    context = theirs.client()
    digest = hashlib.sha256()
    length = (files / "large").stat().st_size
    with connect(outer.app_port, "sealed.test", context) as wire:
        wire.sendall(b"GET /large HTTP/1.1\r\nHost: sealed.test\r\n\r\n")
        with wire.makefile("rb") as file:
            while file.readline() != b"\r\n":
                pass
            for part in range(4):
                if part:
                    cable.cut()
                size = length // 4 if part < 3 else length - 3 * (length // 4)
                digest.update(file.read(size))
    assert digest.hexdigest() == sha256_of(files / "large")
    assert outer.metric("sockgw_resumes_total") >= 3
    assert outer.metric("sockgw_tunnels_lost_total") == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, keys: Keys, ours: Identity) -> Iterator[Outer]:
    """An outer layer without an inner one, with short times and low limits."""
    limits = ("--head-timeout", "500", "--max-client-hello", "2048", "--hold", "0")
    targets = {"sealed.test": {"hostname": "a.test", "protocol": "tls"}}
    directory = tmp_path_factory.mktemp("alone")
    with Outer(directory, keys.certificate, *limits, app=ours.endpoint(), targets=targets) as outer:
        yield outer
        assert not outer.log.matching("no --app-port is tls")


def test_nobody_is_there(alone: Outer, theirs: Identity) -> None:
    """Refusals are alerts, and each leaves a line."""
    mark = alone.access.mark()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.internal.error"):
        connect(alone.app_port, "sealed.test", theirs.client())
    alone.access.wait('"CONNECT sealed.test TLS" 502 .*target=sealed.test .*no inner layer', mark)
    got = curl(alone.app_port, "--cacert", theirs.ca, "https://sealed.test/")
    assert got.returncode == 35
    assert b"internal error" in got.stderr


def test_origin_down(both: Gateway, theirs: Identity) -> None:
    with closed_port() as port:
        name = both.route(port, host="down.sealed.test", protocol="tls")
        mark = both.outer.access.mark()
        assert said(both.port, hello_for(name)) == INTERNAL_ERROR
    both.outer.access.wait(rf'target={name} .*outcome="connection refused"', mark)


def test_either_side_may_end_first(both: Gateway) -> None:
    """To what comes after the ClientHello nobody listens; so it need not be TLS here."""
    seen: list[bytes] = []

    def wait_for_the_end(connection: Connection) -> None:
        seen.append(connection.file.read())
        connection.send(b"bye")

    def end_first(connection: Connection) -> None:
        connection.send(b"bye")
        connection.socket.shutdown(socket.SHUT_WR)
        seen.append(connection.file.read())

    with Origin(wait_for_the_end) as one, Origin(end_first) as other:
        for origin, name in ((one, "one.sealed.test"), (other, "other.sealed.test")):
            both.route(origin, host=name, protocol="tls")
            hello = hello_for(name)
            with socket.create_connection(("127.0.0.1", both.port), PATIENCE) as wire:
                wire.sendall(hello)
                if origin is one:
                    wire.shutdown(socket.SHUT_WR)
                with wire.makefile("rb") as file:
                    assert file.read() == b"bye"
                if origin is other:
                    wire.sendall(b" more")
                    hello += b" more"
            wait_until(lambda: seen, "the origin has seen the end")
            assert seen.pop() == hello


def test_not_for_these_clients(both: Gateway, sealed_nginx: Nginx) -> None:
    fields = {"protocol": "tls", "clients": ["192.0.2.0/24"]}
    name = both.route(sealed_nginx, host="private.sealed.test", **fields)
    mark = both.outer.access.mark()
    assert said(both.port, hello_for(name)) == INTERNAL_ERROR
    both.outer.access.wait(rf"target={name} ", mark)


def test_held(
    tmp_path: Path, keys: Keys, ours: Identity, theirs: Identity, sealed_nginx: Nginx
) -> None:
    """A client waits for an inner layer that was there lately."""
    with Outer(tmp_path, keys.certificate, "--resume-window", "0", app=ours.endpoint()) as outer:
        outer.route(sealed_nginx, host="sealed.test", protocol="tls")
        with Inner(tmp_path, keys.private, outer.socket_port):
            outer.wait_for_tunnels(1)
        outer.wait_for_tunnels(0)
        got: list[bytes] = []

        def ask() -> None:
            with connect(outer.app_port, "sealed.test", theirs.client()) as wire:
                got.append(get(wire, "sealed.test"))

        client = threading.Thread(target=ask)
        client.start()
        wait_until(lambda: outer.metric("sockgw_held_requests") == 1, "the client is held")
        with Inner(tmp_path, keys.private, outer.socket_port, name="another"):
            client.join(PATIENCE)
            assert got[0].endswith(b"hello\n")


# ---------------------------------------------------------------------- what is no ClientHello


def test_junk(alone: Outer) -> None:
    port = alone.app_port

    def failures(reason: str) -> float:
        return alone.metric(f'sockgw_hello_failures_total{{reason="{reason}"}}')

    hello = hello_for("sealed.test")
    assert said(port, hello.replace(b"sealed.test", b"sealed\0test")) == DECODE_ERROR
    assert failures("malformed") == 1
    big = ssl.create_default_context()
    big.set_alpn_protocols(["x" * 200] * 20)
    assert said(port, hello_for("sealed.test", big)) in (DECODE_ERROR, b"")  # a reset was faster
    assert failures("too-large") == 1
    # As everywhere where there is TLS: its alert, if it has one for that.
    said(port, b"GET / HTTP/1.1\r\nHost: sealed.test\r\n\r\n")
    alone.log.wait("TLS handshake failed address=127.0.0.1: http request")
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        try:
            for byte in hello[:-1]:
                wire.sendall(bytes([byte]))
                time.sleep(0.02)  # that is what it is like
        except OSError:
            pass
    assert 0.5 <= time.monotonic() - begun < 3
    assert failures("timeout") == 1
    assert said(port, b"") == b""  # in as much time, and nothing is said of it
    assert len(alone.log.matching("bad ClientHello address=127.0.0.1: ")) == 3
    wait_until(lambda: alone.metric("sockgw_clients") == 0, "all have gone")


# ---------------------------------------------------------------------- around it


def test_a_reload_brings_the_first_one(
    tmp_path: Path, keys: Keys, ours: Identity, theirs: Identity, sealed_nginx: Nginx
) -> None:
    with (
        Outer(tmp_path, keys.certificate, app=ours.endpoint()) as outer,
        Inner(tmp_path, keys.private, outer.socket_port),
    ):
        outer.wait_for_tunnels(1)
        before = connect(outer.app_port, "open.test", ours.client())
        context = ours.client()
        context.check_hostname = False
        with connect(outer.app_port, "sealed.test", context) as wire:
            assert wire.getpeercert(binary_form=True) == ours.der
        outer.route(sealed_nginx, host="sealed.test", protocol="tls")
        with connect(outer.app_port, "sealed.test", theirs.client()) as wire:
            assert get(wire, "sealed.test").endswith(b"hello\n")
            with before:
                assert get(before, "sealed.test").startswith(b"HTTP/1.1 421 ")
        outer.entries.clear()
        outer.route(sealed_nginx, host="other.test")
        with connect(outer.app_port, "sealed.test", context) as wire:
            assert wire.getpeercert(binary_form=True) == ours.der


def test_no_port_for_it(tmp_path: Path, keys: Keys) -> None:
    targets = {"sealed.test": {"hostname": "a.test", "protocol": "tls"}}
    with Outer(tmp_path, keys.certificate, targets=targets) as outer:
        assert outer.log.matching(
            "no --app-port is tls: nobody reaches the targets of protocol tls"
        )
        assert outer.metric("sockgw_clients") == 0  # it runs, and ends as it should


HEADER = b"PROXY TCP4 198.51.100.9 192.0.2.1 4444 443\r\n"


def test_behind_a_proxy(tmp_path: Path, keys: Keys, ours: Identity, theirs: Identity) -> None:
    """The PROXY header comes before the ClientHello, from the proxy and to the origin."""
    lines: list[bytes] = []

    def script(connection: Connection) -> None:
        wire = connection.socket
        line = b""
        while not line.endswith(b"\r\n"):
            line += wire.recv(1)
        lines.append(line)
        with theirs.server().wrap_socket(wire, server_side=True) as tls:
            tls.recv(65_536)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsealed")
            tls.recv(1)

    def wait_for_the_end(connection: Connection) -> None:
        connection.file.read()
        connection.send(b"bye")

    def answer(connection: Connection, request: Request) -> None:
        connection.answer((request.header("X-Forwarded-For") or "").encode())

    with (
        Outer(tmp_path, keys.certificate, app=f"haproxy:{ours.endpoint()}") as outer,
        Inner(tmp_path, keys.private, outer.socket_port),
        Origin(script) as sealed,
        Origin(wait_for_the_end) as other,
        Origin(answering(answer)) as plain,
    ):
        outer.wait_for_tunnels(1)
        outer.route(sealed, host="sealed.test", protocol="tls", **{"proxy-protocol": 1})
        outer.route(plain, host="open.test")
        for name, whose, body in (
            ("sealed.test", theirs, b"sealed"),
            ("open.test", ours, b"198.51.100.9"),
        ):
            wire = socket.create_connection(("127.0.0.1", outer.app_port), PATIENCE)
            wire.sendall(HEADER)
            with whose.client().wrap_socket(wire, server_hostname=name) as tls:
                tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                with tls.makefile("rb") as file:
                    while (line := file.readline()) != b"\r\n":
                        assert line
                    assert file.read(len(body)) == body
        outer.route(other, host="other.test", protocol="tls")
        with socket.create_connection(("127.0.0.1", outer.app_port), PATIENCE) as wire:
            wire.sendall(HEADER + hello_for("other.test"))
            wire.shutdown(socket.SHUT_WR)
            with wire.makefile("rb") as file:
                assert file.read() == b"bye"
    assert lines == [HEADER]
