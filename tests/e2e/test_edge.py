"""The edge: certificates by name that change under load, load balancers, the way to https."""

import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certmaker import Maker, pem
from clients import Client, curl, fetch, sha256_of
from harness import (
    LOOPBACK,
    Inner,
    Keys,
    Outer,
    Process,
    command,
    listening_socket,
    require,
    run,
    wait_until,
)

HEAD_TIMEOUT = 1000  # ms
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"


class Edge:
    """An outer layer with every kind of app port, and what it shows."""

    def __init__(self, directory: Path, keys: Keys) -> None:
        self.maker = Maker()
        self.letsencrypt = directory / "letsencrypt"
        self.live = self.letsencrypt / "live"
        for name in ("a.test", "b.test"):
            self.maker.certbot(self.letsencrypt, name)
        self.maker.certbot(self.letsencrypt, "wild", "*.w.test")
        self.issued = 1
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(pem(self.maker.root))
        self.webroot = directory / "webroot"
        challenges = self.webroot / ".well-known" / "acme-challenge"
        challenges.mkdir(parents=True)
        (challenges / TOKEN).write_text(f"{TOKEN}.thumbprint")
        tls = f"tls:0:interface=127.0.0.1:certificates={self.live}:default=b.test"
        self.unix = directory / "app.sock"
        # The last one is what Outer takes for its app port.
        endpoints = (tls, LOOPBACK, f"haproxy:{tls}", f"haproxy:{LOOPBACK}")
        more = [part for each in endpoints[1:] for part in ("--app-port", each)]
        self.outer = Outer(
            directory,
            keys.certificate,
            *more,
            *("--admin-port", LOOPBACK),
            *("--head-timeout", str(HEAD_TIMEOUT)),
            *("--trust-proxy-protocol", "127.0.0.1"),
            *("--acme-challenges", self.webroot),
            *("--redirect-https", "8443", "--hsts", "max-age=300"),
            app=endpoints[0],
        )
        lines = self.outer.log.matching(r"listening on https?://")
        ports = [int(re.search(r":(\d+)$", line)[1]) for line in lines]  # type: ignore[index]
        self.tls, self.plain, self.haproxy_tls, self.haproxy_plain = ports[2:]

    def replace(self, name: str) -> None:
        """Renew a certificate as certbot does, and see that it is in force."""
        self.issued += 1
        mark = self.outer.log.mark()
        self.maker.certbot(self.letsencrypt, name, number=self.issued)
        self.outer.reload()
        assert self.outer.log.matching(f"{name}/fullchain.pem has been replaced", mark)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def connect(self, name: str) -> ssl.SSLSocket:
        wire = socket.create_connection(("127.0.0.1", self.tls), timeout=10)
        return self.context().wrap_socket(wire, server_hostname=name)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, keys: Keys, nginx_port: int) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    edge = Edge(directory, keys)
    with edge.outer, Inner(directory, keys.private, edge.outer.socket_port) as inner:
        inner.wait_connected()
        edge.outer.wait_for_tunnels(1)
        for name in ("a.test", "b.test", "x.w.test"):
            edge.outer.route(nginx_port, host=name)
        yield edge
    assert edge.outer.status == 0


# ---------------------------------------------------------------------- certificates


def shown(edge: Edge, *arguments: str) -> str:
    """Return the names in the certificate that openssl's client is shown."""
    got = run(
        require("openssl"),
        *("s_client", "-connect", f"127.0.0.1:{edge.tls}", "-CAfile", edge.ca),
        *("-verify_return_error", *arguments),
    )
    assert "Verify return code: 0 (ok)" in got.stdout, got.stderr
    made = run(require("openssl"), "x509", "-noout", "-ext", "subjectAltName", input=got.stdout)
    return ",".join(re.findall(r"DNS:(\S+)", made.stdout))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_is_shown_what_it_asks_for(edge: Edge, version: str) -> None:
    assert shown(edge, "-servername", "a.test", version) == "a.test"
    assert shown(edge, "-servername", "x.w.test", version) == "*.w.test"
    assert shown(edge, "-servername", "c.test", version) == "b.test"
    assert shown(edge, "-noservername", version) == "b.test"


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")])
def test_curl_verifies_each(edge: Edge, option: str, version: str) -> None:
    for name in ("a.test", "b.test", "x.w.test"):
        got = curl(edge.tls, "-i", option, "--cacert", edge.ca, f"https://{name}/hello")
        assert got.returncode == 0, got.stderr
        assert got.stdout.startswith(f"{version} 200 ".encode())
        assert got.stdout.endswith(b"\r\n\r\nhello\n")
        assert b"strict-transport-security: max-age=300" in got.stdout.lower()
    got = curl(edge.tls, "-sS", "--cacert", edge.ca, "https://c.test/hello")
    assert got.returncode == 60  # the default is for another name


