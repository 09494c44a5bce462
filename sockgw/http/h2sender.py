"""What goes to a client of HTTP/2: exchanges take turns, and wait for windows and the transport.

An exchange that waits for its own stream's window waits by itself, and goes on when that opens.
The others are in line for the connection's window and the transport, and send a frame each in
turn. While the transport takes no more nothing of a response is written, heads neither: what is
written then are answers to PING, SETTINGS and bad streams, which are counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from h2.connection import H2Connection

from sockgw.http.h2exchange import H2Exchange
from sockgw.http.h2frames import PER_FRAME, PER_REQUEST, FrameScanner
from sockgw.protocol.heads import Headers

if TYPE_CHECKING:
    from sockgw.http.h2server import H2ClientConnection

__all__ = ["Sender"]

# Bytes of a DATA frame at most: streams take turns by frames.
_MAX_SENT = 16_384

# Bytes of a DATA frame behind which more waits. A client that lets us send in smaller pieces makes
# us work and reads next to nothing (CVE-2019-9511): they count as frames without content.
_DRIBBLE = 1_024


class Sender:
    """Sends for the exchanges of one connection."""

    __slots__ = ("_connection", "_h2", "_later", "_ready", "_scanner", "_soon", "blocked", "unread")

    def __init__(
        self,
        connection: H2ClientConnection,
        h2: H2Connection,
        scanner: FrameScanner,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._connection = connection
        self._h2 = h2
        self._scanner = scanner
        self._later = later
        self._soon: list[H2Exchange] = []
        self._ready: deque[H2Exchange] = deque()
        #: The transport takes no more.
        self.blocked = False
        #: Bytes written nevertheless.
        self.unread = 0

    def soon(self, exchange: H2Exchange) -> None:
        """Send what it has in the next turn: perhaps all of it is known by then."""
        if not self._soon:
            self._later(self._now)
        self._soon.append(exchange)

    def _now(self) -> None:
        soon, self._soon = self._soon, []
        for exchange in soon:
            if exchange.waiting_head is not None:
                self.pump(exchange)

    def inform(self, exchange: H2Exchange, head: Headers) -> None:
        """Send an interim head."""
        if self._connection.usable(exchange):
            self._h2.send_headers(exchange.stream_id, cast(Any, head))
            self.flush()

    def pump(self, exchange: H2Exchange) -> None:
        """Send what the exchange has, as far as windows and transport take it."""
        while self._step(exchange):
            pass
        self.flush()
        self._line_up(exchange)
        self._connection.watch(exchange)

    def go_on(self) -> None:
        """Let all that are in line send, a frame each in turn."""
        ready = self._ready
        stalled = 0
        while ready and stalled < len(ready) and not self.blocked:
            exchange = ready.popleft()
            exchange.scheduled = False
            stalled = 0 if self._step(exchange) else stalled + 1
            self._line_up(exchange)
            self._connection.watch(exchange)
        self.flush()

    def resumed(self) -> None:
        """The transport has written everything."""
        self.blocked = False
        self.unread = 0
        self.go_on()

    def flush(self) -> None:
        """Write what h2 has got to say."""
        data = self._h2.data_to_send()
        if data and not self._connection.closing:
            if self.blocked:
                self.unread += len(data)
            self._connection.transport.write(data)

    def close(self) -> None:
        """Nothing more is sent."""
        self._ready.clear()
        self._soon.clear()

    # ------------------------------------------------------------------ inside

    def _line_up(self, exchange: H2Exchange) -> None:
        """Remember an exchange that the connection keeps from going on, if one does."""
        if exchange.scheduled or not self._connection.usable(exchange):
            return
        if exchange.queue and exchange.waiting_head is None:
            if self._h2.streams[exchange.stream_id].outbound_flow_control_window <= 0:
                return
        elif exchange.waiting_head is None and not exchange.ending:
            return
        exchange.scheduled = True
        self._ready.append(exchange)

    def _step(self, exchange: H2Exchange) -> bool:
        """Send a frame of an exchange; return whether there was one that could be sent."""
        if self.blocked or not self._connection.usable(exchange):
            return False
        if exchange.waiting_head is not None:
            self._send_head(exchange)
            return True
        h2 = self._h2
        queue = exchange.queue
        if not queue:
            if exchange.ending:
                self._send_end(exchange)
                return True
            return False
        stream = h2.streams[exchange.stream_id]
        room = min(stream.outbound_flow_control_window, h2.outbound_flow_control_window, _MAX_SENT)
        if room <= 0:
            return False
        piece = queue.popleft()
        cut = len(piece) > room
        if cut:
            queue.appendleft(piece[room:])
            piece = piece[:room]
        end = exchange.ending and not queue and not exchange.end_fields
        h2.send_data(exchange.stream_id, cast(Any, piece), end)
        exchange.queued -= len(piece)
        if cut and room < _DRIBBLE:
            self._scanner.spare -= 1
        else:
            self._scanner.earned(PER_FRAME)
            exchange.unread = False
        self.flush()
        if end:
            self._connection.sent(exchange)
        else:
            exchange.relieved()
        return True

    def _send_head(self, exchange: H2Exchange) -> None:
        """Send the head that waits; as one frame with the end, where nothing is between them.

        gRPC's answers that are trailers alone would be no such ones otherwise.
        """
        head, exchange.waiting_head = exchange.waiting_head, None
        end = exchange.ending and not exchange.queue and not exchange.end_fields
        self._h2.send_headers(exchange.stream_id, cast(Any, head), end_stream=end)
        self._scanner.earned(PER_REQUEST)
        if end:
            self.flush()
            self._connection.sent(exchange)

    def _send_end(self, exchange: H2Exchange) -> None:
        trailers = exchange.end_fields
        if trailers:
            self._h2.send_headers(exchange.stream_id, cast(Any, trailers), end_stream=True)
        else:
            self._h2.end_stream(exchange.stream_id)
        self.flush()
        self._connection.sent(exchange)
