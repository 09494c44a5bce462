"""One connection to an origin: reads responses, and knows when it may be used again.

What is fed to the parser at once may hold more than the response that was asked for. The end of a
response is therefore acted upon only after the parser has seen the whole chunk: bytes that follow
it are a broken or hostile origin's, and must never become the answer to somebody else's request.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, cast

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.http.headers import end_to_end, lower, upgrades_to
from sockgw.http.shapes import name_of, shapes
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, ResponseHead

if TYPE_CHECKING:
    from sockgw.http.client import Origin, OriginPool
    from sockgw.http.originexchange import OriginExchange

__all__ = ["OriginConnection"]

# 100, 102, 103 come one to three times for a request; more is somebody who never answers.
_MAX_INFORMED = 16

_UNEXPECTED = frozenset(range(100))  # nothing is below 100 (RFC 9110, section 15)

# Seconds in which a peer may answer our close_notify before the connection is cut.
_CLOSE_GRACE = 2.0

# Bytes that a field takes on the wire beside its name and value: colon, space, CR, LF.
_FIELD_OVERHEAD = 4


class _Transport(Protocol):
    """What TCP and TLS transports have in common, as far as it is used here."""

    def write(self, data: bytes) -> None: ...
    def writeSequence(self, data: Iterable[bytes]) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def setTcpNoDelay(self, enabled: bool) -> None: ...
    def setTcpKeepAlive(self, enabled: bool) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class _State(Enum):
    """Where a connection stands.

    ::

        IDLE ──attach──▶ HEAD ──final head──▶ BODY ──end──▶ DONE ──reusable──▶ IDLE
                          └────── head of an answer to HEAD ─▲  └───else──▶ CLOSED
        HEAD ──101 that was asked for──▶ SWITCHED
        any ──close, drop, connectionLost──▶ CLOSED
    """

    IDLE = auto()  # no exchange: whatever arrives was not asked for
    HEAD = auto()
    BODY = auto()
    DONE = auto()  # complete; what the parser still finds in the same chunk is too much
    SWITCHED = auto()  # no HTTP any more
    CLOSED = auto()


_IDLE, _HEAD, _BODY, _DONE, _SWITCHED, _CLOSED = _State


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class OriginConnection:
    """HTTP/1.1 over one transport, one exchange at a time, without pipelining."""

    _log = Logger()

    __slots__ = (
        "_at_head",
        "_deadlines",
        "_exchange",
        "_fed",
        "_half_closed",
        "_headers",
        "_informed",
        "_keep_alive",
        "_kept",
        "_leftover",
        "_parser",
        "_patience",
        "_paused",
        "_pending",
        "_pool",
        "_reason",
        "_state",
        "_trailers",
        "_until_close",
        "deadline",
        "idle_since",
        "origin",
        "transport",
    )

    origin: Origin
    """Set once by the pool."""

    def __init__(self, pool: OriginPool) -> None:
        self._pool = pool
        self._deadlines = pool.deadlines
        # Seconds beyond the deadlines' now, which is true as long as this connection is watched.
        self._patience = pool.deadlines.patience(pool.idle_timeout)
        self._kept = pool.deadlines.patience(pool.keep_alive)
        self._exchange: OriginExchange | None = None
        self._state = _IDLE
        self._parser = HttpResponseParser(self)
        self._headers: Headers = []  # of the section that is being read
        self._trailers: Headers = []
        self._reason = b""
        self._pending = 0  # bytes fed since the last that had an outcome
        self._fed = 0  # the same before what is being fed now has had any
        self._informed = 0
        self._at_head = False  # the answer to HEAD: the parser expects a body that never comes
        self._keep_alive = False
        self._leftover = False
        self._until_close = False  # the body ends with the connection
        self._paused = False
        self._half_closed = False  # by the origin, after a 101
        self.deadline: float | None = None
        self.idle_since = 0.0

    # IProtocol

    def makeConnection(self, transport: ITransport) -> None:
        """Called with a TCP transport, or with TLS over one."""
        self.transport = cast(_Transport, transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        self._pool.opened(self)
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self._pool.idle.discard(self)
            self.drop()
            return
        if self._state is _SWITCHED:
            exchange.handler.body_received(data)
            return
        exchange.held = None  # with its first byte the origin has taken the request
        if not self._paused:
            self.deadline = self._deadlines.now + self._patience
        self._pending = self._fed = self._pending + len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError:
            self._log.failure("An origin's response was not taken")
            exchange.fail(StreamCode.INTERNAL_ERROR, "response not taken")
        except (HttpParserError, HttpParserUpgrade) as error:
            if self._state is _SWITCHED and isinstance(error, HttpParserUpgrade):
                early = data[error.args[0] :]
                if early:
                    exchange.handler.body_received(early)
                return
            if self._state is not _DONE:
                exchange.fail(StreamCode.ORIGIN_MALFORMED, str(error))
            self._leftover = True
        if self._state is _DONE:
            # The parser calls nothing for a part of a chunk-size line, which never ends in LF.
            if self._at_head and not data.endswith(b"\n"):
                self._leftover = True
            self._finish(exchange)
        elif self._pending > self._pool.max_header_size:
            # Heads, trailers, and chunk extensions, which have no other limit.
            exchange.fail(StreamCode.TOO_LARGE, "too many bytes in a head or a chunk extension")

    def connectionLost(self, reason: Failure) -> None:
        state, self._state = self._state, _CLOSED
        exchange, self._exchange = self._exchange, None
        self.deadline = None
        del self._parser  # a cycle: it holds our callbacks
        self._pool.lost(self)
        # TLS cut without close_notify comes as ConnectionLost: that may be an attacker's cut.
        self._conclude(exchange, state, isinstance(reason.value, ConnectionDone))

    def _conclude(self, exchange: OriginExchange | None, state: _State, orderly: bool) -> None:
        """The origin has ended the connection, on which there was an exchange or none."""
        if exchange is None or exchange.retry():
            return
        if state is _SWITCHED:
            if not orderly:
                exchange.fail(StreamCode.ORIGIN_CLOSED, "connection lost")
            elif self._half_closed:
                exchange.abort()
            else:
                exchange.completed([])
        elif state is _BODY and self._until_close and orderly:
            exchange.completed([])
        elif state is _BODY:
            exchange.fail(StreamCode.ORIGIN_CLOSED, "connection closed within the response")
        else:
            exchange.fail(StreamCode.ORIGIN_CLOSED, "connection closed before the response")

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        """The origin has closed its half. Before a switch that is an end of both."""
        exchange, state = self._exchange, self._state
        if state is not _SWITCHED:
            self._pool.idle.discard(self)
            if exchange is not None and (exchange.congested or not exchange.sent):
                self.drop()  # it would be waited for until all is written
            else:
                self.close()
            self._conclude(exchange, state, orderly=True)
            return
        self._half_closed = True
        if exchange is None:
            return
        if exchange.sent:
            self._exchange = None
            self._over()
            exchange.completed([])
        else:
            exchange.half_completed()

    def writeConnectionLost(self) -> None:
        """Our half is closed."""

    # IPushProducer: we produce requests

    def pauseProducing(self) -> None:
        """Called again and again while the buffer is full, also from within :meth:`send`."""
        if self._exchange is not None:
            self._exchange.congested = True

    def resumeProducing(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            self._touch()
            exchange.drained()
            if exchange.switched and exchange.sent:
                self._close_half()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    # for the exchange and the pool

    @property
    def closed(self) -> bool:
        """Whether this connection takes no further exchange."""
        return self._state is _CLOSED

    def attach(self, exchange: OriginExchange) -> None:
        """Serve the exchange, which is about to send, until it ends."""
        self._exchange = exchange
        self._state = _HEAD
        self._pending = 0
        self._informed = 0

    def begin(self, exchange: OriginExchange, start: bytes) -> None:
        """Serve the exchange, whose request begins so, on a connection that was idle."""
        self._exchange = exchange
        self._state = _HEAD
        self._pending = 0
        self._informed = 0
        self.deadline = self._deadlines.now + self._patience
        self.transport.write(start)

    def send(self, data: bytes) -> None:
        """Write a part of the request."""
        if not self._paused and self._state is not _SWITCHED:
            self.deadline = self._deadlines.now + self._patience
        self.transport.write(data)

    def send_parts(self, parts: Iterable[bytes]) -> None:
        """Write parts of the request, without joining them here."""
        if not self._paused and self._state is not _SWITCHED:
            self.deadline = self._deadlines.now + self._patience
        self.transport.writeSequence(parts)

    def close_half(self) -> None:
        """Nothing more will be written on a connection that is switched."""
        exchange = self._exchange
        if self._half_closed:
            self._exchange = None
            self._over()
            if exchange is not None:
                exchange.forget()
        elif exchange is None or not exchange.congested:
            self._close_half()

    def pause(self) -> None:
        """Stop reading; what TLS has already decrypted still arrives."""
        if not self._paused:
            self._paused = True
            self.deadline = None
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self._touch()
            self.transport.resumeProducing()

    def drop(self) -> None:
        """End at once, whatever is in the buffers."""
        if self._state is not _CLOSED:
            self._leave()
            self.transport.abortConnection()

    def close(self) -> None:
        """End in good order: there is nothing in the buffers."""
        if self._state is not _CLOSED:
            self._leave()
            self.deadline = self._deadlines.after(_CLOSE_GRACE, self)
            self.transport.loseConnection()

    def shut_down(self) -> None:
        """End at once, failing the exchange if there is one."""
        if self._exchange is not None:
            self._exchange.fail(StreamCode.CANCELLED, "shutting down")
        elif self._state is _CLOSED:
            self.transport.abortConnection()
        else:
            self.drop()

    def expired(self) -> None:
        """The deadline has passed: of an exchange, of an idle connection, or of its closing."""
        exchange = self._exchange
        if exchange is not None:
            if exchange.handler.suspended:
                self._touch()
            else:
                exchange.fail(StreamCode.IDLE_TIMEOUT, "no byte either way in time")
        elif self._state is _IDLE:
            self._pool.idle.discard(self)
            self.close()
        else:
            self.deadline = None
            self.transport.abortConnection()

    def _close_half(self) -> None:
        # First, or Twisted would not get to it behind a producer that has nothing to say.
        self.transport.unregisterProducer()
        if ISSLTransport.providedBy(self.transport):
            # Twisted's would half-close the TCP below it. Its close lets the origin finish: what
            # comes before the origin's own close-notify still arrives.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _over(self) -> None:
        """Both directions of a connection that was switched have ended."""
        self._state = _CLOSED
        self.deadline = self._deadlines.after(_CLOSE_GRACE, self)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _touch(self) -> None:
        if not self._paused and self._state is not _SWITCHED:
            self.deadline = self._deadlines.now + self._patience

    def _leave(self) -> None:
        self._state = _CLOSED
        self._exchange = None
        self.deadline = None
        # First, or TLS would never send its close_notify.
        self.transport.unregisterProducer()

    def _finish(self, exchange: OriginExchange) -> None:
        """The response is complete: go idle or go away, then tell the exchange.

        In this order, so that a request made from within ``body_ended`` finds the connection idle.
        """
        trailers = self._trailers
        if trailers:
            self._trailers = []
        self._exchange = None
        self._state = _IDLE
        if not exchange.sent or exchange.congested:
            # An early answer: the origin may never read what is still in the buffer.
            self.drop()
        elif self._leftover or not self._keep_alive:
            self.close()
        else:
            if self._at_head:
                self._at_head = False
                self._parser = HttpResponseParser(self)
            if self._paused:
                self.resume()  # a connection that does not read does not notice its end
            self.deadline = self._deadlines.now + self._kept
            self._pool.idle.put(self)
        exchange.completed(trailers)

    # httptools

    def on_message_begin(self) -> None:
        self._headers = []
        self._reason = b""
        if self._state is _DONE:
            self._leftover = True

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or self._state is not _HEAD:
            return
        status = self._parser.get_status_code()
        headers = self._headers
        pool = self._pool
        if (
            self._fed > pool.max_header_size or len(headers) > pool.max_header_count
        ) and self._oversized():
            exchange.fail(StreamCode.TOO_LARGE, "head too large")
            return
        version = self._parser.get_http_version()
        try:
            shape = shapes[tuple(map(name_of, headers))]
            if version != "1.1" or shape.codings:
                _check_coding(version, [headers[place][1] for place in shape.codings])
        except ValueError as error:
            exchange.fail(StreamCode.ORIGIN_MALFORMED, str(error))
            return
        self._pending = 0
        head = ResponseHead(status, self._reason, shape.end_to_end(headers))
        if status == 101:
            self._switch(exchange, head, headers)
            return
        if status < 200:
            self._informed += 1
            # llhttp would read a body after some of them (RFC 9110, section 15.2: there is none).
            body = shape.codings or any(int(headers[place][1]) for place in shape.lengths)
            if status in _UNEXPECTED or body or self._informed > _MAX_INFORMED:
                exchange.fail(StreamCode.ORIGIN_MALFORMED, "unexpected interim response")
            else:
                exchange.handler.informed(head)
            return
        self._headers = []
        self._at_head = exchange.head_only
        if self._at_head:
            self._keep_alive = self._parser.should_keep_alive()
            self._state = _DONE
        else:
            self._until_close = not shape.codings and not shape.lengths
            self._state = _BODY
        exchange.handler.responded(head)

    def _switch(self, exchange: OriginExchange, head: ResponseHead, headers: Headers) -> None:
        given = [value for name, value in headers if lower(name) == b"upgrade"]
        head.upgrade = b", ".join(given)
        if not upgrades_to(head.upgrade, exchange.upgrade):
            exchange.fail(StreamCode.ORIGIN_MALFORMED, "an upgrade that was not asked for")
            return
        self._state = _SWITCHED
        self._headers = []
        self.deadline = None
        if ITCPTransport.providedBy(self.transport):
            # No deadline of ours ends it, so the system has to notice an origin that is gone.
            self.transport.setTcpKeepAlive(True)
        exchange.switch()
        exchange.handler.responded(head)

    def on_chunk_header(self) -> None:
        if self._state is _DONE:
            self._leftover = True

    def on_body(self, data: bytes) -> None:
        if self._state is _BODY and self._exchange is not None:
            self._pending = 0
            self._exchange.handler.body_received(data)
        else:
            self._leftover = True

    def on_message_complete(self) -> None:
        if self._state is _BODY and self._exchange is not None:
            if self._headers and not self._take_trailers(self._exchange):
                return
            self._keep_alive = self._parser.should_keep_alive()
            self._state = _DONE

    def _take_trailers(self, exchange: OriginExchange) -> bool:
        detail = "trailers too large"
        if not self._oversized():
            try:
                self._trailers = end_to_end(self._headers)
            except ValueError as error:
                detail = str(error)
            else:
                return True
        exchange.fail(StreamCode.TOO_LARGE, detail)
        return False

    def _oversized(self) -> bool:
        """Whether the header section that ends here is over a limit."""
        if len(self._headers) > self._pool.max_header_count:
            return True
        if self._fed <= self._pool.max_header_size:
            return False
        size = len(self._reason)
        for name, value in self._headers:
            size += len(name) + len(value) + _FIELD_OVERHEAD
        return size > self._pool.max_header_size


def _check_coding(version: str, codings: list[bytes]) -> None:
    """Raise ValueError where it is not certain how a body is framed (RFC 9112, section 6.1).

    llhttp has refused a length with a coding, and any doubtful length; here goes what it lets pass.
    """
    if version not in ("1.1", "1.0"):
        raise ValueError("unknown version of HTTP")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or version == "1.0"):
        raise ValueError("unknown transfer coding")
