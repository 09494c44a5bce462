"""A reactor in memory that resolves as it is told and lets each connection succeed or fail."""

from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
)
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer


class Transport(StringTransport):
    """Remembers TCP_NODELAY, and that it was aborted."""

    nodelay = False
    aborted = False
    protocol: Any = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.nodelay = enabled

    def write(self, data: bytes) -> None:
        if not self.aborted:  # as a real one; Twisted's TLS writes an alert then
            super().write(data)

    def abortConnection(self) -> None:
        assert not self.aborted
        self.aborted = True

    def lose(self, error: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(error or ConnectionDone()))


@implementer(IHostnameResolver)
class Resolver:
    """Answers with ``addresses``; with nothing at all while they are None."""

    def __init__(self, addresses: Iterable[str] | None) -> None:
        self.addresses = addresses
        self.asked: list[str] = []
        self.receiver: Any = None

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        self.asked.append(hostName)
        self.receiver = resolutionReceiver
        if self.addresses is not None:
            self.answer(self.addresses, portNumber)

    def answer(self, addresses: Iterable[str], port: int) -> None:
        self.receiver.resolutionBegan(Resolution())
        for address in addresses:
            kind = IPv6Address if ":" in address else IPv4Address
            self.receiver.addressResolved(kind("TCP", address, port))
        self.receiver.resolutionComplete()


@implementer(IHostResolution)
class Resolution:
    name = "name"


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    def __init__(self, addresses: Iterable[str] | None) -> None:
        super().__init__()
        self.nameResolver = Resolver(addresses)

    def installNameResolver(self, resolver: object) -> Any:
        raise NotImplementedError

    @property
    def dialled(self) -> list[tuple[str, int]]:
        return [(host, port) for host, port, *_ in self.tcpClients]

    def succeed(self, index: int) -> Transport:
        host, port, factory, *_ = self.tcpClients[index]
        transport = Transport()
        transport.protocol = factory.buildProtocol(IPv4Address("TCP", host, port))
        transport.protocol.makeConnection(transport)
        return transport

    def fail(self, index: int, error: Exception) -> None:
        factory = self.tcpClients[index][2]
        factory.clientConnectionFailed(self.connectors[index], Failure(error))
