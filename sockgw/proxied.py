"""Listeners behind a load balancer that speaks the PROXY protocol (``haproxy:``).

The header comes first, before TLS. Until it is there, whoever listens hears nothing; then it is
told of a connection between the addresses that the header names. Believed is who is trusted to
tell: anybody else could claim to be any client. A connection that brings no header is closed, since
a client that goes around the balancer looks like that.
"""

# Twisted leaves much of this without types:
# mypy: allow-untyped-calls

from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, noLongerProvides, providedBy

from sockgw.edge import Edge
from sockgw.proxyprotocol import Addresses, HeaderError, parse

__all__ = ["Proxied", "ProxiedEndpoint"]

_log = Logger()


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """Another endpoint's connections, as the headers describe them."""

    def __init__(self, reactor: Any, inner: IStreamServerEndpoint, edge: Edge) -> None:
        self._reactor = reactor
        self._inner = inner
        self._edge = edge

    def listen(self, protocolFactory: IProtocolFactory) -> "Deferred[IListeningPort]":
        return self._inner.listen(_ProxiedFactory(protocolFactory, self._reactor, self._edge))


class _ProxiedFactory(WrappingFactory):
    noisy = False

    def __init__(self, wrapped: IProtocolFactory, reactor: Any, edge: Edge) -> None:
        super().__init__(wrapped)
        self.reactor = reactor
        self.edge = edge

    def logPrefix(self) -> str:
        return "PROXY"

    def buildProtocol(self, addr: IAddress | None) -> "Proxied":
        return Proxied(self)


class Proxied(ProtocolWrapper):
    """A connection: first the header's reader, then between its transport and its protocol."""

    factory: _ProxiedFactory
    wrappedProtocol: Any  # None until the header is there
    transport: Any

    def __init__(self, factory: _ProxiedFactory) -> None:
        super().__init__(cast(Any, factory), cast(Any, None))
        self._received = b""
        self._closing = False
        self._deadline: IDelayedCall | None = None
        self._peer: IAddress | None = None
        self._host: IAddress | None = None

    # ------------------------------------------------------------------ until the header is there

    def makeConnection(self, transport: Any) -> None:
        directlyProvides(self, providedBy(transport))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        edge = self.factory.edge
        peer = transport.getPeer()
        # A process of this machine, which has got past the socket's permissions.
        trusted = isinstance(peer, UNIXAddress) or edge.trusts(getattr(peer, "host", "?"))
        if not trusted:
            self._refuse("not from there (--trust-proxy-protocol)")
        elif len(edge.waiting) >= edge.max_waiting:
            self._refuse("too many wait for a PROXY header")
        else:
            edge.waiting.add(self)
            self._deadline = self.factory.reactor.callLater(edge.patience, self._late)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self._received += data
        try:
            header = parse(self._received)
        except HeaderError as error:
            self._refuse(str(error))
            return
        if header is None:
            return
        rest = self._received[header.size :]
        self._received = b""
        self._settle()
        if header.addresses is not None:
            self._peer, self._host = _as_twisted(header.addresses)
        self._begin(rest)

    def _begin(self, rest: bytes) -> None:
        protocol = self.factory.wrappedFactory.buildProtocol(self.getPeer())
        if protocol is None:
            self.transport.abortConnection()
            return
        # From here on nothing but the addresses is ours.
        self.write = self.transport.write  # type: ignore[method-assign]
        self.writeSequence = self.transport.writeSequence  # type: ignore[method-assign]
        self.pass_to(protocol)
        protocol.makeConnection(self)
        if rest:
            self.dataReceived(rest)

    def _late(self) -> None:
        self._deadline = None
        self._refuse("no whole PROXY header in time")

    def _refuse(self, reason: str) -> None:
        self._settle()
        self._closing = True
        self._received = b""
        edge = self.factory.edge
        edge.headers_refused += 1
        if edge.say_header.may():
            _log.info(
                "closed a connection from {address}: {reason}{rest}",
                address=getattr(self.transport.getPeer(), "host", "a Unix socket"),
                reason=reason,
                rest=edge.say_header.rest(),
            )
        self.transport.abortConnection()

    def _settle(self) -> None:
        self.factory.edge.waiting.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # ------------------------------------------------------------------ from the transport

    def readConnectionLost(self) -> None:
        """The client's FIN; called where the protocol can do with one."""
        self.wrappedProtocol.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Ours is out."""
        self.wrappedProtocol.writeConnectionLost()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._closing = True
        self._settle()
        self.factory.unregisterProtocol(self)
        protocol, self.wrappedProtocol = self.wrappedProtocol, None
        for name in ("write", "writeSequence", "dataReceived"):
            self.__dict__.pop(name, None)  # cycles
        if protocol is not None:
            protocol.connectionLost(reason)

    # ------------------------------------------------------------------ for the protocol

    def pass_to(self, protocol: Any) -> None:
        """Let the connection be this protocol's from now on, which is told so by its caller."""
        self.wrappedProtocol = protocol
        self.dataReceived = protocol.dataReceived  # type: ignore[method-assign]
        if IHalfCloseableProtocol.providedBy(protocol):
            alsoProvides(self, IHalfCloseableProtocol)
        elif IHalfCloseableProtocol.providedBy(self):
            noLongerProvides(self, IHalfCloseableProtocol)

    def logPrefix(self) -> str:
        return "PROXY"

    def getPeer(self) -> IAddress:
        return self._peer or cast(IAddress, self.transport.getPeer())

    def getHost(self) -> IAddress:
        return self._host or cast(IAddress, self.transport.getHost())


def _as_twisted(addresses: Addresses) -> tuple[IAddress, IAddress]:
    kind = IPv6Address if ":" in addresses.source[0] else IPv4Address
    return kind("TCP", *addresses.source), kind("TCP", *addresses.destination)
