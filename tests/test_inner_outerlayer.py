"""The outer layer's address, and real connections to it: TLS, client certificates, proxies."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from inner_certificates import Authority, Client, Echo, Listener, ServerContext
from inner_reactor import Reactor
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OverallTimeoutError
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from sockgw.inner.outerlayer import OuterLayer
from sockgw.inner.proxy import ProxyError
from sockgw.inner.tls import TLSError

CLIENTS = Factory.forProtocol(Client)


@pytest.mark.parametrize(
    ("url", "secure", "host", "port"),
    [
        ("wss://outer.example", True, "outer.example", 443),
        ("wss://Outer_Layer:3001/some/path?x=y", True, "outer_layer", 3001),
        ("wss://10.0.0.1:3001", True, "10.0.0.1", 3001),
        ("wss://[fd00::1]:3001/", True, "fd00::1", 3001),
        ("ws://localhost:3001", False, "localhost", 3001),
        ("ws://LOCALHOST.", False, "localhost.", 80),
        ("ws://127.0.0.2", False, "127.0.0.2", 80),
        ("ws://[::1]", False, "::1", 80),
    ],
)
def test_urls(url: str, secure: bool, host: str, port: int) -> None:
    layer = OuterLayer.parse(url)
    assert (layer.url, layer.secure, layer.host, layer.port) == (url, secure, host, port)
    assert layer.is_loopback is not secure
    assert layer.proxy is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "outer.example",
        "localhost:3001",
        "http://outer.example",
        "https://outer.example",
        "wss://",
        "wss://:3001",
        "wss://outer.example:0",
        "wss://outer.example:70000",
        "wss://outer.example:port",
        "wss://[::1",
        "wss://outer example",
        "wss://outer.example#fragment",
        "wss://outer.example/path#",
    ],
)
def test_bad_urls_are_named(url: str) -> None:
    with pytest.raises(ValueError, match="'") as caught:
        OuterLayer.parse(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("rest", ["outer.example", "[::1", "outer.example:port", "x#y"])
def test_user_and_password_are_refused_and_not_repeated(rest: str) -> None:
    with pytest.raises(ValueError, match="has a user or password") as caught:
        OuterLayer.parse(f"wss://user:secret@{rest}")
    assert "secret" not in str(caught.value)


def test_clear_text_stays_on_this_machine() -> None:
    for url in ("ws://outer.example", "ws://10.0.0.1", "ws://localhost.example", "ws://0.0.0.0"):
        with pytest.raises(ValueError, match=r"in the clear .* --insecure"):
            OuterLayer.parse(url)
        assert not OuterLayer.parse(url, insecure=True).is_loopback


def test_unusable_files_and_proxies_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent"):
        OuterLayer.parse("wss://outer.example", ca_file=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="a proxy is written"):
        OuterLayer.parse("wss://outer.example", proxy="socks://proxy.example")


def test_empty_settings_are_none() -> None:
    layer = OuterLayer.parse(
        "wss://outer.example", ca_file="", certificate="", private_key_path="key", proxy=""
    )
    assert layer.proxy is None


def test_no_secret_in_repr() -> None:
    text = repr(OuterLayer.parse("wss://outer.example", proxy="http://user:secret@proxy.example"))
    assert "outer.example" in text
    assert "proxy.example" in text
    assert "secret" not in text
    assert "dXNlc" not in text


class EndpointTests(SynchronousTestCase):
    def test_bounded_in_time(self) -> None:
        for url, proxy, begun in (
            ("ws://localhost", None, False),
            ("wss://outer.example", None, True),
            ("wss://outer.example", "http://proxy.example", True),
            ("wss://outer.example", "https://proxy.example", True),
        ):
            memory = Reactor(["192.0.2.1"])
            endpoint = OuterLayer.parse(url, proxy=proxy).endpoint(memory, 7.0)
            connecting = endpoint.connect(CLIENTS)
            if begun:
                transport = memory.succeed(0)
            memory.advance(6.9)
            self.assertNoResult(connecting)
            memory.advance(0.2)
            self.failureResultOf(connecting, OverallTimeoutError)
            if begun:
                assert transport.aborted
            assert memory.getDelayedCalls() == []


class ConnectProxy(Protocol):
    """An HTTP proxy that opens tunnels to any port of 127.0.0.1, if asked with the password."""

    requests: list[bytes]
    _head = b""
    _far: Any = None

    def dataReceived(self, data: bytes) -> None:
        if self._far is not None:
            self._far.transport.write(data)
            return
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        self.requests.append(self._head)
        if b"\r\nProxy-Authorization: Basic dTpw\r\n" not in self._head:
            self.transport.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            self.transport.loseConnection()
            return
        port = int(self._head.split()[1].rpartition(b":")[2])
        far = _Far(self)
        connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port), far).addCallbacks(
            self._connected, lambda _: self.transport.loseConnection()
        )

    def _connected(self, far: "_Far") -> None:
        self._far = far
        # In one piece with the first bytes of the far side, if there are any yet.
        self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n" + far.early)
        far.early = b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._far is not None:
            self._far.transport.loseConnection()


class _Far(Protocol):
    early = b""

    def __init__(self, near: ConnectProxy) -> None:
        self._near = near

    def dataReceived(self, data: bytes) -> None:
        if self._near._far is None:
            self.early += data
        else:
            self._near.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._near.transport.loseConnection()


class RealEndpointTests(TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = tempfile.TemporaryDirectory()
        cls.authority = Authority(Path(cls.directory.name), "authority")
        cls.other = Authority(Path(cls.directory.name), "other")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.directory.cleanup()

    def serve(
        self, names: list[str] | None, *, ca: str | None = None, protocol: type[Protocol] = Echo
    ) -> Listener:
        """Start a server, with TLS where ``names`` for its certificate are given."""
        context = None
        if names is not None:
            context = ServerContext(*self.authority.issue("server", names), ca=ca)
        server = Listener(reactor, protocol, context)
        self.addCleanup(Deferred.fromCoroutine, server.close())
        return server

    async def works(self, layer: OuterLayer) -> None:
        client = await layer.endpoint(reactor).connect(CLIENTS)
        client.transport.write(b"echo")
        await client.until(b"hello echo")
        await client.close()

    async def fails(self, layer: OuterLayer, error: type[Exception]) -> str:
        return str(await self.assertFailure(layer.endpoint(reactor).connect(CLIENTS), error))

    async def test_clear_text(self) -> None:
        server = self.serve(None)
        await self.works(OuterLayer.parse(f"ws://localhost:{server.port}"))
        await self.works(OuterLayer.parse(f"ws://127.0.0.1:{server.port}"))

    async def test_nobody_there(self) -> None:
        server = Listener(reactor, Echo)
        await server.close()
        layer = OuterLayer.parse(f"ws://localhost:{server.port}")
        await self.fails(layer, ConnectionRefusedError)

    async def test_verified(self) -> None:
        server = self.serve(["localhost"])
        url = f"wss://localhost:{server.port}/path"
        await self.works(OuterLayer.parse(url, ca_file=self.authority.file))
        for layer in (OuterLayer.parse(url), OuterLayer.parse(url, ca_file=self.other.file)):
            assert "authority is not trusted" in await self.fails(layer, TLSError)
        await self.works(OuterLayer.parse(url, insecure=True))

    async def test_the_file_is_trusted_instead_of_the_system(self) -> None:
        server = self.serve(["localhost"])
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        patch.setenv("SSL_CERT_FILE", self.authority.file)
        url = f"wss://localhost:{server.port}"
        await self.works(OuterLayer.parse(url))
        await self.fails(OuterLayer.parse(url, ca_file=self.other.file), TLSError)

    async def test_wrong_name(self) -> None:
        server = self.serve(["outer.example"])
        url = f"wss://localhost:{server.port}"
        layer = OuterLayer.parse(url, ca_file=self.authority.file)
        assert await self.fails(layer, TLSError) == "certificate is not for localhost"
        await self.works(OuterLayer.parse(url, ca_file=self.authority.file, insecure=True))

    async def test_client_certificate(self) -> None:
        server = self.serve(["localhost"], ca=self.other.file)
        certificate, key = self.other.issue("client", ["office"])
        url = f"wss://localhost:{server.port}"
        await self.works(
            OuterLayer.parse(
                url, ca_file=self.authority.file, certificate=certificate, private_key_path=key
            )
        )
        without = OuterLayer.parse(url, ca_file=self.authority.file, private_key_path=key)
        client = await without.endpoint(reactor).connect(CLIENTS)
        assert "certificate required" in str(await client.lost)

    async def test_through_a_proxy(self) -> None:
        ConnectProxy.requests = []
        plain_proxy = self.serve(None, protocol=ConnectProxy)
        # The proxy is verified with the system's authorities.
        tls_proxy = self.serve(["localhost"], protocol=ConnectProxy)
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        patch.setenv("SSL_CERT_FILE", self.authority.file)
        for scheme, server in (("ws", self.serve(None)), ("wss", self.serve(["outer.example"]))):
            for proxy in (
                f"http://u:p@localhost:{plain_proxy.port}",
                f"https://u:p@localhost:{tls_proxy.port}",
            ):
                # Only the proxy knows where outer.example is.
                url = f"{scheme}://outer.example:{server.port}"
                layer = OuterLayer.parse(url, insecure=scheme == "ws", proxy=proxy)
                await self.works(layer)
                request = ConnectProxy.requests.pop().decode()
                assert request.startswith(f"CONNECT outer.example:{server.port} HTTP/1.1\r\n")

    async def test_proxy_that_refuses(self) -> None:
        ConnectProxy.requests = []
        proxy = self.serve(None, protocol=ConnectProxy)
        layer = OuterLayer.parse(
            "wss://outer.example", proxy=f"http://u:secret@localhost:{proxy.port}"
        )
        problem = await self.fails(layer, ProxyError)
        assert problem == "the proxy answered 407 Who are you"

    async def test_proxy_that_cannot_be_trusted(self) -> None:
        proxy = self.serve(["localhost"], protocol=ConnectProxy)
        layer = OuterLayer.parse("wss://outer.example", proxy=f"https://u:p@localhost:{proxy.port}")
        problem = await self.fails(layer, ProxyError)
        assert problem == "the proxy cannot be reached: certificate's authority is not trusted"

    async def test_server_behind_the_proxy_is_verified(self) -> None:
        ConnectProxy.requests = []
        proxy = self.serve(None, protocol=ConnectProxy)
        server = self.serve(["other.example"])
        layer = OuterLayer.parse(
            f"wss://outer.example:{server.port}",
            ca_file=self.authority.file,
            proxy=f"http://u:p@localhost:{proxy.port}",
        )
        assert await self.fails(layer, TLSError) == "certificate is not for outer.example"