def test_no_request_fails_while_certificates_are_replaced(edge: Edge) -> None:
    serials: dict[str, set[str]] = {"a.test": set(), "b.test": set()}
    failures: list[BaseException] = []
    over = threading.Event()

    def ask(name: str) -> None:
        context = edge.context()
        while not over.is_set():
            try:
                wire = socket.create_connection(("127.0.0.1", edge.tls), timeout=10)
                with context.wrap_socket(wire, server_hostname=name) as client:
                    serials[name].add(client.getpeercert()["serialNumber"])  # type: ignore
                    client.sendall(f"GET /hello HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
                    answer = b"".join(iter(lambda: client.recv(4096), b""))
                assert answer.startswith(b"HTTP/1.1 200 "), answer
                assert answer.endswith(b"\r\n\r\nhello\n"), answer
            except BaseException as error:  # noqa: BLE001 - whatever it was, it is a failure
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in serials for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: failures or all(serials.values()), "all have begun")
        for _ in range(3):
            for name, seen in serials.items():
                known = len(seen)
                edge.replace(name)
                wait_until(lambda: failures or len(seen) > known, "the new one is shown")  # noqa: B023
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(len(seen) >= 4 for seen in serials.values())


def test_a_download_goes_on_while_the_certificate_changes(edge: Edge, files: Path) -> None:
    with edge.connect("a.test") as client:
        client.sendall(b"GET /large HTTP/1.0\r\nHost: a.test\r\n\r\n")
        start = client.recv(65536)
        before = client.getpeercert()
        edge.replace("a.test")
        with edge.connect("a.test") as other:
            assert other.getpeercert() != before
        _, _, first = start.partition(b"\r\n\r\n")
        rest = [first]

        def read(size: int) -> bytes:
            return rest.pop() if rest and rest[0] else client.recv(size)

        assert sha256_of(read) == sha256_of(files / "large")


def test_half_of_a_renewal(edge: Edge) -> None:
    with edge.connect("b.test") as client:
        before = client.getpeercert()
    mark = edge.outer.log.mark()
    chain = edge.live / "b.test" / "fullchain.pem"
    kept = chain.readlink()
    chain.unlink()
    edge.outer.reload()
    line = edge.outer.log.wait("what was read before stays", mark)
    assert str(chain) in line
    with edge.connect("b.test") as client:
        assert client.getpeercert() == before
    chain.symlink_to(kept)
    edge.outer.reload()


def test_the_end_of_each_is_a_metric(edge: Edge) -> None:
    for name in ("a.test", "b.test", "wild"):
        file = edge.live / name / "fullchain.pem"
        end = edge.outer.metric(f'sockgw_certificate_expiry_timestamp_seconds{{file="{file}"}}')
        assert end == pytest.approx(time.time() + 89 * 86400, abs=3600)


# ---------------------------------------------------------------------- deadlines


def wait_closed(wire: socket.socket) -> None:
    """Wait until the other side closes."""
    wire.settimeout(10)
    try:
        while wire.recv(4096):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize("said", ["nothing", "half a hello", "drips"])
def test_a_handshake_that_is_not_finished_in_time(edge: Edge, said: str) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)
    mark = edge.outer.log.mark()
    failed = edge.outer.metric("sockgw_tls_failures_total")
    with socket.create_connection(("127.0.0.1", edge.tls)) as wire:
        started = time.monotonic()
        if said == "drips":
            try:
                for byte in hello:
                    wire.send(bytes([byte]))
                    time.sleep(0.02)
                    assert time.monotonic() - started < 10
            except OSError:
                pass
        elif said == "half a hello":
            wire.sendall(hello)
        wait_closed(wire)
        assert HEAD_TIMEOUT / 1000 - 0.1 < time.monotonic() - started < 8
    edge.outer.log.wait("TLS handshake failed address=127.0.0.1: not finished in time", mark)
    assert edge.outer.metric("sockgw_tls_failures_total") == failed + 1


