"""What is spoken on a fresh connection before the protocol that it was made for has its turn."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol
from zope.interface import implementer

__all__ = ["Preamble"]


class Preamble(Protocol):
    """Has a connection to itself until it hands over to a protocol of ``factory``.

    A subclass calls exactly one of :meth:`hand_over` and :meth:`fail`, unless it is cancelled.
    """

    transport: Any

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self._address: Any = None
        self._done: Deferred[IProtocol] = Deferred(lambda _: self.transport.abortConnection())

    async def over(self, endpoint: IStreamClientEndpoint) -> IProtocol:
        """Connect and return the protocol after the hand-over; raises what it failed with."""
        await endpoint.connect(self.wrap(_Once(self)))
        return await self._done

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return what builds the connection's outermost protocol. To be overridden."""
        return factory

    def choose(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return what builds the protocol, now that the preamble is over. To be overridden."""
        return factory

    def give_way(self, protocol: IProtocol) -> None:
        """From now on ``protocol`` has what arrives. To be overridden."""
        raise NotImplementedError

    def hand_over(self) -> None:
        """Let the protocol begin, then fire. Does nothing once cancelled."""
        if self._done.called:
            return
        protocol = self.choose(self._factory).buildProtocol(self._address)
        if protocol is None:
            self.transport.abortConnection()
            self.fail(NoProtocol())
            return
        self.give_way(protocol)
        protocol.makeConnection(self.transport)
        self._done.callback(protocol)

    def fail(self, error: Exception) -> None:
        """Tell who waits that there will be no connection. Does nothing once that is known."""
        if not self._done.called:
            self._done.errback(error)


@implementer(IProtocolFactory)
class _Once:
    """Makes the one preamble; starts and stops the factory of the protocol proper."""

    def __init__(self, preamble: Preamble) -> None:
        self._preamble = preamble

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        self._preamble._address = addr
        return self._preamble

    def doStart(self) -> None:
        self._preamble._factory.doStart()

    def doStop(self) -> None:
        self._preamble._factory.doStop()
