"""A way out through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6), and which proxy to take."""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote_to_bytes, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.http.headers import serialize
from sockgw.inner.preamble import Preamble
from sockgw.inner.tcp import host_and_port, is_loopback
from sockgw.inner.tls import TLSError

__all__ = ["Proxy", "ProxyEndpoint", "ProxyError", "proxy_for"]

_MAX_HEAD = 8192  # bytes of the proxy's answer; a status line and a few fields are a tenth of it
_MAX_REASON = 100  # characters of its reason phrase that we repeat
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\r\n]*))?\r\n")

_DEFAULT_PORTS = {"http": 80, "https": 443}


class ProxyError(Exception):
    """The proxy did not open the way; the text says what it answered."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as its URL names it."""

    host: str
    port: int
    secure: bool  #: TLS to the proxy itself
    authorization: bytes | None = field(repr=False)  #: value of Proxy-Authorization

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """Read ``[http[s]://][user:password@]host[:port]``.

        Raises ValueError, whose text does not repeat the password.
        """
        expected = ValueError("a proxy is written http[s]://[user:password@]host[:port]")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise expected from None
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
            raise expected
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise expected
        authorization = None
        if parts.username is not None:
            # RFC 7617: the first colon ends the user name, so one within it cannot be sent.
            user = unquote_to_bytes(parts.username)
            password = unquote_to_bytes(parts.password or "")
            authorization = b"Basic " + b64encode(user + b":" + password)
        return cls(
            host=parts.hostname,
            port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
            secure=parts.scheme == "https",
            authorization=authorization,
        )


def proxy_for(url: str, configured: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy to take to a ``ws`` or ``wss`` URL; None for none.

    ``configured`` wins over the environment, and ``""`` means none. Else it is ``https_proxy`` for
    wss, ``http_proxy`` for ws, or ``all_proxy``, in lower case before upper case. ``no_proxy``
    excepts hosts: names, domains, addresses, networks, ``*``. This machine needs no exception: what
    a proxy calls localhost is another one.
    """
    if configured is not None:
        return configured or None
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or _bypassed(host, parts.port, _variable(environ, "no_proxy")):
        return None
    by_scheme = "https_proxy" if parts.scheme == "wss" else "http_proxy"
    return _variable(environ, by_scheme) or _variable(environ, "all_proxy") or None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, environ.get(name.upper(), ""))


def _bypassed(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether the list, separated by commas, has the host; read as curl and urllib do."""
    names = (f".{host}", f".{host}:{port}")
    for entry in no_proxy.lower().split(","):
        domain = entry.strip().removeprefix("*.").removeprefix(".")
        if domain == "*" or (domain and any(name.endswith(f".{domain}") for name in names)):
            return True
        try:
            if ip_address(host) in ip_network(domain, strict=False):
                return True
        except ValueError:
            continue  # a name
    return False


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """Reaches ``host:port`` through the proxy that ``endpoint`` connects to.

    ``authorization`` is the value of Proxy-Authorization. The caller bounds the time.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, host: str, port: int, authorization: bytes | None
    ) -> None:
        self._endpoint = endpoint
        self._authority = host_and_port(host, port)
        self._authorization = authorization

    def __repr__(self) -> str:
        return f"<ProxyEndpoint {self._authority} over {self._endpoint!r}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the connected protocol once the proxy has opened the way.

        Fails with ProxyError.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        try:
            return await _Connect(factory, self._request()).over(self._endpoint)
        except (ConnectError, DNSLookupError, TLSError) as error:
            raise ProxyError(f"the proxy cannot be reached: {error}") from None

    def _request(self) -> bytes:
        authority = self._authority.encode("ascii")
        headers = [(b"Host", authority)]
        if self._authorization is not None:
            headers.append((b"Proxy-Authorization", self._authorization))
        return serialize(b"CONNECT " + authority + b" HTTP/1.1", headers)


class _Connect(Preamble):
    """Asks the proxy for a tunnel and reads its answer."""

    def __init__(self, factory: IProtocolFactory, request: bytes) -> None:
        super().__init__(factory)
        self._request = request
        self._head = b""
        self._protocol: IProtocol | None = None

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def give_way(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def dataReceived(self, data: bytes) -> None:
        if self._protocol is not None:
            self._protocol.dataReceived(data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n", 0, _MAX_HEAD)
        if end < 0:
            if len(self._head) >= _MAX_HEAD:
                self._refused("a head that is too long")
            return
        status = _STATUS_LINE.match(self._head)
        if status is None:
            self._refused("something that is not HTTP")
        elif not status[1].startswith(b"2"):
            reason = status[2] or b""
            text = "".join(filter(str.isprintable, reason.decode("latin-1")))[:_MAX_REASON]
            self._refused(f"{status[1].decode()} {text}".rstrip())
        else:
            # A success has no body, whatever its fields say (RFC 9110, section 9.3.6).
            rest, self._head = self._head[end + 4 :], b""
            self.hand_over()
            if rest and self._protocol is not None:
                self._protocol.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._protocol is not None:
            self._protocol.connectionLost(reason)
        else:
            self.fail(ProxyError("the proxy closed the connection without an answer"))

    def _refused(self, answer: str) -> None:
        self._head = b""
        self.transport.abortConnection()
        self.fail(ProxyError(f"the proxy answered {answer}"))
