"""Connecting to a Unix socket.

A Unix socket refuses at once what its queue has no room for (EAGAIN), where TCP would wait. So this
waits for it: a crowd of clients at a server with a short queue is no failure.
"""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from zope.interface import implementer

from sockgw.inner.tcp import unwrap

__all__ = ["UnixEndpoint"]

# Seconds between attempts: the first, doubled up to the last.
_FIRST_PAUSE = 0.005
_LAST_PAUSE = 0.25


@implementer(IStreamClientEndpoint)
class UnixEndpoint:
    """Connects to the socket at a path. ``timeout`` in seconds is for each attempt.

    The wait for a place in the queue has no end of its own: a bound on the whole is the caller's.
    """

    def __init__(self, reactor: Any, path: str, timeout: float) -> None:
        self._reactor = reactor
        self._endpoint = UNIXClientEndpoint(reactor, path, timeout)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the connected protocol. Fails with ConnectError."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        pause = _FIRST_PAUSE
        while True:
            try:
                protocol: IProtocol = await self._endpoint.connect(factory)
            except ConnectingCancelledError:
                raise CancelledError from None
            except ConnectError as error:
                if not _is_full(error):
                    raise
            else:
                unwrap(protocol)
                return protocol
            await deferLater(self._reactor, pause)
            pause = min(2 * pause, _LAST_PAUSE)


def _is_full(error: ConnectError) -> bool:
    # Twisted takes EAGAIN for "in progress", finds the socket unconnected, and names no errno.
    return type(error) is ConnectError and error.osError is None
