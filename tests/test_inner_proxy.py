"""HTTP proxies: which one is taken, what it is asked, and what is made of its answer."""

import pytest
from inner_certificates import Client
from inner_reactor import Reactor, Transport
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from sockgw.inner.proxy import Proxy, ProxyEndpoint, ProxyError, proxy_for
from sockgw.inner.tcp import TCPEndpoint

CLIENTS = Factory.forProtocol(Client)
OPEN = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"


class ProxyEndpointTests(SynchronousTestCase):
    def ask(
        self, host: str = "outer.example", authorization: bytes | None = None
    ) -> tuple["Deferred[Client]", Transport]:
        memory = Reactor(["192.0.2.1"])
        proxy = TCPEndpoint(memory, "proxy.example", 3128)
        connecting = ProxyEndpoint(proxy, host, 443, authorization).connect(CLIENTS)
        return connecting, memory.succeed(0)

    def refused(self, connecting: "Deferred[Client]") -> str:
        return str(self.failureResultOf(connecting, ProxyError).value)

    def test_request(self) -> None:
        _, transport = self.ask()
        assert transport.value() == (
            b"CONNECT outer.example:443 HTTP/1.1\r\nHost: outer.example:443\r\n\r\n"
        )
        _, transport = self.ask("2001:db8::1", b"Basic dTpw")
        assert transport.value() == (
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
            b"Proxy-Authorization: Basic dTpw\r\n\r\n"
        )

    def test_hands_over_whole(self) -> None:
        connecting, transport = self.ask()
        transport.protocol.dataReceived(OPEN)
        client = self.successResultOf(connecting)
        assert client.transport is transport
        assert client.received == b""
        transport.protocol.dataReceived(b"hello")
        assert client.received == b"hello"
        transport.lose(ConnectionLost())
        assert isinstance(self.successResultOf(client.lost), ConnectionLost)

    def test_hands_over_byte_by_byte_and_in_one_piece_with_what_follows(self) -> None:
        for size in (1, len(OPEN) + 1, 1000):
            connecting, transport = self.ask()
            answer = OPEN + b"hello"
            for start in range(0, len(answer), size):
                transport.protocol.dataReceived(answer[start : start + size])
            assert self.successResultOf(connecting).received == b"hello"

    def test_success_has_no_body(self) -> None:
        connecting, transport = self.ask()
        transport.protocol.dataReceived(b"HTTP/1.0 299\r\nContent-Length: 3\r\n\r\nabc")
        assert self.successResultOf(connecting).received == b"abc"

    def test_refusals(self) -> None:
        long_reason = b"x" * 500
        for answer, text in (
            (b"HTTP/1.1 407 Proxy Authentication Required", "407 Proxy Authentication Required"),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0", "403 Forbidden"),
            (b"HTTP/1.1 502", "502"),
            (b"HTTP/1.1 100 Continue", "100 Continue"),
            (b"HTTP/1.1 403 a\x1b[31m\x00\xff", "403 a[31mÿ"),
            (b"HTTP/1.1 403 " + long_reason, "403 " + "x" * 100),
            (b"HTTP/2 200 OK", "something that is not HTTP"),
            (b"SSH-2.0-x", "something that is not HTTP"),
            (b"HTTP/1.1 2000 OK", "something that is not HTTP"),
            (b"x" * 9000, "a head that is too long"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 8192, "a head that is too long"),
        ):
            connecting, transport = self.ask(authorization=b"Basic c2VjcmV0")
            transport.protocol.dataReceived(answer + b"\r\n\r\nbody")
            assert self.refused(connecting) == f"the proxy answered {text}"
            assert transport.aborted
            transport.protocol.dataReceived(b"more")
            transport.lose()

    def test_endless_head_is_not_kept(self) -> None:
        connecting, transport = self.ask()
        for _ in range(8191):
            transport.protocol.dataReceived(b"x")
        self.assertNoResult(connecting)
        transport.protocol.dataReceived(b"x")
        assert self.refused(connecting) == "the proxy answered a head that is too long"

    def test_proxy_that_closes(self) -> None:
        connecting, transport = self.ask()
        transport.protocol.dataReceived(b"HTTP/1.1 200")
        transport.lose()
        assert self.refused(connecting) == "the proxy closed the connection without an answer"

    def test_proxy_that_cannot_be_reached(self) -> None:
        memory = Reactor(["192.0.2.1"])
        proxy = TCPEndpoint(memory, "proxy.example", 3128)
        connecting = ProxyEndpoint(proxy, "outer.example", 443, None).connect(CLIENTS)
        memory.fail(0, ConnectionRefusedError())
        assert self.refused(connecting).startswith("the proxy cannot be reached: ")

    def test_cancelled(self) -> None:
        connecting, transport = self.ask()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        assert transport.aborted
        transport.protocol.dataReceived(OPEN)
        transport.lose()

    def test_no_secret_in_repr(self) -> None:
        proxy = Proxy.parse("http://user:secret@proxy.example:3128")
        tcp = TCPEndpoint(Reactor([]), proxy.host, proxy.port)
        endpoint = ProxyEndpoint(tcp, "outer.example", 443, proxy.authorization)
        for text in (repr(proxy), repr(endpoint)):
            assert "proxy.example" in text
            assert "secret" not in text
            assert "dXNlc" not in text


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.example:3128", Proxy("proxy.example", 3128, False, None)),
        ("http://Proxy.example/", Proxy("proxy.example", 80, False, None)),
        ("https://proxy.example", Proxy("proxy.example", 443, True, None)),
        ("proxy.example:3128", Proxy("proxy.example", 3128, False, None)),
        ("http://[::1]:3128", Proxy("::1", 3128, False, None)),
        ("http://u:p@proxy.example", Proxy("proxy.example", 80, False, b"Basic dTpw")),
        ("http://u%3a:p%40@proxy.example", Proxy("proxy.example", 80, False, b"Basic dTo6cEA=")),
        ("http://u@proxy.example", Proxy("proxy.example", 80, False, b"Basic dTo=")),
    ],
)
def test_proxy_urls(url: str, proxy: Proxy) -> None:
    assert Proxy.parse(url) == proxy


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://u:secret@",
        "socks5://u:secret@proxy.example",
        "http://u:secret@proxy.example:0",
        "http://u:secret@proxy.example:99999",
        "http://u:secret@proxy.example:port",
        "http://u:secret@[::1",
        "http://u:secret\u2100@proxy.example",
        "http://u:secret@proxy.example/path",
        "http://u:secret@proxy.example?query",
    ],
)
def test_bad_proxy_urls_are_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="a proxy is written") as caught:
        Proxy.parse(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


WSS = "wss://outer.example:3001/path"
LOWER = {"https_proxy": "http://a", "http_proxy": "http://b", "all_proxy": "http://c"}
UPPER = {"HTTPS_PROXY": "http://d", "HTTP_PROXY": "http://e", "ALL_PROXY": "http://f"}


@pytest.mark.parametrize(
    ("url", "configured", "environ", "proxy"),
    [
        (WSS, None, {}, None),
        (WSS, "http://x", {}, "http://x"),
        (WSS, "http://x", LOWER, "http://x"),
        ("ws://localhost:3001", "http://x", {"no_proxy": "*"}, "http://x"),
        (WSS, "", LOWER, None),
        (WSS, None, LOWER, "http://a"),
        ("ws://outer.example", None, LOWER, "http://b"),
        (WSS, None, UPPER, "http://d"),
        ("ws://outer.example", None, UPPER, "http://e"),
        (WSS, None, LOWER | UPPER, "http://a"),
        (WSS, None, {"http_proxy": "http://b"}, None),
        (WSS, None, {"ALL_PROXY": "http://f"}, "http://f"),
        (WSS, None, UPPER | {"https_proxy": "", "all_proxy": ""}, None),
        *(
            (f"wss://{host}:3001", None, LOWER, None)
            for host in ("localhost", "127.0.0.9", "[::1]")
        ),
        *(
            (WSS, None, LOWER | {"no_proxy": entry}, None)
            for entry in (
                "*",
                "outer.example",
                "OUTER.example",
                ".example",
                "*.example",
                "example",
                "a, outer.example:3001 ,b",
            )
        ),
        *(
            (WSS, None, LOWER | {"no_proxy": entry}, "http://a")
            for entry in (
                "",
                ",",
                "ter.example",
                "outer.example:3002",
                "xouter.example",
                "10.0.0.0/8",
            )
        ),
        (WSS, None, LOWER | {"NO_PROXY": "example"}, None),
        ("wss://10.1.2.3", None, LOWER | {"no_proxy": "10.0.0.0/8"}, None),
        ("wss://[fd00::1]", None, LOWER | {"no_proxy": "a,fd00::/8"}, None),
        ("wss://11.1.2.3", None, LOWER | {"no_proxy": "10.0.0.0/8"}, "http://a"),
    ],
)
def test_which_proxy(
    url: str, configured: str | None, environ: dict[str, str], proxy: str | None
) -> None:
    assert proxy_for(url, configured, environ) == proxy
