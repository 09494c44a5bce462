"""Origins that speak HTTP/2: nginx, in clear text and by ALPN, with clients that do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import Client, curl, fetch
from harness import Gateway, Keys, Process
from origins import Nginx
from test_tls import Authority, make_authority

# Requests after which nginx takes no more on a connection, and says so (GOAWAY).
FEW = 50

_LOG = """
    keepalive_requests %d;
    add_header X-Protocol $server_protocol;
    add_header X-Connection $connection;
    location = /upload { client_max_body_size 0; return 204; }
    location = /refused { return 403 "no"; }
"""
_TLS = "ssl_certificate %s; ssl_certificate_key %s;"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def own_gateway(
    tmp_path_factory: pytest.TempPathFactory, keys: Keys, authority: Authority
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("http2")
    with Gateway(directory, keys, inner=("--target-ca", authority.ca)) as gateway:
        yield gateway


class Target:
    """A host of the gateway whose origin is nginx with HTTP/2."""

    def __init__(self, gateway: Gateway, host: str) -> None:
        self.gateway = gateway
        self.host = host

    @property
    def port(self) -> int:
        return self.gateway.port

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"


@pytest.fixture(scope="module", params=["http2", "ssl http2"])
def target(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    own_gateway: Gateway,
    authority: Authority,
    files: Path,
) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("nginx")
    secure = "ssl" in request.param
    settings = _LOG % FEW + (_TLS % (authority.certificate, authority.key) if secure else "")
    with Nginx(directory, files, settings, listen=request.param) as nginx:
        protocol, hostname = ("https", "localhost") if secure else ("http", "127.0.0.1")
        host = own_gateway.route(nginx, protocol=protocol, hostname=hostname, http2=True)
        yield Target(own_gateway, host)
    own_gateway.assert_idle()


def test_it_is_http2(target: Target) -> None:
    answer = fetch(target.port, target.host, "/hello")
    assert answer.body == b"hello\n"
    assert answer.header("X-Protocol") == "HTTP/2.0"
    assert answer.header("Content-Length") == "6"


def test_answers_without_a_body(target: Target) -> None:
    with Client(target.port) as client:
        head = client.request(target.host, "/hello", "HEAD")
        assert (head.status, head.header("Content-Length")) == (200, "6")
        etag = client.request(target.host, "/hello").header("ETag")
        assert etag
        assert client.request(target.host, "/hello", If_None_Match=etag).status == 304
        assert client.request(target.host, "/empty").status == 204
        assert client.request(target.host, "/hello").body == b"hello\n"


def test_a_large_download_and_a_slow_one(target: Target, files: Path) -> None:
    size = (files / "large").stat().st_size
    with Client(target.port) as slow:
        slow.ask(target.host, "/large")
        got = curl(target.port, "--fail", target.url("/large"))
        assert hashlib.sha256(got.stdout).digest() == _sum(files / "large")
        for _ in range(5):
            assert fetch(target.port, target.host, "/hello").body == b"hello\n"
        assert len(slow.answer().body) == size


def test_an_upload(target: Target) -> None:
    got = curl(
        target.port,
        *("--data-binary", "@-", "-H", "Expect:", "-o", "/dev/null", "-w", "%{http_code}"),
        target.url("/upload"),
        input=b"x" * 3_000_000,
    )
    assert got.stdout == b"204", got.stderr


def test_goaways_lose_nothing(target: Target) -> None:
    """Whatever the method: nginx says which requests it has not looked at."""

    def ask(number: int) -> tuple[int, str | None]:
        path, method = ("/hello", "GET") if number % 2 else ("/empty", "POST")
        answer = fetch(target.port, target.host, path, method, Content_Length="0")
        return answer.status, answer.header("X-Connection")

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(600)))
    assert {status for status, _ in answers} == {200, 204}
    assert len({connection for _, connection in answers}) >= 600 // FEW


def test_an_origin_that_speaks_no_http2(
    own_gateway: Gateway, authority: Authority, files: Path, tmp_path: Path
) -> None:
    settings = _LOG % FEW + _TLS % (authority.certificate, authority.key)
    with Nginx(tmp_path, files, settings, listen="ssl") as nginx:
        host = own_gateway.route(nginx, protocol="https", hostname="localhost", http2=True)
        for _ in range(3):
            answer = fetch(own_gateway.port, host, "/hello")
            assert answer.header("X-Protocol") == "HTTP/1.1"
            assert answer.body == b"hello\n"


def test_an_origin_that_speaks_no_http2_and_has_no_choice(
    own_gateway: Gateway, nginx: Process
) -> None:
    host = own_gateway.route(nginx, http2=True)
    answer = fetch(own_gateway.port, host, "/hello")
    assert answer.status == 502
    assert answer.text == "the target's answer is not valid HTTP\n"


def _sum(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
