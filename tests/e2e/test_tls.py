"""TLS on both links, proxies on the way out, and what the inner layer refuses to reach."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
from cable import Cable, ConnectProxy
from clients import curl, fetch
from harness import Gateway, Inner, Keys, Outer, command, require, run
from origins import Connection, Origin, Request, answering
from wsclient import Stranger


@dataclass
class Authority:
    """A certificate authority, and a server's certificate by it, made by openssl."""

    ca: Path
    key: Path
    certificate: Path

    def endpoint(self, *more: str) -> str:
        """Return an endpoint with TLS on a free port."""
        parts = (
            "tls:0:interface=127.0.0.1",
            f"privateKey={self.key}",
            f"certKey={self.certificate}",
        )
        return ":".join([*parts, *more])

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


def make_authority(directory: Path) -> Authority:
    openssl = require("openssl")
    directory.mkdir(exist_ok=True)
    ca_key, ca, key, request, certificate, names = (
        directory / name
        for name in ("ca.key", "ca.pem", "server.key", "server.csr", "server.pem", "names")
    )
    # With all that Python 3.13 verifies: RFC 5280, section 4.2.1.
    names.write_text(
        "subjectAltName=DNS:localhost,DNS:outer.test,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n"
    )
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    new_key = ("-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    for arguments in (
        ("req", "-x509", *new_key, *usage, "-subj", "/CN=test CA", "-keyout", ca_key, "-out", ca),
        ("req", *new_key, "-subj", "/CN=server", "-keyout", key, "-out", request),
        (
            *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-days", "2", "-extfile", names, "-out", certificate),
        ),
    ):
        made = run(openssl, *arguments)
        assert made.returncode == 0, made.stderr
    return Authority(ca, key, certificate)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("other-authority"))


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, keys: Keys, authority: Authority
) -> Iterator[Outer]:
    """An outer layer with TLS on both ports."""
    directory = tmp_path_factory.mktemp("secure")
    endpoint = authority.endpoint()
    with Outer(directory, keys.certificate, socket=endpoint, app=endpoint) as outer:
        yield outer


# ---------------------------------------------------------------------- the tunnel


def test_tls_on_both_ports(
    secure: Outer, keys: Keys, authority: Authority, nginx_port: int, tmp_path: Path
) -> None:
    url = f"wss://localhost:{secure.socket_port}"
    with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca):
        secure.wait_for_tunnels(1)
        host = secure.route(nginx_port)
        got = curl(
            secure.app_port,
            *("--fail", "--cacert", authority.ca, "-H", f"Host: {host}", "https://localhost/hello"),
        )
        assert (got.returncode, got.stdout) == (0, b"hello\n"), got.stderr
        tls12 = curl(
            secure.app_port,
            *("--fail", "--cacert", authority.ca, "--tls-max", "1.2"),
            *("-H", f"Host: {host}", "https://localhost/large", "-o", tmp_path / "large"),
        )
        assert tls12.returncode == 0, tls12.stderr
    secure.wait_for_tunnels(0)


def test_https_is_told_to_the_origin(
    secure: Outer, keys: Keys, authority: Authority, tmp_path: Path
) -> None:
    def redirect(connection: Connection, request: Request) -> None:
        here = request.header("Host")
        connection.answer(b"", "302 Found", f"Location: http://{here}/there")

    url = f"wss://127.0.0.1:{secure.socket_port}"
    with (
        Origin(answering(redirect)) as origin,
        Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca),
    ):
        secure.wait_for_tunnels(1)
        host = secure.route(origin)
        got = curl(
            secure.app_port,
            *("-i", "--cacert", authority.ca, "-H", f"Host: {host}", "https://localhost/here"),
        )
        assert f"location: https://{host}/there".encode() in got.stdout.lower()
        assert origin.requests[0].header("X-Forwarded-Proto") == "https"
    secure.wait_for_tunnels(0)


def test_channel_binding_is_asked_for(secure: Outer, keys: Keys, authority: Authority) -> None:
    context = authority.client_context()
    mark = secure.log.mark()
    with Stranger(secure.socket_port, host="localhost", context=context) as stranger:
        stranger.greet(keys.private, host="localhost", binding=b"of another connection".ljust(32))
        challenge = stranger.challenge()
        assert msgpack.unpackb(challenge)["binding"] == "tls-exporter"
    with Stranger(secure.socket_port, host="localhost", context=context) as stranger:
        stranger.greet(keys.private, host="localhost", binding=b"of another connection".ljust(32))
        stranger.prove()
        assert stranger.wait_closed() == 1008
    secure.log.wait("inner layer refused: wrong signature", mark)


def test_somebody_between_with_a_good_certificate(
    secure: Outer, keys: Keys, authority: Authority, tmp_path: Path
) -> None:
    """Whoever ends TLS on the way, and be it with a certificate that we trust, gets nothing."""
    mark = secure.log.mark()
    between = Cable(
        secure.socket_port, server=authority.server_context(), client=authority.client_context()
    )
    with between:
        url = f"wss://localhost:{between.port}"
        with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca) as inner:
            inner.log.wait("refuses this inner layer")
            assert not inner.log.matching("connected to the outer layer wss")
    secure.log.wait("inner layer refused: wrong signature", mark)


