"""Where the outer layer is, and how a connection gets there: proxy, TLS, or neither."""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from sockgw.inner.proxy import Proxy, ProxyEndpoint
from sockgw.inner.tcp import TCPEndpoint, is_loopback
from sockgw.inner.tls import TLSEndpoint, client_context

__all__ = ["OuterLayer"]

_CONNECT_TIMEOUT = 30.0  # seconds for resolving, connecting, the proxy's answer and TLS together
_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_HOST = re.compile(r"[a-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class OuterLayer:
    """The outer layer as ``--outer-layer`` and the options beside it describe it."""

    url: str  #: as it was given; holds no secret
    host: str  #: name or address, in lower case, without brackets
    port: int
    secure: bool  #: wss
    proxy: Proxy | None
    _context: SSL.Context | None = field(repr=False)
    _proxy_context: SSL.Context | None = field(repr=False)

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        ca_file: str | None = None,
        certificate: str | None = None,
        private_key_path: str | None = None,
        insecure: bool = False,
        proxy: str | None = None,
    ) -> "OuterLayer":
        """Read a ``ws`` or ``wss`` URL and load what TLS needs.

        ``ca_file`` holds the authorities trusted instead of the system's; ``certificate``, with
        ``private_key_path``, is sent where the outer layer asks for one; all are PEM files.
        ``proxy`` is a URL as :func:`sockgw.inner.proxy.proxy_for` returns it. ``insecure`` permits
        ws to other machines and verifies no certificate. An empty string counts as None. Raises
        ValueError saying what is wrong.
        """
        secure, host, port = _read(url)
        if not secure and not insecure and not is_loopback(host):
            raise ValueError(
                f"{url}: ws:// would carry everything in the clear to another machine;"
                " use wss://, or --insecure if that is what you want"
            )
        way = Proxy.parse(proxy) if proxy else None
        return cls(
            url=url,
            host=host,
            port=port,
            secure=secure,
            proxy=way,
            _context=client_context(
                (ca_file,) if ca_file else (),
                system_roots=not ca_file,
                certificate=certificate,
                private_key=private_key_path,
                verify=not insecure,
            )
            if secure
            else None,
            _proxy_context=client_context() if way is not None and way.secure else None,
        )

    @property
    def is_loopback(self) -> bool:
        """Whether the outer layer runs on this machine."""
        return is_loopback(self.host)

    def endpoint(self, reactor: Any, timeout: float = _CONNECT_TIMEOUT) -> IStreamClientEndpoint:
        """Return what connects to the outer layer, within ``timeout`` seconds.

        ``connect`` fires after the proxy's answer and the TLS handshake. It fails with ProxyError,
        TLSError, ConnectError, DNSLookupError, or twisted.internet.defer.TimeoutError.
        """
        endpoint: IStreamClientEndpoint
        if self.proxy is None:
            endpoint = TCPEndpoint(reactor, self.host, self.port)
        else:
            proxy = self.proxy
            endpoint = TCPEndpoint(reactor, proxy.host, proxy.port)
            if self._proxy_context is not None:
                endpoint = TLSEndpoint(reactor, endpoint, proxy.host, self._proxy_context)
            endpoint = ProxyEndpoint(endpoint, self.host, self.port, proxy.authorization)
        if self._context is not None:
            endpoint = TLSEndpoint(reactor, endpoint, self.host, self._context)
        return _InTime(reactor, endpoint, timeout)


@implementer(IStreamClientEndpoint)
class _InTime:
    """Another endpoint's connections, if they come about within ``timeout`` seconds."""

    def __init__(self, clock: Any, endpoint: IStreamClientEndpoint, timeout: float) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._endpoint.connect(protocolFactory).addTimeout(self._timeout, self._clock)


def _read(url: str) -> tuple[bool, str, int]:
    """Return whether the URL is secure, its host and its port."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        # Not repeated: what stands there may be a password.
        raise ValueError("the outer layer's URL has a user or password, which nothing would use")
    if "#" in url:
        raise ValueError(f"{url!r}: a WebSocket URL has no fragment (RFC 6455, section 3)")
    unusable = ValueError(f"{url!r} is not where an outer layer is; expected ws[s]://HOST[:PORT]")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise unusable from None
    host = parts.hostname or ""
    if parts.scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(host) or port == 0:
        raise unusable
    return parts.scheme == "wss", host, _DEFAULT_PORTS[parts.scheme] if port is None else port
