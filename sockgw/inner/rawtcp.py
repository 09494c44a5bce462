"""TCP connections to origins, for streams of bytes: each direction ends for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.client import Origin, OriginError, OriginHandler
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, ResponseHead

__all__ = ["RawTCP"]

_log = Logger()

# Bytes held while dialling before the stream is asked to pause; as a Twisted transport's buffer.
_MAX_HELD = 65_536


class RawTCP:
    """Connects streams to TCP origins; see :class:`sockgw.inner.forwarder.RawOrigins`.

    :param dial: gives the endpoint of an origin, whose Deferred fails with :exc:`OriginError`
    :param flush_timeout: seconds for an origin to take what is left once both directions are over
    """

    def __init__(
        self,
        clock: IReactorTime,
        dial: Callable[[Origin], IStreamClientEndpoint],
        deadlines: Deadlines,
        flush_timeout: float,
    ) -> None:
        self._clock = clock
        self._dial = dial
        self._open: set[_Connection] = set()
        self._closed: Deferred[None] | None = None
        self.deadlines = deadlines
        self.flush_timeout = flush_timeout

    def connect(self, origin: Origin, handler: OriginHandler) -> _Connection:
        """Dial an origin for a stream."""
        connection = _Connection(self, handler)
        self._open.add(connection)
        if self._closed is not None:
            self._fail_later(connection, StreamCode.REFUSED, "shutting down")
            return connection
        factory = _Factory(connection)
        connection.dialling = dialling = maybeDeferred(lambda: self._dial(origin).connect(factory))
        dialling.addErrback(self._not_connected, connection, origin)
        dialling.addErrback(self._log_error)
        return connection

    def close(self) -> Deferred[None]:
        """Refuse new streams, end everything at once; the Deferred fires when all is gone."""
        if self._closed is None:
            self._closed = Deferred()
            for connection in list(self._open):
                connection.fail(StreamCode.CANCELLED, "shutting down")
            self._check_closed()
        return self._closed

    def gone(self, connection: _Connection) -> None:
        """A connection is over, or was never made."""
        self._open.discard(connection)
        self._check_closed()

    def _not_connected(self, failure: Failure, connection: _Connection, origin: Origin) -> None:
        error = failure.value
        if connection.dialling is None:
            self.gone(connection)  # aborted, so cancelled
        elif isinstance(error, OriginError):
            self._fail_later(connection, error.code, error.detail)
        else:
            _log.failure("Dialling {origin} failed", failure, origin=origin)
            self._fail_later(connection, StreamCode.INTERNAL_ERROR, "dialling failed")

    def _fail_later(self, connection: _Connection, code: StreamCode, detail: str) -> None:
        """Fail in the next turn: connect() may not have returned yet."""
        connection.dialling = None
        self._clock.callLater(0, connection.fail, code, detail)

    def _log_error(self, failure: Failure) -> None:
        _log.failure("A new connection was not taken", failure)

    def _check_closed(self) -> None:
        closed = self._closed
        if closed is not None and not closed.called and not self._open:
            closed.callback(None)


@implementer(IHalfCloseableProtocol, IPushProducer)
class _Connection(Protocol):
    """One stream's connection, from before it is made."""

    transport: Any

    def __init__(self, owner: RawTCP, handler: OriginHandler) -> None:
        self._owner = owner
        self._handler = handler
        self._held: list[bytes] | None = []  # what was written before there is a connection
        self._held_size = 0
        self._over = False
        self._paused = False
        self._finished = False  # our direction
        self._half_closed = False  # our half
        self._ended = False  # the origin's direction
        self.congested = False
        self.deadline: float | None = None
        self.dialling: Deferred[Any] | None = None

    # ------------------------------------------------------------------ from the stream

    def write(self, data: bytes) -> None:
        if self._over or self._finished:
            return
        held = self._held
        if held is None:
            self.transport.write(data)
            return
        held.append(data)
        self._held_size += len(data)
        self.congested = self._held_size >= _MAX_HELD

    def finish(self, trailers: Headers | None = None) -> None:
        if self._over or self._finished:
            return
        self._finished = True
        if self._held is None:
            self._end()

    def abort(self) -> None:
        """Break off. Nothing is called back."""
        if self._over:
            return
        self._over = True
        dialling, self.dialling = self.dialling, None
        if dialling is not None:
            dialling.cancel()
        elif self._held is None:
            self._leave()
            self.transport.abortConnection()
        else:
            self._owner.gone(self)

    def pause_response(self) -> None:
        if not (self._paused or self._over or self._ended):
            self._paused = True
            if self._held is None:
                self.transport.pauseProducing()

    def resume_response(self) -> None:
        if self._paused and not self._over:
            self._paused = False
            if self._held is None:
                self.transport.resumeProducing()

    def fail(self, code: StreamCode, detail: str) -> None:
        """End it, and tell the stream, unless it is over already."""
        if not self._over:
            self.abort()
            self._handler.failed(code, detail)
        elif self._held is None:
            self.transport.abortConnection()

    # ------------------------------------------------------------------ Twisted calls

    def connectionMade(self) -> None:
        self.dialling = None
        transport = self.transport
        held, self._held = self._held, None
        if self._over:  # aborted meanwhile, and the dialler would not be cancelled
            transport.abortConnection()
            return
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            # No deadline of ours ends it, so the system has to notice an origin that is gone.
            transport.setTcpKeepAlive(True)
        transport.registerProducer(self, True)
        self._owner.deadlines.watch(self)
        self._handler.responded(ResponseHead(200, b"", []))
        was_congested, self.congested = self.congested, False
        if held and not self._over:
            transport.writeSequence(held)
        if was_congested and not self.congested:
            self._handler.request_drained()
        if self._finished:
            self._end()

    def dataReceived(self, data: bytes) -> None:
        if not self._over:
            self._handler.body_received(data)

    def readConnectionLost(self) -> None:
        """The origin's FIN."""
        if self._over:
            return
        self._ended = True
        if self._finished:
            self._close()
        self._handler.body_ended([])

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._owner.deadlines.discard(self)
        over, self._over = self._over, True
        self._owner.gone(self)
        if over:
            return
        if not reason.check(ConnectionDone):
            self._handler.failed(StreamCode.ORIGIN_CLOSED, "connection lost")
        elif not self._ended:
            self._handler.body_ended([])

    def pauseProducing(self) -> None:
        self.congested = True

    def resumeProducing(self) -> None:
        self.congested = False
        self._handler.request_drained()
        if self._finished and not self._over:
            self._end()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    def expired(self) -> None:
        """It has not taken what was left for it."""
        self.deadline = None
        self.transport.abortConnection()

    # ------------------------------------------------------------------ inside

    def _end(self) -> None:
        if self._ended:
            self._close()
        elif not self.congested and not self._half_closed:
            self._leave()
            self.transport.loseWriteConnection()

    def _close(self) -> None:
        """Both directions are over: send what is left, then close."""
        self._over = True
        self._leave()
        self.deadline = self._owner.deadlines.after(self._owner.flush_timeout)
        self.transport.loseConnection()

    def _leave(self) -> None:
        if not self._half_closed:
            self._half_closed = True
            # Behind a producer that has nothing to say Twisted would not get to it.
            self.transport.unregisterProducer()


class _Factory(Factory):
    """Builds the one connection of a stream."""

    noisy = False

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return cast(Protocol, self._connection)