def test_somebody_between_who_should_be_there(
    tmp_path: Path, keys: Keys, authority: Authority
) -> None:
    """A proxy that decrypts and encrypts again is possible, when the outer layer knows of it."""
    with Outer(
        tmp_path, keys.certificate, "--channel-binding", "no", socket=authority.endpoint()
    ) as outer:
        between = Cable(
            outer.socket_port, server=authority.server_context(), client=authority.client_context()
        )
        with between:
            url = f"wss://localhost:{between.port}"
            with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca) as inner:
                inner.wait_connected()


@pytest.mark.parametrize("options", ["other authority", "system's authorities"])
def test_certificate_by_an_unknown_authority(
    secure: Outer, keys: Keys, other_authority: Authority, tmp_path: Path, options: str
) -> None:
    ca = ("--outer-layer-ca", other_authority.ca) if options == "other authority" else ()
    mark = secure.log.mark()
    url = f"wss://localhost:{secure.socket_port}"
    with Inner(tmp_path, keys.private, url, *ca) as inner:
        assert "certificate" in inner.log.wait("no connection to the outer layer")
    assert not secure.log.matching("connected", mark)


def test_certificate_for_another_name(
    secure: Outer, keys: Keys, authority: Authority, tmp_path: Path
) -> None:
    with ConnectProxy("elsewhere.test", secure.socket_port) as proxy:
        env = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
        url = "wss://elsewhere.test"
        with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca, env=env) as inner:
            line = inner.log.wait("no connection to the outer layer")
    assert "elsewhere.test" in line
    assert "certificate" in line


def test_insecure_takes_any_certificate(secure: Outer, keys: Keys, tmp_path: Path) -> None:
    url = f"wss://localhost:{secure.socket_port}"
    with Inner(tmp_path, keys.private, url, "--insecure") as inner:
        inner.wait_connected()
    secure.wait_for_tunnels(0)


def test_client_certificate(tmp_path: Path, keys: Keys, authority: Authority) -> None:
    endpoint = authority.endpoint(f"clientCA={keys.certificate}")
    with Outer(tmp_path, keys.certificate, socket=endpoint) as outer:
        url = f"wss://localhost:{outer.socket_port}"
        ca = ("--outer-layer-ca", authority.ca)
        with Inner(tmp_path, keys.private, url, *ca, name="without") as inner:
            inner.log.wait("no connection to the outer layer")
            assert not inner.log.matching("connected to")
        with Inner(tmp_path, keys.private, url, *ca, "--certificate", keys.certificate) as inner:
            inner.wait_connected()


# ---------------------------------------------------------------------- proxies


def test_through_a_proxy(
    secure: Outer, keys: Keys, authority: Authority, nginx_port: int, tmp_path: Path
) -> None:
    """The proxy alone knows where the outer layer is, and sees nothing but TLS."""
    with ConnectProxy("outer.test", secure.socket_port) as proxy:
        env = {"HTTPS_PROXY": f"http://user:secret@127.0.0.1:{proxy.port}"}
        with Inner(
            tmp_path,
            keys.private,
            f"wss://outer.test:{secure.socket_port}",
            *("--outer-layer-ca", authority.ca),
            env=env,
        ) as inner:
            inner.wait_connected()
            secure.wait_for_tunnels(1)
            host = secure.route(nginx_port)
            got = curl(
                secure.app_port,
                *("--cacert", authority.ca, "-H", f"Host: {host}", "https://localhost/hello"),
            )
            assert got.stdout == b"hello\n"
            assert not inner.log.matching("secret")
        head = proxy.requests[0]
        assert head.startswith(f"CONNECT outer.test:{secure.socket_port} HTTP/1.1\r\n")
        assert "\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in head
        assert b"sockgw" not in proxy.recordings[0]
    secure.wait_for_tunnels(0)


def test_proxy_that_refuses(keys: Keys, authority: Authority, tmp_path: Path) -> None:
    with ConnectProxy("elsewhere.test", 1) as proxy:
        env = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
        url = "wss://outer.test:443"
        with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca, env=env) as inner:
            assert "403" in inner.log.wait("no connection to the outer layer")


def test_no_proxy(keys: Keys, authority: Authority, tmp_path: Path) -> None:
    with ConnectProxy("outer.test", 1) as proxy:
        env = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": ".test"}
        url = "wss://outer.test:443"
        with Inner(tmp_path, keys.private, url, "--outer-layer-ca", authority.ca, env=env) as inner:
            inner.log.wait("no connection to the outer layer")
        assert proxy.requests == []


def test_clear_text_to_another_machine(keys: Keys, tmp_path: Path) -> None:
    arguments = ("--private-key", keys.private, "--outer-layer", "ws://192.0.2.1:3001")
    got = run(command("twistd"), "-n", "--pidfile=", "sockgw-inner", *arguments, cwd=tmp_path)
    assert got.returncode != 0
    assert "--outer-layer: 'ws://192.0.2.1:3001' would send everything in clear text" in (
        got.stdout + got.stderr
    )
    assert "--insecure" in got.stdout + got.stderr


