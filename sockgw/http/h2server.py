"""The server side of HTTP/2 (RFC 9113): a client's connection with many exchanges.

The library h2 keeps the protocol's state; what it does not judge, or too late, is in
:mod:`sockgw.http.h2frames` and :mod:`sockgw.http.h2request`.

Windows. A stream's window is given back as its handler takes what came, so an upload that waits
holds its client back, by itself. The connection's window is given back at once: were it held back
for what streams hold, those that wait would stop all others. So what a client can have us hold is a
stream's window times ``max_h2_streams``. What is sent waits in each exchange until the client's
windows and the transport take it, see :mod:`sockgw.http.h2sender`.

Floods. Frames without content are counted against those with some (h2frames). Streams that end
before their time, by a reset of the client's or by one that it brings upon itself (CVE-2023-44487,
CVE-2025-8671), are counted too: ``max_h2_resets`` at once, of which a thirtieth comes back each
second, and one with each request that ends well. Answers for a client that does not read are
bounded. Over any of it the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import cached_property
from typing import Any, cast

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.deadlines import Deadlines
from sockgw.http.application import NOBODY, Application
from sockgw.http.farewell import Farewell
from sockgw.http.framing import HttpError
from sockgw.http.h2exchange import H2Exchange
from sockgw.http.h2frames import (
    CONTINUATION,
    DATA,
    HEADERS,
    PER_FRAME,
    RST_STREAM,
    SETTINGS,
    FrameFault,
    FrameScanner,
    GoAway,
)
from sockgw.http.h2request import MalformedRequest, Request, read_request, read_trailers
from sockgw.http.h2resets import Resets
from sockgw.http.h2sender import Sender
from sockgw.http.h2state import CONNECTION_WINDOW, STREAM_WINDOW, ServerState, header_list_size
from sockgw.http.networks import host_and_port
from sockgw.http.patience import ServerLimits
from sockgw.protocol.heads import RequestHead, ResponseHead

__all__ = ["PREFACE", "H2ClientConnection"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client begins with (RFC 9113, section 3.4)."""

_log = Logger()

# Bytes of answers to PING, SETTINGS and bad streams, for a client that does not read.
_MAX_UNREAD = 65_536

_LAST_STREAM = 2**31 - 1

# Changing the windows of so many streams is as much work as a frame without content.
_PER_STREAMS = 4

_MAX_REASON = 200  # characters of what h2 says, for the log

_TOO_LARGE = "the request's body is too large"


class _Stage(Enum):
    OPEN = auto()
    WARNED = auto()  #: the client knows that it is to open no more streams, soon
    LEAVING = auto()  #: no more streams


class _Awaited(Enum):
    """What a connection waits for; what its exchanges wait for is theirs."""

    NOTHING = auto()
    FIRST = auto()  #: the first request
    REQUEST = auto()  #: another one
    BLOCK = auto()  #: the rest of a head
    GRACE = auto()  #: those that were on their way when the client was warned