def test_a_proxy_header_that_does_not_come(edge: Edge) -> None:
    mark = edge.outer.log.mark()
    with (
        socket.create_connection(("127.0.0.1", edge.haproxy_plain)) as plain,
        socket.create_connection(("127.0.0.1", edge.haproxy_tls)) as tls,
    ):
        plain.sendall(b"PROXY TCP4 ")
        started = time.monotonic()
        wait_closed(plain)
        wait_closed(tls)
        assert HEAD_TIMEOUT / 1000 - 0.1 < time.monotonic() - started < 8
    edge.outer.log.wait("127.0.0.1: no whole PROXY header in time", mark)


# ---------------------------------------------------------------------- PROXY headers


def test_headers_of_strangers(edge: Edge) -> None:
    mark = edge.outer.log.mark()
    refused = edge.outer.metric("sockgw_proxy_headers_refused_total")
    header = b"PROXY TCP4 203.0.113.7 203.0.113.1 1 80\r\n"
    request = b"GET /hello HTTP/1.1\r\nHost: a.test\r\n\r\n"
    for source, data in (("127.0.0.9", header + request), ("127.0.0.1", request)):
        with socket.create_connection(
            ("127.0.0.1", edge.haproxy_plain), source_address=(source, 0)
        ) as wire:
            wire.settimeout(10)
            try:
                wire.sendall(data)
                assert wire.recv(1) == b""
            except ConnectionError:
                pass
    edge.outer.log.wait(r"127\.0\.0\.9: not from there \(--trust-proxy-protocol\)", mark)
    edge.outer.log.wait(r"127\.0\.0\.1: no PROXY header", mark)
    assert edge.outer.metric("sockgw_proxy_headers_refused_total") == refused + 2


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_header_in_pieces_and_the_request_behind_it(edge: Edge, step: int) -> None:
    mark = edge.outer.access.mark()
    data = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 80\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
    with Client(edge.haproxy_plain) as client:
        for start in range(0, len(data), step):
            client.send(data[start : start + step])
        assert client.answer().status == 301
    edge.outer.access.wait(r"^2001:db8::7 - - .* 301 ", mark)