def test_clear_text_to_another_machine_if_asked_for(
    gateway: Gateway, keys: Keys, tmp_path: Path
) -> None:
    with ConnectProxy("outer.test", gateway.outer.socket_port) as proxy:
        with Inner(
            tmp_path,
            keys.private,
            f"ws://outer.test:{gateway.outer.socket_port}",
            "--insecure",
            env={"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"},
        ) as inner:
            inner.wait_connected()
        assert b"sockgw.1" in proxy.recordings[0]
    gateway.outer.wait_for_tunnels(1)


# ---------------------------------------------------------------------- origins


def tell_host(connection: Connection, request: Request) -> None:
    connection.answer((request.header("Host") or "").encode())


def test_https_origin(
    keys: Keys, authority: Authority, other_authority: Authority, tmp_path: Path
) -> None:
    inner = ("--target-ca", authority.ca)
    with (
        Gateway(tmp_path, keys, inner=inner) as gateway,
        Origin(answering(tell_host), authority.server_context()) as trusted,
        Origin(answering(tell_host), other_authority.server_context()) as unknown,
    ):
        host = gateway.route(trusted, protocol="https", hostname="localhost")
        for _ in range(2):
            assert fetch(gateway.port, host).text == f"localhost:{trusted.port}"
        assert trusted.accepted == 1
        host = gateway.route(unknown, protocol="https", hostname="localhost")
        answer = fetch(gateway.port, host)
        assert answer.status == 502
        assert answer.header("Proxy-Status") == "sockgw; error=tls_certificate_error"
        assert unknown.requests == []
        with Origin(lambda connection: connection.answer(b"", "400 Bad Request")) as plain:
            host = gateway.route(plain, protocol="https", hostname="localhost")
            assert fetch(gateway.port, host).status == 502


# ---------------------------------------------------------------------- the allow list


def assert_not_allowed(gateway: Gateway, host: str) -> None:
    answer = fetch(gateway.port, host)
    assert answer.status == 502
    assert answer.header("Proxy-Status") == "sockgw; error=destination_ip_prohibited"
    assert "the inner layer does not allow this target" in answer.text


def test_allow_list(keys: Keys, tmp_path: Path) -> None:
    with (
        Origin(answering(tell_host)) as allowed,
        Origin(answering(tell_host)) as other,
        Gateway(
            tmp_path, keys, inner=("--allow", f"127.0.0.0/8:{allowed.port},*.example.org")
        ) as gateway,
    ):
        assert fetch(gateway.port, gateway.route(allowed)).status == 200
        # The name is on no list, but what it leads to is.
        assert fetch(gateway.port, gateway.route(allowed, hostname="localhost")).status == 200
        assert_not_allowed(gateway, gateway.route(other))
        assert_not_allowed(gateway, gateway.route(allowed, hostname="192.0.2.1"))
        assert other.accepted == 0
        assert not gateway.inner.log.matching("no allow list")


def test_name_that_leads_to_what_is_not_allowed(keys: Keys, tmp_path: Path) -> None:
    with (
        Origin(answering(tell_host)) as origin,
        Gateway(tmp_path, keys, inner=("--allow", "10.0.0.0/8")) as gateway,
    ):
        assert_not_allowed(gateway, gateway.route(origin, hostname="localhost"))
        assert origin.accepted == 0


# Link-local, as cloud metadata is; but if it were dialled, nobody would be there.
@pytest.mark.parametrize("address", ["169.254.7.7", "::ffff:169.254.7.7", "fe80::7", "0.0.0.0"])
def test_link_local_is_refused_without_a_list(gateway: Gateway, address: str) -> None:
    assert gateway.inner.log.matching("no allow list")
    assert_not_allowed(gateway, gateway.route(80, hostname=address))


def test_services(keys: Keys, tmp_path: Path) -> None:
    """The inner layer alone knows where they are; its list allows what it names itself."""

    def redirect(connection: Connection, request: Request) -> None:
        connection.answer(b"", "302 Found", f"Location: http://{request.header('Host')}/there")

    with Origin(answering(redirect)) as origin:
        inner = ("--service", f"shop=http://127.0.0.1:{origin.port}", "--allow", "192.0.2.1")
        with Gateway(tmp_path, keys, inner=inner) as gateway:
            for name, service in (("shop.test", "shop"), ("other.test", "other")):
                gateway.outer.entries[name] = {"service": service}
            gateway.outer.replace_targets(json.dumps({"targets": gateway.outer.entries}))
            gateway.outer.reload()
            answer = fetch(gateway.port, "shop.test")
            assert answer.status == 302
            assert answer.header("Location") == "http://shop.test/there"
            answer = fetch(gateway.port, "other.test")
            assert answer.status == 502
            assert answer.header("Proxy-Status") == "sockgw; error=destination_not_found"