@implementer(IPushProducer)
class H2ClientConnection(Protocol):
    """A client's connection; see :class:`sockgw.http.application.Connection`."""

    transport: Any
    protocol = "HTTP/2.0"

    def __init__(
        self,
        application: Application,
        deadlines: Deadlines,
        limits: ServerLimits,
        seconds: Callable[[], float],
        wall_clock: Callable[[], float],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        """``later`` calls something in the reactor's next turn."""
        #: Free for the application.
        self.notes: object | None = None
        #: Whether the client speaks TLS with us.
        self.secure = False
        self.seconds = seconds
        self.wall_clock = wall_clock
        self.deadline: float | None = None
        self._application = application
        self._deadlines = deadlines
        self._limits = limits
        self._exchanges: dict[int, H2Exchange] = {}
        self._last_stream = 0
        self._admitted = False
        self._farewell: Farewell | None = None  # we are closing
        self._stage = _Stage.OPEN
        self._awaited = _Awaited.NOTHING
        self._missing_preface = PREFACE
        self._greeted = False  # the client's first frame, which is SETTINGS, has come
        self._in_block = False  # a header block has begun
        self._uncredited = 0  # bytes of the connection's window
        self._resets = Resets(limits.max_h2_resets, seconds())
        header_list = header_list_size(limits)
        self._scanner = FrameScanner(header_list)
        self._h2 = h2 = ServerState(header_list, limits.max_h2_streams)
        #: What sends for the exchanges.
        self.sender = Sender(self, h2, self._scanner, later)

    @cached_property
    def peer_address(self) -> str:
        """The client's address as text, "" for none; mapped IPv4 as IPv4."""
        return host_and_port(self.transport.getPeer())[0]

    @cached_property
    def local_port(self) -> int:
        """The port that the client has connected to."""
        return host_and_port(self.transport.getHost())[1]

    # ------------------------------------------------------------------ Twisted calls

    def connectionMade(self) -> None:
        transport = self.transport
        self.secure = ISSLTransport.providedBy(transport)
        if not self._application.connected(self):
            self._leave(registered=False).reset()
            return
        self._admitted = True
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._deadlines.watch(self)
        self._h2.begin()
        self.sender.flush()
        self._settle()

    def dataReceived(self, data: bytes) -> None:
        if self._farewell is not None:
            return
        forgiven = self._resets.time_passes(self.seconds())
        if forgiven:
            self._scanner.earned(forgiven)
        if self._missing_preface:
            data = self._take_preface(data)
        try:
            for piece in self._scanner.scan(data):
                if not self._greeted:
                    if isinstance(piece, GoAway) or piece[3] != SETTINGS:
                        raise FrameFault(ErrorCodes.PROTOCOL_ERROR, "no SETTINGS at first")
                    self._greeted = True
                if isinstance(piece, GoAway):
                    self._stage = _Stage.LEAVING  # the client opens no more streams
                    continue
                if piece[3] == RST_STREAM and self._is_idle(piece):
                    raise FrameFault(ErrorCodes.PROTOCOL_ERROR, "RST_STREAM of an idle stream")
                if piece[3] in (HEADERS, CONTINUATION):
                    self._in_block = not piece[4] & 4  # END_HEADERS
                events = self._h2.receive_data(piece)
                for event in events:
                    self._handle(event)
                if not events and piece[3] == DATA:  # for a stream that is no more
                    self._scanner.spend(PER_FRAME + 1)
                if self._farewell is not None:
                    return
        except FrameFault as fault:
            self._fault(fault.detail, fault.code)
            return
        except H2Error as error:
            self._fault(str(error))  # h2 has said goodbye
            return
        except Exception:  # noqa: BLE001 - as h2's assertions: what a client sends must not get out
            _log.failure("what a client has sent was not taken")
            self._fault("a frame that was not expected", ErrorCodes.INTERNAL_ERROR)
            return
        self.sender.flush()
        if self.sender.unread > _MAX_UNREAD:
            self._fault("the client does not read", ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._settle()

    def _take_preface(self, data: bytes) -> bytes:
        """Return what follows the preface, of which the scanner knows nothing."""
        missing = self._missing_preface
        count = min(len(data), len(missing))
        if data[:count] != missing[:count]:
            self._fault("no preface", ErrorCodes.PROTOCOL_ERROR)
            return b""
        self._missing_preface = missing[count:]
        self._h2.receive_data(data[:count])
        return data[count:]

    def _is_idle(self, frame: bytes) -> bool:
        stream_id = int.from_bytes(frame[5:9], "big") & _LAST_STREAM
        return stream_id > self._h2.highest_inbound_stream_id

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        farewell = self._farewell
        if farewell is None:
            farewell = self._leave()
        farewell.over()
        self._lose_all()
        if self._admitted:
            self._admitted = False
            self._application.disconnected(self)

    def readConnectionLost(self) -> None:
        """The client's FIN: it takes nothing more."""
        if self._farewell is not None:
            self._farewell.close()
        else:
            self._leave().reset()
            self._lose_all()

    def writeConnectionLost(self) -> None:
        """Our FIN is out."""
        if self._farewell is not None:
            self._farewell.write_half_closed()

    def pauseProducing(self) -> None:
        """The transport has enough. Called from within our own writes: nothing is called here."""
        self.sender.blocked = True

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        if self._farewell is not None:
            self._farewell.drained()
            return
        try:
            self.sender.resumed()
        except Exception:  # noqa: BLE001 - the reactor has others to serve
            self._failed()
            return
        self._settle()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    # ------------------------------------------------------------------ as a connection

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._exchanges)

    def drain(self, grace: float) -> None:
        """Take what the client has sent by now and in ``grace`` seconds, then no more.

        RFC 9113, section 6.8: it is told first that this will be, and then from which stream on.
        """
        if self._farewell is None and self._stage is _Stage.OPEN:
            self._stage = _Stage.WARNED
            if self._admitted:  # else it has not begun to speak
                self._goodbye(_LAST_STREAM)
            self._awaited = _Awaited.GRACE
            self.deadline = self._deadlines.after(grace, self)

    def expired(self) -> None:
        """It is time for the second word, or the client has been silent for too long."""
        if self._awaited is _Awaited.GRACE:
            self._stage = _Stage.LEAVING
            self._goodbye(self._last_stream)
            self._settle()
        elif self._awaited is _Awaited.BLOCK:
            self._fault("a request's head did not come in time", ErrorCodes.ENHANCE_YOUR_CALM)
        else:
            self._goodbye(self._last_stream)
            self._close()

    # ------------------------------------------------------------------ for exchanges

    def deliver(self, exchange: H2Exchange) -> None:
        """Hand on what the exchange has, and give its window back."""
        if exchange.delivering:
            return  # from within one of the calls below: the loop goes on there
        exchange.delivering = True
        try:
            while exchange.step():
                pass
        except Exception:  # noqa: BLE001 - the others on this connection are not to suffer
            _log.failure("the application failed on a request")
            self.broken(exchange)
            return
        finally:
            exchange.delivering = False
        if not exchange.paused:
            self._credit(exchange)
        self.watch(exchange)
        self.sender.flush()
        self._check_over(exchange)

    def broken(self, exchange: H2Exchange) -> None:
        """The stream is over before its time, by our doing."""
        if self._exchanges.get(exchange.stream_id) is exchange:
            self._reset(exchange, ErrorCodes.INTERNAL_ERROR)
        else:
            exchange.close(lost=False)

    def watch(self, exchange: H2Exchange) -> None:
        """Derive from its state what the exchange waits for, and until when."""
        unread = bool(exchange.queue or exchange.ending)
        waits = unread or not (exchange.complete or exchange.paused or exchange.over)
        if waits and not exchange.switched and exchange.stream_id in self._exchanges:
            if exchange.deadline is None:
                self._deadlines.watch(exchange)
                exchange.unread = False
            if not (unread and exchange.unread):
                exchange.deadline = self._deadlines.after(self._limits.idle_timeout)
            exchange.unread = unread
        elif exchange.deadline is not None:
            exchange.deadline = None
            self._deadlines.discard(exchange)

    def late(self, exchange: H2Exchange) -> None:
        """Nothing has come of what the exchange waits for."""
        if exchange.unread:
            self._reset(exchange, ErrorCodes.CANCEL)
        else:
            self._refuse(exchange, HttpError(408, "the request's body did not come in time"))

    # ------------------------------------------------------------------ what comes

    def _handle(self, event: Event) -> None:
        handle = _EVENTS.get(type(event))
        if handle is not None and self._farewell is None:
            handle(self, event, self._exchanges.get(getattr(event, "stream_id", None) or 0))

    def _on_request(self, event: RequestReceived, _: H2Exchange | None) -> None:
        stream_id = event.stream_id or 0
        if self._stage is _Stage.LEAVING or len(self._exchanges) >= self._limits.max_h2_streams:
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            self._resets.spend()
            return
        self._last_stream = stream_id
        if self._stage is not _Stage.WARNED:
            self._awaited = _Awaited.NOTHING  # also if it is over by the end of this turn
            self.deadline = None
        complete = event.stream_ended is not None
        limits = self._limits
        try:
            request = read_request(
                cast(Any, event.headers), limits.max_header_size, limits.max_header_count
            )
            if complete and request.length:
                raise MalformedRequest("content-length without a body")
        except MalformedRequest as error:
            self._malformed(stream_id, str(error))
            return
        except HttpError as error:
            self._refuse_head(event, error, complete)
            return
        exchange = H2Exchange(self, stream_id, request, complete)
        self._exchanges[stream_id] = exchange
        if limits.max_body_size and (request.length or 0) > limits.max_body_size:
            self._refuse(exchange, HttpError(413, _TOO_LARGE))
            return
        try:
            handler = self._application.request(exchange)
        except Exception:  # noqa: BLE001 - the others on this connection are not to suffer
            _log.failure("the application failed on a request")
            self.broken(exchange)
            return
        if not exchange.over:
            exchange.handler = handler
            self.deliver(exchange)

    def _on_data(self, event: DataReceived, exchange: H2Exchange | None) -> None:
        size = event.flow_controlled_length or 0
        self._uncredited += size
        if self._uncredited >= CONNECTION_WINDOW // 4:
            count, self._uncredited = self._uncredited, 0
            self._h2.increment_flow_control_window(count)
        data = event.data or b""
        if not data and size:
            self._scanner.spend(PER_FRAME + 1)  # padding alone is no content
        if exchange is None or exchange.over:
            return
        exchange.uncredited += size
        exchange.bytes_received += len(data)
        received, length = exchange.bytes_received, exchange.length
        if not exchange.switched and length is not None and received > length:
            self._malformed_body(exchange, "the body is longer than content-length")
            return
        limit = self._limits.max_body_size
        if limit and received > limit and not exchange.head.upgrade:
            self._refuse(exchange, HttpError(413, _TOO_LARGE))
            self._resets.spend()
            return
        if data:
            exchange.keep(data)
        self.deliver(exchange)

    def _on_trailers(self, event: TrailersReceived, exchange: H2Exchange | None) -> None:
        if exchange is None:
            return
        try:
            if exchange.head.upgrade:  # RFC 9113, section 8.5
                raise MalformedRequest("header fields where there are only bytes")
            trailers = read_trailers(cast(Any, event.headers))
        except MalformedRequest as error:
            self._malformed_body(exchange, str(error))
            return
        size = sum(len(name) + len(value) + 4 for name, value in trailers)
        if size > self._limits.max_header_size or len(trailers) > self._limits.max_header_count:
            self._refuse(exchange, HttpError(431, "the trailer fields are too large"))
            self._resets.spend()
            return
        exchange.trailers = trailers

    def _on_end(self, event: StreamEnded, exchange: H2Exchange | None) -> None:
        if exchange is None or exchange.complete:
            return
        length = exchange.length
        if length is not None and not exchange.switched and exchange.bytes_received != length:
            self._malformed_body(exchange, "the body is shorter than content-length")
            return
        exchange.complete = True
        self.deliver(exchange)

    def _on_reset(self, event: StreamReset, exchange: H2Exchange | None) -> None:
        if exchange is not None:
            self._forget(exchange, lost=True)
        self._resets.spend()

    def _on_window(self, event: WindowUpdated, exchange: H2Exchange | None) -> None:
        if not event.stream_id:
            self.sender.go_on()
        elif exchange is not None:
            self.sender.pump(exchange)

    def _on_settings(self, event: RemoteSettingsChanged, _: H2Exchange | None) -> None:
        self._h2.keep_table_small()
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            self._scanner.spend(len(self._exchanges) // _PER_STREAMS)
            for each in list(self._exchanges.values()):
                if each.queue:
                    self.sender.pump(each)

    # ------------------------------------------------------------------ refusals

    def _malformed(self, stream_id: int, reason: str) -> None:
        self._h2.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
        self._say("a malformed request", reason)
        self._resets.spend()

    def _malformed_body(self, exchange: H2Exchange, reason: str) -> None:
        self._say("a malformed request", reason)
        self._reset(exchange, ErrorCodes.PROTOCOL_ERROR)
        self._resets.spend()

    def _refuse_head(self, event: RequestReceived, error: HttpError, complete: bool) -> None:
        """Answer a request that the application does not get to see."""
        is_head = (b":method", b"HEAD") in cast(Any, event.headers)
        head = RequestHead(b"HEAD" if is_head else b"-", b"-", [])
        stream_id = event.stream_id or 0
        exchange = H2Exchange(self, stream_id, Request(head, b"", None, False), complete)
        self._exchanges[stream_id] = exchange
        exchange.refused = True
        self._answer(exchange, error, None)

    def _refuse(self, exchange: H2Exchange, error: HttpError) -> None:
        """Answer with an error what has turned out to be none; or break it off."""
        if exchange.responded:
            self._reset(exchange, ErrorCodes.CANCEL)
            return
        exchange.refused = True
        handler, exchange.handler = exchange.handler, NOBODY
        exchange.pieces = []
        handler.client_lost()
        self._answer(exchange, error, exchange.head)

    def _answer(self, exchange: H2Exchange, error: HttpError, head: RequestHead | None) -> None:
        answer, body = self._application.refused(self, error, head)
        fields = [field for field in answer.headers if field[0].lower() != b"content-length"]
        fields.append((b"content-length", b"%d" % len(body)))
        exchange.respond(ResponseHead(answer.status, answer.reason, fields))
        exchange.write(body)
        exchange.finish()

    # ------------------------------------------------------------------ for what is sent

    def usable(self, exchange: H2Exchange) -> bool:
        """Whether anything can be sent for it."""
        return self._farewell is None and exchange.stream_id in self._exchanges

    @property
    def closing(self) -> bool:
        """Whether nothing more may be written."""
        return self._farewell is not None

    def sent(self, exchange: H2Exchange) -> None:
        """Our direction has ended."""
        exchange.ending = False
        if exchange.switched:
            exchange.sent = True
            self._check_over(exchange)
            return
        if not (exchange.complete or exchange.bytes_received == exchange.length):
            # RFC 9113, section 8.1: nothing of the rest is wanted. Where all of a body is there as
            # announced, the rest is its end, which is on its way: a client that is told that it is
            # not wanted takes that for a fault.
            self._reset_stream(exchange.stream_id, ErrorCodes.NO_ERROR)
            self.sender.flush()
        if not exchange.refused:
            self._resets.earn()
        self._forget(exchange, lost=False)

    def _check_over(self, exchange: H2Exchange) -> None:
        """Both directions of what was switched end for themselves."""
        ended = exchange.switched and exchange.sent and exchange.complete
        if ended and not exchange.pieces and self.usable(exchange):
            self._forget(exchange, lost=False)

    # ------------------------------------------------------------------ windows

    def _credit(self, exchange: H2Exchange) -> None:
        """Give back to the stream's window what was taken, once that is half of it."""
        exchange.granting += exchange.uncredited
        exchange.uncredited = 0
        if exchange.granting >= STREAM_WINDOW // 2:
            count, exchange.granting = exchange.granting, 0
            if not exchange.complete and self.usable(exchange):
                self._h2.increment_flow_control_window(count, exchange.stream_id)

    # ------------------------------------------------------------------ the end

    def _reset(self, exchange: H2Exchange, code: ErrorCodes) -> None:
        if self.usable(exchange):
            self._reset_stream(exchange.stream_id, code)
            self.sender.flush()
        self._forget(exchange, lost=True)

    def _reset_stream(self, stream_id: int, code: ErrorCodes) -> None:
        stream = self._h2.streams.get(stream_id)
        # h2 has seen the end of a request with its last frame, of which we are just told.
        if stream is not None and not stream.closed:
            self._h2.reset_stream(stream_id, code)

    def _forget(self, exchange: H2Exchange, lost: bool) -> None:
        """A stream is over."""
        if self._exchanges.get(exchange.stream_id) is exchange:
            del self._exchanges[exchange.stream_id]
        if exchange.deadline is not None:
            exchange.deadline = None
            self._deadlines.discard(exchange)
        try:
            exchange.close(lost)
        except Exception:  # noqa: BLE001 - the others on this connection are not to suffer
            _log.failure("the application failed on a client's leaving")
        self._settle()

    def _lose_all(self) -> None:
        exchanges, self._exchanges = self._exchanges, {}
        self.sender.close()
        for exchange in exchanges.values():
            self._forget(exchange, lost=True)

    def _settle(self) -> None:
        """Derive from the state what is awaited, and until when; close where nothing is."""
        if self._farewell is not None or self._stage is _Stage.WARNED:
            return  # or the grace is running
        limits = self._limits
        if self._in_block:
            awaited, patience = _Awaited.BLOCK, limits.head_timeout
        elif self._exchanges:
            awaited, patience = _Awaited.NOTHING, 0.0
        elif self._stage is _Stage.LEAVING:
            self._close()
            return
        elif self._last_stream:
            awaited, patience = _Awaited.REQUEST, limits.keep_alive_timeout
        else:
            awaited, patience = _Awaited.FIRST, limits.head_timeout
        if awaited is not self._awaited:
            self._awaited = awaited
            self.deadline = self._deadlines.after(patience, self) if patience else None

    def _goodbye(self, last_stream: int) -> None:
        # By hand: h2 would take nothing more from the streams that go on.
        frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=ErrorCodes.NO_ERROR)
        self.sender.flush()
        self.transport.write(frame.serialize())

    def _say(self, what: str, reason: str) -> None:
        _log.info(
            "{what} in HTTP/2: {reason} address={address}",
            what=what,
            reason=reason[:_MAX_REASON],
            address=self.peer_address,
        )

    def _failed(self) -> None:
        _log.failure("a connection of HTTP/2 failed")
        self._fault("a fault of ours", ErrorCodes.INTERNAL_ERROR)

    def _fault(self, reason: str, code: ErrorCodes | None = None) -> None:
        """The client breaks the rules: the connection ends, with all that is under way."""
        if code is not None:
            self._h2.close_connection(code)
        self._say("connection closed: a fault", reason)
        self.sender.flush()
        self._close()

    def _close(self) -> None:
        if self._farewell is None:
            self._leave().close()
            self._lose_all()

    def _leave(self, registered: bool = True) -> Farewell:
        self._deadlines.discard(self)
        self.deadline = None
        self._farewell = farewell = Farewell(
            self.transport,
            self.secure,
            self._deadlines,
            self._limits.idle_timeout,
            self._limits.linger_timeout,
            registered=registered,
        )
        return farewell


_Handle = Callable[[H2ClientConnection, Any, Any], None]

_EVENTS: dict[type[Event], _Handle] = {
    DataReceived: H2ClientConnection._on_data,
    RemoteSettingsChanged: H2ClientConnection._on_settings,
    RequestReceived: H2ClientConnection._on_request,
    StreamEnded: H2ClientConnection._on_end,
    StreamReset: H2ClientConnection._on_reset,
    TrailersReceived: H2ClientConnection._on_trailers,
    WindowUpdated: H2ClientConnection._on_window,
}
