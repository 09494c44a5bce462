"""One HTTP/2 connection to an origin, which carries many exchanges at a time (RFC 9113).

The library h2 keeps the protocol's state; what it does not judge, or too late, is in
:mod:`sockgw.http.h2frames` and :mod:`sockgw.http.h2fields`.

Windows. What a stream may send us is given back as the exchange takes it, so one that is paused
holds its origin back, by itself: the connection's window is given back at once. Held in memory are
therefore at most the stream windows of all exchanges, and nobody waits for somebody else's reader.
The transport is never paused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, NoAvailableStreamIDError
from h2.settings import SettingCodes, Settings
from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sockgw.http.h2frames import PER_FRAME, PER_REQUEST, FrameFault, FrameScanner, GoAway
from sockgw.http.h2settings import PeerSettings
from sockgw.protocol.errors import StreamCode

if TYPE_CHECKING:
    from sockgw.http.h2connections import OriginConnections
from sockgw.http.h2originexchange import H2OriginExchange

__all__ = ["H2OriginConnection"]

# Bytes that an origin may send on a stream before we have taken them: as the tunnel's streams.
_STREAM_WINDOW = 262_144
# The same on a connection: so large that giving it back at half never keeps an origin waiting.
_CONNECTION_WINDOW = 16 * 1024 * 1024
_DEFAULT_WINDOW = 65_535  # RFC 9113, section 6.9.2

# Bytes of the table of header fields, in either direction: RFC 9113's default. What an origin
# offers beyond that would be our memory.
_TABLE_SIZE = 4_096

# Until an origin has said how many streams it takes: no server should take fewer (section 6.5.2).
_PRESUMED_STREAMS = 100

# Bytes of answers to PING, SETTINGS and streams that are over, for an origin that does not read.
_MAX_UNREAD = 65_536

# Reset streams whose late frames are told from an error; each costs some 100 bytes.
_MAX_CLOSED = 4_096

# Seconds in which a peer may answer our close_notify before the connection is cut.
_CLOSE_GRACE = 2.0

# Seconds of silence, while exchanges run, after which an origin is asked whether it lives. If it
# does not answer in as many it gets no further exchanges: a host that vanished would take them all.
# Those that it has are given up later, for it may only be busy.
_SILENCE = 10.0
_DEAD = 60.0  # seconds after the question
# Seconds between two such questions if nothing but the answer came: gRPC's servers take more
# frequent ones for abuse, and end the connection.
_BETWEEN_PINGS = 300.0

_CONFIGURATION = H2Configuration(
    client_side=True,
    header_encoding=None,
    # Ours to do: see h2fields.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = _MAX_CLOSED


def _nothing(headers: object) -> None:
    """In place of h2's look at content-length, which ends the connection where it is wrong."""


