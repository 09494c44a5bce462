"""A client's connection after a 101: two directions of bytes, each of which ends for itself.

The exchange that asked for the upgrade goes on as the connection's active one, with pieces, pauses
and an end as if the bytes were a body. What differs is here: how either direction ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableDescriptor, ITCPTransport

if TYPE_CHECKING:
    from sockgw.http.exchange import Exchange
    from sockgw.http.server import ClientConnection

__all__ = ["Switched"]


class Switched:
    """Belongs to a connection from the 101 to its end."""

    __slots__ = ("_connection", "_transport", "exchange", "half_open")

    def __init__(self, connection: ClientConnection, exchange: Exchange, half_closed: bool) -> None:
        """``half_closed``: the client's FIN has come already."""
        self._connection = connection
        self._transport: Any = connection.transport
        self.exchange = exchange
        #: We have closed our half, and are the transport's producer no longer.
        self.half_open = False
        exchange.complete = half_closed
        if ITCPTransport.providedBy(self._transport):
            # No deadline of ours ends it, so the system has to notice a client that is gone.
            self._transport.setTcpKeepAlive(True)

    def received(self, data: bytes) -> None:
        """Bytes of the client have come."""
        exchange = self.exchange
        exchange.bytes_received += len(data)
        exchange.pieces.append(data)

    def half_closed(self) -> None:
        """The client's FIN has come."""
        self.exchange.complete = True

    def finish(self) -> None:
        """Nothing more will be written."""
        exchange = self.exchange
        halves = IHalfCloseableDescriptor.providedBy(self._transport)
        if exchange._end_told or self._connection.secure or not halves:
            # Twisted's TLS knows no half-close: it would close the TCP below it.
            self._connection.switched_over(exchange)
        elif not self._connection.congested:
            self._close_half()

    def ended(self) -> None:
        """The handler knows that the client's direction has ended."""
        if self.exchange.finished and not self.exchange._over:
            self._connection.switched_over(self.exchange)

    def drained(self) -> None:
        """The transport has written everything."""
        if self.exchange.finished and not self.exchange._over:
            self._close_half()

    def left(self) -> None:
        """The client has closed the connection, in good order."""
        exchange = self.exchange
        if exchange._over:
            return
        exchange._over = True
        handler = exchange._handler
        self._connection.forget(exchange)
        pieces, exchange.pieces = exchange.pieces, []
        if pieces:
            handler.body_received(b"".join(pieces))
        handler.client_left()

    def _close_half(self) -> None:
        # Behind a producer that has nothing to say Twisted would not get to it.
        self.half_open = True
        self._transport.unregisterProducer()
        self._transport.loseWriteConnection()