def test_who_has_not_sent_a_header_yet_is_served_while_draining(tmp_path: Path, keys: Keys) -> None:
    with (
        Outer(tmp_path, keys.certificate, app=f"haproxy:{LOOPBACK}") as outer,
        Client(outer.app_port) as client,
        Client(outer.app_port) as mute,
    ):
        mute.send(b"PROXY ")
        client.send(b"PROXY ")
        assert outer.metric("sockgw_clients") == 0  # it runs: signals are its own
        outer.signal(signal.SIGTERM)
        outer.log.wait("draining")
        client.send(b"UNKNOWN\r\nGET /healthz HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.answer().status == 200
        assert outer.wait() == 0


_HAPROXY = """
global
    stats socket {socket}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen v1
    bind fd@{0}
    server outer 127.0.0.1:{tls} send-proxy check check-send-proxy inter 200ms
listen v2
    bind fd@{1}
    server outer 127.0.0.1:{tls} send-proxy-v2 check check-send-proxy inter 200ms
listen v2-crc
    bind fd@{2}
    server outer 127.0.0.1:{tls} send-proxy-v2 proxy-v2-options crc32c,unique-id
listen v2-ssl
    bind fd@{3} ssl crt {certificate}
    server outer 127.0.0.1:{plain} send-proxy-v2-ssl-cn {options}
"""


class HAProxy(Process):
    """HAProxy before the outer layer, once for each way to tell of clients."""

    end = -signal.SIGTERM

    def __init__(self, directory: Path, edge: Edge) -> None:
        certificate = directory / "haproxy.pem"
        certificate.write_bytes(b"".join(edge.maker.issue("a.test")))
        listeners = [listening_socket() for _ in range(4)]
        self.ports = dict(
            zip(
                ("v1", "v2", "v2-crc", "v2-ssl"),
                (each.getsockname()[1] for each in listeners),
                strict=True,
            )
        )
        numbers = [each.fileno() for each in listeners]
        configuration = directory / "haproxy.cfg"
        configuration.write_text(
            _HAPROXY.format(
                *numbers,
                tls=edge.haproxy_tls,
                plain=edge.haproxy_plain,
                certificate=certificate,
                socket=directory / "stats.sock",
                options="proxy-v2-options ssl,cert-key,authority,crc32c",
            )
        )
        super().__init__(
            "haproxy",
            [require("haproxy"), "-db", "-f", configuration],
            directory,
            pass_fds=numbers,
        )
        for each in listeners:
            each.close()
        self._stats = directory / "stats.sock"

    def check(self, kind: str) -> str:
        """Return what its last health check has found."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self._stats))
            wire.sendall(b"show stat\n")
            with wire.makefile("r") as file:
                names, *rows = (line.rstrip(",\n").split(",") for line in file if "," in line)
        where = names.index("check_status")
        return next(row[where] for row in rows if row[:2] == [kind, "outer"])


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[HAProxy]:
    with HAProxy(tmp_path_factory.mktemp("haproxy"), edge) as haproxy:
        yield haproxy


@pytest.mark.parametrize("kind", ["v1", "v2", "v2-crc"])
def test_tls_behind_haproxy(edge: Edge, haproxy: HAProxy, kind: str) -> None:
    mark = edge.outer.access.mark()
    for name in ("a.test", "b.test"):
        got = curl(
            haproxy.ports[kind],
            *("-sS", "--interface", "127.0.0.5", "--cacert", edge.ca, f"https://{name}/hello"),
        )
        assert (got.returncode, got.stdout) == (0, b"hello\n"), got.stderr
        edge.outer.access.wait(rf"^127\.0\.0\.5 - - .* 200 6 .* target={name} ", mark)


def test_haproxy_ends_tls(edge: Edge, haproxy: HAProxy) -> None:
    """It tells of TLS in fields of the header, which decide nothing here: a redirect."""
    mark = edge.outer.access.mark()
    got = curl(
        haproxy.ports["v2-ssl"],
        *("-sS", "-i", "--interface", "127.0.0.5", "--cacert", edge.ca, "https://a.test/hello"),
    )
    assert got.stdout.startswith(b"HTTP/1.1 301 "), got.stderr
    edge.outer.access.wait(r"^127\.0\.0\.5 - - .* 301 ", mark)


def test_health_checks_of_haproxy_are_no_faults(edge: Edge, haproxy: HAProxy) -> None:
    refused = edge.outer.metric("sockgw_proxy_headers_refused_total")
    failed = edge.outer.metric("sockgw_tls_failures_total")
    for kind in ("v1", "v2"):
        wait_until(lambda: haproxy.check(kind) == "L4OK", "HAProxy has checked")  # noqa: B023
    assert edge.outer.metric("sockgw_proxy_headers_refused_total") == refused
    assert edge.outer.metric("sockgw_tls_failures_total") == failed


# ---------------------------------------------------------------------- http and https


def test_from_http_to_https(edge: Edge) -> None:
    got = run(
        require("curl"),
        *("-q", "-sS", "-L", "--cacert", edge.ca, "http://a.test/hello"),
        *("--connect-to", f"a.test:80:127.0.0.1:{edge.plain}"),
        *("--connect-to", f"a.test:8443:127.0.0.1:{edge.tls}"),
    )
    assert got.stdout == "hello\n", got.stderr
    answer = fetch(edge.plain, "a.test", "/x?y", "POST")
    assert (answer.status, answer.header("Location")) == (308, "https://a.test:8443/x?y")
    assert answer.header("Strict-Transport-Security") is None
    assert fetch(edge.plain, "evil.test").status == 404
    assert fetch(edge.plain, "127.0.0.1", "/healthz").status == 200


def test_challenges(edge: Edge) -> None:
    path = f"/.well-known/acme-challenge/{TOKEN}"
    for host in ("a.test", "new.test"):
        answer = fetch(edge.plain, host, path)
        assert (answer.status, answer.text) == (200, f"{TOKEN}.thumbprint")
    got = curl(edge.tls, "-sS", "--cacert", edge.ca, f"https://b.test{path}")
    assert got.stdout == f"{TOKEN}.thumbprint".encode()
    assert fetch(edge.plain, "new.test", path + "x").status == 404


def test_what_is_wrong_with_certificates_ends_the_start(
    tmp_path: Path, keys: Keys, edge: Edge
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    got = run(
        command("twistd"),
        *("-n", "--pidfile=", "sockgw-outer", "--public-key", keys.certificate),
        *(
            "--targets",
            edge.outer.targets,
            "--app-port",
            f"tls:0:certificates={empty}",
        ),
        cwd=tmp_path,
    )
    assert got.returncode != 0
    assert f"no certificate is in {empty}" in got.stdout + got.stderr
