"""Where to listen: a port number or a Twisted endpoint string becomes a server endpoint.

A bare number listens on all addresses, IPv6 and IPv4. ``tls:`` and ``ssl:`` are the same here and
stand in for Twisted's: TLS 1.2 or newer with AEAD suites only, and ``clientCA=FILE`` to ask for
client certificates. ``haproxy:`` may stand before any other; the PROXY header then comes before
the TLS handshake, as HAProxy's ``send-proxy`` sends it. Whatever else there is (``tcp6:``,
``unix:``, ``systemd:``, plugins) is Twisted's own, and so is ``tcp:`` unless its port is to be
shared with a successor.

::

    3000   tcp:3000:interface=127.0.0.1   unix:/run/sockgw/app.sock   systemd:domain=INET6:name=app
    tls:443:privateKey=server.key:certKey=server.crt:clientCA=ca.crt   haproxy:tcp:3000
    tls:443:certificates=/etc/letsencrypt/live:default=www.example.org:unknown=refuse
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

import errno
import os
import re
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import getPlugins
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from sockgw.certificatestore import CertificateStore, Settings
from sockgw.edge import Edge
from sockgw.proxied import ProxiedEndpoint
from sockgw.tlsserver import TLSEndpoint, server_context

__all__ = [
    "EXPECTED",
    "BeforeTLS",
    "describe",
    "listen_error",
    "server_endpoint",
    "udp_address",
    "validate",
]

EXPECTED = "a port number from 0 to 65535, or an endpoint such as tcp:3000:interface=127.0.0.1"
"""What a description must be, for errors."""

BeforeTLS = Callable[[IProtocolFactory], IProtocolFactory]
"""What stands between a listener and its TLS connections."""

_BACKLOG = 1024  # connections waiting to be accepted; Twisted's 50 is short for a gateway's bursts

_DIRECTORY_KEYS = frozenset(("default", "unknown"))
_TLS_KEYS = _DIRECTORY_KEYS | {
    *("port", "interface", "backlog", "clientCA"),
    *("privateKey", "certKey", "extraCertChain", "certificates"),
}


def server_endpoint(
    reactor: Any,
    description: str,
    *,
    reuse_port: bool = False,
    edge: Edge | None = None,
    before_tls: BeforeTLS | None = None,
) -> IStreamServerEndpoint:
    """Return the endpoint that ``description`` names; nothing listens yet.

    With ``reuse_port`` numbers, ``tcp:`` and ``tls:``, also behind ``haproxy:``, can be listened on
    by several processes of one user at a time (SO_REUSEPORT); the others are as without. ``edge``
    is what the listeners of a process share; without one PROXY headers are believed from this
    machine. What ``before_tls`` returns gets the connections of ``tls:``, in place of the factory
    of TLS connections that it is given. Reads the files that a TLS endpoint names. Raises
    ValueError with a sentence for an operator.
    """
    if edge is None:
        edge = Edge(time.monotonic)
    if description.isdecimal():
        return _TCP(reactor, _port(description), reuse_port=reuse_port)
    kind, _, rest = description.partition(":")
    if kind == "haproxy":
        return _behind_proxy(reactor, rest, reuse_port, edge, before_tls)
    if kind in ("tls", "ssl"):
        endpoint, store = _tls_parts(reactor, description, reuse_port, edge)
        return TLSEndpoint(reactor, _between(endpoint, before_tls), store, edge)
    _check(description)
    if kind == "tcp" and reuse_port:
        _from_twisted(reactor, description)  # for its errors
        return _shared_tcp(reactor, description)
    return _from_twisted(reactor, description)


def udp_address(description: str) -> tuple[int, str]:
    """Return the port and the interface of ``udp:53`` or ``udp:53:interface=127.0.0.1``.

    The interface is "" for all addresses. Raises ValueError with a sentence for an operator.
    """
    kind, positional, named = _split(description)
    if kind != "udp" or len(positional) != 1 or set(named) - {"interface"}:
        raise ValueError("it has the form udp:PORT or udp:PORT:interface=ADDRESS")
    interface = named.get("interface", "")
    if interface:
        try:
            ip_address(interface)
        except ValueError:
            raise ValueError(f"'{interface}' is no address") from None
    return _port(positional[0]), interface


def validate(description: str) -> None:
    """Check a description, with the files it names, without listening.

    What systemd hands over cannot be checked before it is there. Raises ValueError.
    """
    kind, _, rest = description.partition(":")
    if kind == "haproxy":
        _refuse_second_proxy(rest)
        validate(rest)
    elif description.isdecimal() or kind in ("tls", "ssl"):
        server_endpoint(None, description)
    else:
        _check(description)
        if kind in ("tcp", "tcp6", "unix"):
            _from_twisted(None, description)


def describe(port: IListeningPort, scheme: str = "http") -> str:
    """Return where a port listens, for a log line: ``http://127.0.0.1:3000``, ``unix:/run/app``."""
    address = port.getHost()
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    factory = getattr(port, "factory", None)
    while factory is not None:
        if isinstance(factory, TLSMemoryBIOFactory):
            scheme = "https"
        factory = getattr(factory, "wrappedFactory", None)
    host = str(getattr(address, "host", "?"))
    number = getattr(address, "port", "?")
    if host in ("::", "0.0.0.0", ""):
        return f"{scheme}://localhost:{number} (all addresses)"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}"


