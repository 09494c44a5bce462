"""Which version of HTTP a client speaks: known with its first bytes.

Over TLS it is negotiated (ALPN, RFC 7301). In clear text a client either knows that we speak HTTP/2
and begins with its preface (RFC 9113, section 3.3), or it speaks HTTP/1.1, in which no request
begins so. The connection is HTTP/1.1's until then, with its patience and its place among others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.application import Application
from sockgw.http.h2server import PREFACE, H2ClientConnection
from sockgw.http.patience import ServerLimits
from sockgw.http.server import ClientConnection

__all__ = ["ClientFactory"]


class _Front(ClientConnection):
    """A connection of HTTP/1.1 that may turn out to be another one."""

    factory: ClientFactory
    _first = b""  # bytes that may be the beginning of a preface
    _fresh = True
    _other: H2ClientConnection | None = None

    def dataReceived(self, data: bytes) -> None:
        if not self._fresh:
            if self._other is None:
                super().dataReceived(data)
            else:
                self._other.dataReceived(data)
            return
        if not self.deaf:
            data = self._first + data
            if not self.secure and len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._first = data
                return
            self._fresh = False
            self._first = b""
            if self._speaks_http2(data):
                self._become(data)
                return
        super().dataReceived(data)

    def readConnectionLost(self) -> None:
        if self._other is not None:
            self._other.readConnectionLost()
        else:
            super().readConnectionLost()

    def writeConnectionLost(self) -> None:
        if self._other is not None:
            self._other.writeConnectionLost()
        else:
            super().writeConnectionLost()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._other is not None:
            self._other.connectionLost(reason or connectionDone)
        else:
            super().connectionLost(reason)

    def _speaks_http2(self, data: bytes) -> bool:
        if self.secure:
            return bool(self.transport.negotiatedProtocol == b"h2")
        return data.startswith(PREFACE)

    def _become(self, data: bytes) -> None:
        self._other = other = self.factory.http2()
        grace = self.hand_over(lambda: other.makeConnection(self.transport))
        if grace is not None:
            other.drain(grace)
        other.dataReceived(data)


@implementer(IProtocolNegotiationFactory)
class ClientFactory(Factory):
    """Listens for clients: a connection each, of HTTP/1.1 or HTTP/2."""

    noisy = False

    def __init__(
        self,
        application: Application,
        deadlines: Deadlines,
        limits: ServerLimits,
        seconds: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        later: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """``seconds`` is the application's clock for durations, such as the reactor's;
        ``wall_clock`` gives the time of the Date header, in seconds since 1970. ``later`` calls
        something in the reactor's next turn; without it there is no HTTP/2."""
        self._application = application
        self._deadlines = deadlines
        self._limits = limits
        self._seconds = seconds
        self._wall_clock = wall_clock
        self._later = later

    def acceptableProtocols(self) -> list[bytes]:
        """What is offered to TLS clients, what we like best first."""
        return [b"h2", b"http/1.1"] if self._later is not None else [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> ClientConnection:
        kind = _Front if self._later is not None else ClientConnection
        connection = kind(
            self._application, self._deadlines, self._limits, self._seconds, self._wall_clock
        )
        connection.factory = self
        return connection

    def http2(self) -> H2ClientConnection:
        """Return a connection of HTTP/2."""
        later: Any = self._later
        return H2ClientConnection(
            self._application,
            self._deadlines,
            self._limits,
            self._seconds,
            self._wall_clock,
            later,
        )