@implementer(IProtocol, IPushProducer)
class H2OriginConnection:
    """HTTP/2 over one transport."""

    _log = Logger()

    __slots__ = (
        "_blocked",
        "_closed",
        "_first_bytes",
        "_h2",
        "_heard",
        "_last_ping",
        "_pinged",
        "_pool",
        "_ready",
        "_scanner",
        "_served",
        "_settings_seen",
        "_streams",
        "_uncredited",
        "_unread",
        "deadline",
        "draining",
        "transport",
    )

    def __init__(self, pool: OriginConnections) -> None:
        self._pool = pool
        self._streams: dict[int, H2OriginExchange] = {}
        self._ready: deque[H2OriginExchange] = deque()  # those that have something to send
        self._blocked = False  # the transport takes no more
        self._closed = False
        self._served = False
        self._first_bytes = True
        self._heard = False  # since the last look at the clock
        self._pinged = False  # and not answered
        self._last_ping: float | None = None  # since which no response has come
        self._uncredited = 0
        self._unread = 0  # bytes answered while the transport took no more
        self._settings_seen = False
        self.deadline: float | None = None
        #: No new exchanges: the origin has said so, or says nothing, or numbers have run out.
        self.draining = False
        # RFC 9113, section 6.5.2: a field counts 32 bytes more. Twice what a response may have:
        # over that the connection ends, since the table of fields is lost, below it one stream.
        header_list = 2 * (pool.max_header_size + 32 * pool.max_header_count)
        self._scanner = FrameScanner(header_list)
        self._h2 = h2 = _Connection(_CONFIGURATION)
        h2.remote_settings = PeerSettings(client=False)
        h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.HEADER_TABLE_SIZE: _TABLE_SIZE,
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: header_list,
            },
        )
        h2.decoder.max_header_list_size = header_list

    # IProtocol

    def makeConnection(self, transport: ITransport) -> None:
        """Called with a TCP or UNIX transport, or with TLS over one."""
        self.transport: Any = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        self._pool.opened(self)
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self._flush()
        self._rest()

    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        self._heard = True
        if self._first_bytes:
            self._first_bytes = False
            if data.startswith(b"HTTP/1."):
                self._fault("the origin answers in HTTP/1.1")
                return
        try:
            for piece in self._scanner.scan(data):
                if isinstance(piece, GoAway):
                    self._go_away(piece)
                else:
                    events = self._h2.receive_data(piece)
                    self._answer()
                    for event in events:
                        self._handle(event)
                if self._closed:
                    return
        except FrameFault as fault:
            self._h2.close_connection(fault.code)
            self._fault(fault.detail)
            return
        except H2Error as error:
            self._fault(str(error))
            return
        except Exception:  # noqa: BLE001 - as h2's assertions: what an origin sends must not get out
            self._log.failure("What an origin has sent was not taken")
            self._fault("a frame that was not expected")
            return
        self._flush()

    def connectionLost(self, reason: Failure) -> None:
        self._closed = True
        self.deadline = None
        streams, self._streams = self._streams, {}
        self._ready.clear()
        self._pool.lost(self)
        for exchange in streams.values():
            exchange.lost("connection lost")

    # IPushProducer: we produce requests

    def pauseProducing(self) -> None:
        """Called again and again while the buffer is full, also from within a write."""
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        self._unread = 0
        self._pump_all()

    def stopProducing(self) -> None:
        """The connection is being lost; connectionLost follows."""

    # for the pool

    @property
    def closed(self) -> bool:
        """Whether this connection is over."""
        return self._closed

    @property
    def has_room(self) -> bool:
        """Whether it takes another exchange."""
        if self.draining or self._closed:
            return False
        limit = min(
            self._pool.limits.max_streams,
            self._h2.remote_settings.max_concurrent_streams
            if self._settings_seen
            else _PRESUMED_STREAMS,
        )
        return len(self._streams) < limit

    def attach(self, exchange: H2OriginExchange) -> bool:
        """Send the exchange's request; return False where its numbers have run out."""
        h2 = self._h2
        try:
            stream_id = h2.get_next_available_stream_id()
        except NoAvailableStreamIDError:
            self.draining = True
            return False
        h2.send_headers(stream_id, exchange.fields, end_stream=exchange.complete)
        # RFC 9113, section 8.1.1: a wrong length is the end of a stream. h2 would end them all.
        h2.streams[stream_id]._initialize_content_length = _nothing  # type: ignore[method-assign]
        if not self._streams:
            self._heard = True
            self.deadline = self._pool.deadlines.after(_SILENCE)
        self._streams[stream_id] = exchange
        exchange.attached(self, stream_id, self._served)
        self._served = True
        self._scanner.earned(PER_REQUEST)
        self._flush()
        self._pump_queued(exchange)
        return True

    def close(self) -> None:
        """End in good order: there are no exchanges."""
        if self._closed:
            return
        self._h2.close_connection()
        self._flush()
        self._leave()
        self.transport.loseConnection()

    def drop(self) -> None:
        """End at once, whatever is in the buffers."""
        if not self._closed:
            self._leave()
            self.transport.abortConnection()

    def shut_down(self) -> None:
        """End at once, failing all exchanges."""
        for exchange in list(self._streams.values()):
            exchange.fail(StreamCode.CANCELLED, "shutting down")
        if self._closed:
            self.transport.abortConnection()
        else:
            self.drop()

    # for exchanges

    def pump(self, exchange: H2OriginExchange) -> None:
        """Send what the exchange has, as far as windows and transport take it."""
        while exchange.queue and self._send_piece(exchange):
            pass
        if exchange.queue:
            if not exchange.queued:
                exchange.queued = True
                self._ready.append(exchange)
        elif exchange.finished and not exchange.sent and exchange.connection is self:
            self._send_end(exchange)

    def credit(self, exchange: H2OriginExchange) -> None:
        """Give back to the stream's window what was taken, once that is half of it."""
        if exchange.uncredited >= _STREAM_WINDOW // 2:
            count, exchange.uncredited = exchange.uncredited, 0
            stream = self._h2.streams.get(exchange.stream_id)
            if stream is not None and stream.open and not self._closed:
                self._h2.increment_flow_control_window(count, exchange.stream_id)
                self._flush()

    def cancel(self, exchange: H2OriginExchange) -> None:
        """The exchange is over before its response was."""
        if self._streams.pop(exchange.stream_id, None) is not None:
            self._reset(exchange.stream_id, ErrorCodes.CANCEL)
            self._freed()

    # for the deadlines

    def expired(self) -> None:
        """Time to look whether the origin lives, to leave an idle connection, or to cut it off."""
        deadlines = self._pool.deadlines
        if self._closed:
            self.deadline = None
            self.transport.abortConnection()
        elif not self._streams:
            self.close()
        elif self._heard:
            self._heard = False
            self._pinged = False
            self.deadline = deadlines.after(_SILENCE)
        elif self._pinged and not self.draining:
            self.draining = True
            self._pool.leaving(self)
            self.deadline = deadlines.after(_DEAD - _SILENCE, self)
        elif self._pinged:
            streams, self._streams = self._streams, {}
            self.drop()
            for exchange in streams.values():
                exchange.lost("no sign of life")
        else:
            self.deadline = deadlines.after(_SILENCE)
            now = deadlines.now
            if self._last_ping is None or now - self._last_ping >= _BETWEEN_PINGS:
                self._last_ping = now
                self._pinged = True
                self._h2.ping(b"sockgw\0\0")
                self._flush()

    # what comes

    def _handle(self, event: Event) -> None:
        handle = _EVENTS.get(type(event))
        if handle is None or self._closed:
            return
        exchange = self._streams.get(getattr(event, "stream_id", None) or 0)
        try:
            handle(self, event, exchange)
        except (H2Error, FrameFault):
            raise
        except Exception:  # noqa: BLE001 - the others on this connection are not to suffer
            self._log.failure("An origin's response was not taken")
            if exchange is not None:
                exchange.fail(StreamCode.INTERNAL_ERROR, "response not taken")

    def _on_head(self, event: ResponseReceived, exchange: H2OriginExchange | None) -> None:
        if exchange is not None:
            self._last_ping = None
            exchange.head_received(cast(Any, event.headers))

    def _on_data(self, event: DataReceived, exchange: H2OriginExchange | None) -> None:
        size = event.flow_controlled_length or 0
        self._uncredited += size
        if self._uncredited >= _CONNECTION_WINDOW // 2:
            self._h2.increment_flow_control_window(self._uncredited)
            self._uncredited = 0
        data = event.data or b""
        if size and not data:
            self._scanner.spend(PER_FRAME + 1)  # padding alone is no content
        if exchange is not None:
            self._last_ping = None
            exchange.body_received(data, size)

    def _on_trailers(self, event: TrailersReceived, exchange: H2OriginExchange | None) -> None:
        if exchange is not None:
            exchange.trailers_received(cast(Any, event.headers))

    def _on_end(self, event: StreamEnded, exchange: H2OriginExchange | None) -> None:
        if exchange is None:
            return
        del self._streams[exchange.stream_id]
        if not exchange.sent:
            # An early answer. RFC 9113, section 8.1: nothing of the rest is wanted.
            self._reset(exchange.stream_id, ErrorCodes.NO_ERROR)
        # First, so that a request made from within finds the place that is free now.
        self._freed()
        exchange.ended()

    def _on_reset(self, event: StreamReset, exchange: H2OriginExchange | None) -> None:
        if exchange is None:
            return
        del self._streams[exchange.stream_id]
        self._freed()
        code = event.error_code
        if code == ErrorCodes.REFUSED_STREAM and event.remote_reset:
            exchange.unprocessed("the origin refuses the stream")
        elif code == ErrorCodes.HTTP_1_1_REQUIRED and exchange.held is not None:
            exchange.fall_back()
        else:
            exchange.reset(code.name if isinstance(code, ErrorCodes) else f"code {code}")

    def _on_window(self, event: WindowUpdated, exchange: H2OriginExchange | None) -> None:
        if not event.stream_id:
            self._pump_all()
        elif exchange is not None and exchange.queue:
            self._pump_queued(exchange)

    def _on_settings(self, event: RemoteSettingsChanged, exchange: None) -> None:
        h2 = self._h2
        if h2.encoder.header_table_size > _TABLE_SIZE:
            h2.encoder.header_table_size = _TABLE_SIZE
        self._settings_seen = True
        self._pump_all()
        self._pool.freed(self)

    def _on_request(self, event: RequestReceived, exchange: None) -> None:
        # h2 takes it for a push without a promise.
        raise FrameFault(ErrorCodes.PROTOCOL_ERROR, "a stream that nobody has opened")

    def _on_pong(self, event: PingAckReceived, exchange: None) -> None:
        self._pinged = False

    def _go_away(self, goaway: GoAway) -> None:
        """No new streams; those above the last one were not looked at (section 6.8)."""
        self.draining = True
        self._pool.leaving(self)
        above = [number for number in self._streams if number > goaway.last_stream]
        refused = [self._streams.pop(number) for number in above]
        for number in above:
            # They count no more, whatever h2 thinks.
            self._reset(number, ErrorCodes.CANCEL)
        for exchange in refused:
            if goaway.code == ErrorCodes.HTTP_1_1_REQUIRED and exchange.held is not None:
                exchange.fall_back()
            else:
                exchange.unprocessed("the origin takes no more on this connection")
        if not self._streams:
            self.close()

    # inside

    def _send_piece(self, exchange: H2OriginExchange) -> bool:
        """Send a frame of the exchange's body; return whether one was sent."""
        h2 = self._h2
        stream = h2.streams.get(exchange.stream_id)
        if self._blocked or self._closed or stream is None or not stream.open:
            return False
        room = min(
            stream.outbound_flow_control_window,
            h2.outbound_flow_control_window,
            h2.max_outbound_frame_size,
        )
        if room <= 0:
            return False
        queue = exchange.queue
        piece = queue.popleft()
        if len(piece) > room:
            queue.appendleft(piece[room:])
            piece = piece[:room]
        end = exchange.finished and not queue and not exchange.request_trailers
        h2.send_data(exchange.stream_id, piece, end)
        exchange.sent |= end
        self._scanner.earned(PER_FRAME)
        exchange.progress()
        self._flush()
        return True

    def _send_end(self, exchange: H2OriginExchange) -> None:
        h2 = self._h2
        stream = h2.streams.get(exchange.stream_id)
        if self._closed or stream is None or not stream.open:
            return
        exchange.sent = True
        if exchange.request_trailers:
            h2.send_headers(exchange.stream_id, exchange.request_trailers, end_stream=True)
        else:
            h2.end_stream(exchange.stream_id)
        self._flush()

    def _pump_queued(self, exchange: H2OriginExchange) -> None:
        """Go on with an exchange that had to wait."""
        self.pump(exchange)
        if not exchange.queue:
            exchange.drained()

    def _pump_all(self) -> None:
        """Let all that wait send, a frame each in turn."""
        ready = self._ready
        stalled = 0
        while ready and stalled < len(ready) and not self._blocked:
            exchange = ready.popleft()
            if exchange.connection is not self:
                continue  # it is over, or elsewhere
            if not exchange.queue:  # a window of its own has let it go before
                exchange.queued = False
                continue
            if self._send_piece(exchange):
                stalled = 0
            else:
                stalled += 1
            if exchange.queue:
                ready.append(exchange)
            else:
                exchange.queued = False
                self._pump_queued(exchange)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        stream = self._h2.streams.get(stream_id)
        if stream is not None and stream.open and not self._closed:
            self._h2.reset_stream(stream_id, code)
            self._flush()

    def _freed(self) -> None:
        """There is one exchange less."""
        if self._closed:
            return
        if self._streams:
            self._pool.freed(self)
        elif self.draining:
            self.close()
        else:
            self._rest()
            self._pool.freed(self)

    def _rest(self) -> None:
        self.deadline = self._pool.deadlines.after(self._pool.keep_alive)
        self._pinged = False

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._closed:
            self.transport.write(data)

    def _answer(self) -> None:
        """Send what h2 answers by itself, and bound that for an origin that does not read."""
        data = self._h2.data_to_send()
        if not data:
            return
        if self._blocked:
            self._unread += len(data)
            if self._unread > _MAX_UNREAD:
                raise FrameFault(ErrorCodes.ENHANCE_YOUR_CALM, "the origin does not read")
        self.transport.write(data)

    def _fault(self, detail: str) -> None:
        """The origin breaks the rules: the connection ends, and all exchanges fail."""
        self._flush()
        streams, self._streams = self._streams, {}
        self._leave()
        self.transport.loseConnection()
        for exchange in streams.values():
            exchange.connection = None
            exchange.fail(StreamCode.ORIGIN_MALFORMED, detail)

    def _leave(self) -> None:
        self._closed = True
        self._ready.clear()
        self.deadline = self._pool.deadlines.after(_CLOSE_GRACE, self)
        self._pool.leaving(self)
        # First, or TLS would never send its close_notify.
        self.transport.unregisterProducer()


_Handle = Callable[[H2OriginConnection, Any, Any], None]

_EVENTS: dict[type[Event], _Handle] = {
    DataReceived: H2OriginConnection._on_data,
    InformationalResponseReceived: H2OriginConnection._on_head,
    PingAckReceived: H2OriginConnection._on_pong,
    RemoteSettingsChanged: H2OriginConnection._on_settings,
    RequestReceived: H2OriginConnection._on_request,
    ResponseReceived: H2OriginConnection._on_head,
    StreamEnded: H2OriginConnection._on_end,
    StreamReset: H2OriginConnection._on_reset,
    TrailersReceived: H2OriginConnection._on_trailers,
    WindowUpdated: H2OriginConnection._on_window,
}