def listen_error(description: str, error: BaseException, option: str = "") -> str:
    """Return a sentence that says why ``description`` cannot be listened on.

    ``--app-port 3000: the port is taken (Address already in use)``
    """
    reason: BaseException = error
    if isinstance(error, CannotListenError) and isinstance(error.socketError, BaseException):
        reason = error.socketError
    number = getattr(reason, "errno", None)
    detail = os.strerror(number) if number is not None else str(reason)
    if isinstance(error, CannotListenError) and isinstance(error.socketError, str):
        detail = error.socketError  # Twisted's own, such as a lock file that is held
    is_path = "unix:" in description
    if number == errno.EADDRINUSE or (is_path and number is None and "lock" in detail):
        what = "the socket is taken" if is_path else "the port is taken"
    elif number in (errno.EACCES, errno.EPERM):
        what = "not permitted" if is_path else "not permitted for this user"
    elif number == errno.EADDRNOTAVAIL:
        what = "this machine has no such address"
    else:
        what = "cannot listen"
    return f"{f'--{option} ' if option else ''}{description}: {what} ({detail})"


@implementer(IStreamServerEndpoint)
class _TCP:
    """Listens on one address, or without one on all: one IPv6 socket that takes IPv4 as well.

    Twisted's ``tcp6:`` leaves IPV6_V6ONLY to the system's default, which differs between systems;
    so that socket is made here, and adopted. A machine without IPv6 gets an IPv4 socket.
    """

    def __init__(
        self,
        reactor: Any,
        port: int,
        interface: str = "",
        backlog: int = _BACKLOG,
        *,
        reuse_port: bool = False,
    ) -> None:
        self._reactor = reactor
        self._port = port
        self._interface = interface
        self._backlog = backlog
        self._reuse_port = reuse_port

    def listen(self, protocolFactory: IProtocolFactory) -> "Deferred[IListeningPort]":
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        port: IListeningPort
        dual = not self._interface and socket.has_dualstack_ipv6()
        if not dual and not self._reuse_port:
            port = self._reactor.listenTCP(self._port, factory, self._backlog, self._interface)
            return port
        try:
            family, address = self._address(dual)
            listening = socket.create_server(
                address,
                family=family,
                backlog=self._backlog,
                reuse_port=self._reuse_port,
                dualstack_ipv6=dual,
            )
        except OSError as error:
            raise CannotListenError(self._interface, self._port, error) from error
        with listening:
            listening.setblocking(False)
            port = self._reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
        return port

    def _address(self, dual: bool) -> tuple[socket.AddressFamily, Any]:
        if dual:
            return socket.AF_INET6, ("::", self._port)
        host = self._interface or "0.0.0.0"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = socket.getaddrinfo(host, self._port, family, socket.SOCK_STREAM)[0][4]
        return family, address


@implementer(IStreamServerEndpoint)
class _Between:
    """Another endpoint, with something between it and who listens."""

    def __init__(self, inner: IStreamServerEndpoint, before: BeforeTLS) -> None:
        self._inner = inner
        self._before = before

    def listen(self, protocolFactory: IProtocolFactory) -> "Deferred[IListeningPort]":
        return self._inner.listen(self._before(protocolFactory))


def _between(inner: IStreamServerEndpoint, before: BeforeTLS | None) -> IStreamServerEndpoint:
    return inner if before is None else _Between(inner, before)


def _refuse_second_proxy(description: str) -> None:
    if description.startswith("haproxy:"):
        raise ValueError("'haproxy:' stands twice")


def _behind_proxy(
    reactor: Any,
    description: str,
    reuse_port: bool,
    edge: Edge,
    before_tls: BeforeTLS | None,
) -> IStreamServerEndpoint:
    _refuse_second_proxy(description)
    if description.partition(":")[0] in ("tls", "ssl"):
        endpoint, store = _tls_parts(reactor, description, reuse_port, edge)
        proxied = ProxiedEndpoint(reactor, endpoint, edge)
        return TLSEndpoint(reactor, _between(proxied, before_tls), store, edge)
    endpoint = server_endpoint(reactor, description, reuse_port=reuse_port, edge=edge)
    return ProxiedEndpoint(reactor, endpoint, edge)


def _shared_tcp(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Return what Twisted makes of ``tcp:…``, with a port that can be shared."""
    _, positional, named = _split(description)
    number, interface, backlog = (*positional, "", "", "")[:3]
    return _TCP(
        reactor,
        _port(number or named["port"]),
        # Without an interface Twisted listens on IPv4 alone.
        interface or named.get("interface", "") or "0.0.0.0",
        int(backlog or named.get("backlog", str(_BACKLOG))),
        reuse_port=True,
    )


def _tls_parts(
    reactor: Any, description: str, reuse_port: bool, edge: Edge
) -> tuple[IStreamServerEndpoint, CertificateStore]:
    """Return the TCP endpoint and the certificates of ``tls:…``."""
    kind, positional, named = _split(description)
    if len(positional) > 1 or (positional and "port" in named):
        raise ValueError(f"'{kind}:' takes one port")
    unknown = sorted(set(named) - _TLS_KEYS)
    if unknown:
        raise ValueError(f"'{kind}:' has no '{unknown[0]}', only {', '.join(sorted(_TLS_KEYS))}")
    settings = _certificate_settings(kind, named)
    number = _port(positional[0] if positional else named.get("port", "443"))
    backlog = named.get("backlog", str(_BACKLOG))
    if not backlog.isdecimal():
        raise ValueError(f"backlog '{backlog}' is not a whole number")
    interface = named.get("interface", "")
    endpoint = _TCP(reactor, number, interface, int(backlog), reuse_port=reuse_port)
    store = edge.stores.get(settings)
    if store is None:
        store = edge.stores[settings] = CertificateStore(reactor, settings, server_context)
    return endpoint, store


def _certificate_settings(kind: str, named: dict[str, str]) -> Settings:
    client_ca = named.get("clientCA", "")
    if "certificates" not in named:
        if "privateKey" not in named:
            raise ValueError(f"'{kind}:' needs privateKey=FILE or certificates=DIRECTORY")
        for key in _DIRECTORY_KEYS & set(named):
            raise ValueError(f"'{key}' belongs to certificates=DIRECTORY")
        files = [named.get("certKey", named["privateKey"])]
        if "extraCertChain" in named:
            files.append(named["extraCertChain"])
        return Settings(named["privateKey"], tuple(files), client_ca=client_ca)
    for key in sorted({"privateKey", "certKey", "extraCertChain"} & set(named)):
        raise ValueError(f"'{key}' does not go with certificates=DIRECTORY")
    unknown, default = named.get("unknown", "default"), named.get("default", "")
    if unknown not in ("default", "refuse"):
        raise ValueError(f"unknown is default or refuse, not '{unknown}'")
    if default and unknown == "refuse":
        raise ValueError("'default' does not go with unknown=refuse")
    return Settings(
        directory=named["certificates"],
        default=default,
        strict=unknown == "refuse",
        client_ca=client_ca,
    )


def _from_twisted(reactor: Any, description: str) -> IStreamServerEndpoint:
    kind, _, named = _split(description)
    if kind in ("tcp", "tcp6") and "backlog" not in named:
        description += f":backlog={_BACKLOG}"
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
        return endpoint
    except KeyError as error:
        raise ValueError(f"no socket {error} was handed over by systemd") from None
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"Twisted does not take it: {error}") from None


def _check(description: str) -> None:
    """Check what Twisted would accept only to fail at, or blame on something else."""
    kind, positional, named = _split(description)
    if kind in ("tcp", "tcp6"):
        _port(positional[0] if positional else named.get("port", ""))
    elif kind == "unix":
        if not (positional and positional[0]) and not named.get("address"):
            raise ValueError("'unix:' needs a path")
    elif kind == "systemd":
        if len({"index", "name"} & set(named)) != 1 or "domain" not in named:
            raise ValueError("'systemd:' needs domain=INET, INET6 or UNIX, and name= or index=")
    elif not any(
        str(plugin.prefix).lower() == kind.lower()
        for plugin in getPlugins(IStreamServerEndpointStringParser)
    ):
        raise ValueError(f"there is no kind of endpoint called '{kind}'")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"'{text}' is not a port number")
    return int(text)


_PART = re.compile(r"(?:[^\\:]|\\.)+", re.DOTALL)
_NAMED = re.compile(r"((?:[^\\=]|\\.)*)=(.*)", re.DOTALL)


def _split(description: str) -> tuple[str, list[str], dict[str, str]]:
    """Return kind, positional and named arguments; a backslash quotes the next character."""
    kind, *arguments = _PART.findall(description) or [""]
    positional: list[str] = []
    named: dict[str, str] = {}
    for argument in arguments:
        match = _NAMED.fullmatch(argument)
        if match:
            named[_unquote(match[1])] = _unquote(match[2])
        else:
            positional.append(_unquote(argument))
    return kind, positional, named


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
