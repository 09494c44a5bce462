"""The session: many streams over one carrier after the other, without I/O.

Bytes in: :meth:`Session.receive` takes a message of the carrier and calls handlers. Bytes out:
``output_ready`` says that there is something, :meth:`Session.next_message` makes the next message
whenever the carrier can take one. No sockets; time comes from a function that it is given. Both
ends are the same class, and the one that ``opens`` gives out the stream numbers (odd ones; even
ones are reserved).

What goes out, in this order:

1. frames of the tunnel itself: they are few, small, and others wait for them;
2. after a new carrier, what the peer has not got (:mod:`sockgw.protocol.outbox`);
3. frames of streams other than data;
4. data of the streams that have some and credit, in turn (:mod:`sockgw.protocol.turns`).

Data is held back while as much is in flight as the link can use (:mod:`sockgw.protocol.flight`),
and all but the first kind while so much is unacknowledged that no more can be kept. A message ends
at 64 KiB, or earlier where the link is slow, so that what is next stands behind that much only.

Frames of streams are numbered, in the order in which they leave, by both sides for themselves; ACK
names how many came. So a session outlives its carrier: :meth:`Session.resume` goes on with another.

Rejected: a window for the whole tunnel beside those of the streams. It would let one slow reader
use up what belongs to all, which is the stall that users of other systems report. What slow
readers hold is bounded in another way: beyond ``Limits.max_buffered`` the one that holds most is
given up.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from sockgw.protocol.errors import (
    LocalError,
    ProtocolError,
    StreamCode,
    StreamError,
    TunnelCode,
    TunnelError,
)
from sockgw.protocol.frames import (
    FIN,
    MAX_STREAM_ID,
    FrameType,
    decode,
    encode,
    pack_header,
)
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.holding import Holding
from sockgw.protocol.memory import Limits, Memory
from sockgw.protocol.outbox import Outbox
from sockgw.protocol.payloads import (
    Destination,
    decode_goaway,
    decode_open,
    decode_reset,
    encode_goaway,
    encode_open,
    encode_reset,
    u32,
    u64,
)
from sockgw.protocol.streams import Phase, Stream, StreamHandler
from sockgw.protocol.turns import Turns
from sockgw.protocol.windows import WINDOW, ReceiveWindow

__all__ = ["Session", "SessionHandler", "TunnelFull"]

MESSAGE_TARGET = 65_536  # bytes; a message is closed once it holds so many
LEAST_MESSAGE = 4_096  # the same on a slow link: an eighth of what may be in flight, not less

ACK_FRAMES = 64  # numbered frames received after which an ACK leaves by itself
ACK_BYTES = 262_144  # the same in bytes of messages; before that it rides along with other frames

# Stream numbers left when the tunnel is to be replaced: minutes of the fastest use.
SPARE_IDS = 2_000_000

# Bytes of frames other than data that wait for the carrier, beyond which nothing is opened. Who has
# us answer so much, and does not take the answers, is cut off.
MAX_CONTROL = 1_048_576

# The frames that every request has, as numbers: looking into FrameType costs more than comparing.
_OPEN = int(FrameType.OPEN)
_HEAD = int(FrameType.HEAD)
_DATA = int(FrameType.DATA)

# A peer may send so many more frames that carry nothing than frames that carry something go either
# way. Generous: an honest one sends about one CREDIT for two DATA and one ACK for 64 frames.
FLOOD_BUDGET = 10_000
FLOOD_WORTH = 8


class TunnelFull(LocalError):
    """No further stream can be opened now: at the limit, leaving, or the carrier is congested."""


class SessionHandler(Protocol):
    """What a session tells its user."""

    def output_ready(self) -> None:
        """There is something to send; called once, until ``next_message`` has returned nothing."""

    def opened(
        self, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler:
        """The peer opened a stream; return who handles it. ``complete``: no body follows."""

    def ponged(self, payload: bytes) -> None:
        """The answer to a ping has come."""

    def going_away(self, last_stream: int, code: TunnelCode, detail: str) -> None:
        """The peer accepts no further streams than up to the last one it names."""

    def handler_failed(self, stream: Stream) -> None:
        """A handler raised; called inside the ``except``. The stream is reset afterwards."""


class Session:
    """One end of a tunnel."""

    def __init__(
        self,
        handler: SessionHandler,
        *,
        opens: bool,
        limits: Limits | None = None,
        memory: Memory | None = None,
        seconds: Callable[[], float] = float,  # 0.0 for ever: no clock
    ) -> None:
        """``memory`` is shared with the sessions of other tunnels; ``seconds`` is the clock."""
        self._handler = handler
        self._opens = opens
        self._limits = limits = limits or Limits()
        self._memory = memory = memory or Memory()
        self._seconds = seconds
        self._last_id = -1  # the highest number opened so far, by whichever side opens
        self._urgent: deque[bytes] = deque()  # frames of stream 0
        self._control: deque[bytes] = deque()  # frames of streams that are not data
        self._control_size = 0  # of both
        self._answers = 0  # bytes of them that answer the peer, since last none waited
        self._turns = Turns()
        #: There may be something to send; the handler has been told.
        self.pending = False
        self._blocked = False  # something waits for an acknowledgement
        self._farewell: bytes | None = None  # our GOAWAY, told again on each new carrier
        self._leaving = False  # the peer takes no further streams, or we open none
        self._accepted = MAX_STREAM_ID  # the last stream that the peer has worked on, it says
        self._ended = False
        self._outbox = Outbox(limits.resend_buffer, memory.resend)
        self._told = 0  # how many of the received frames the peer has been told
        self._bytes_untold = 0
        self._acknowledge_now = False
        self._budget = FLOOD_BUDGET
        memory.holders.add(self)
        self.streams: dict[int, Stream] = {}
        #: How often a stream had data but no credit.
        self.stalls = 0
        #: Numbered frames received.
        self.received = 0
        #: What is held for readers.
        self.holding = Holding(limits, memory)

    # ------------------------------------------------------------------ opening and leaving

    @property
    def available(self) -> bool:
        """Whether :meth:`open` would succeed now."""
        return (
            not self._leaving
            and not self._ended
            and len(self.streams) < self._limits.max_streams
            and self._control_size < MAX_CONTROL
            and self._last_id + 2 <= MAX_STREAM_ID
        )

    def open(
        self, head: RequestHead, to: Destination, handler: StreamHandler, *, complete: bool
    ) -> Stream:
        """Open a stream with a request head; ``complete`` if no body follows.

        Raises TunnelFull; LocalError where the head is larger than a frame may be.
        """
        if not self._opens:
            raise LocalError("this side opens no streams")
        if not self.available:
            raise TunnelFull
        number = self._last_id + 2
        frame = encode(FrameType.OPEN, FIN if complete else 0, number, encode_open(head, to))
        self._last_id = number
        stream = Stream(
            number,
            self,
            self._window(),
            outgoing=Phase.ENDED if complete else Phase.BODY,
            incoming=Phase.HEAD,
        )
        stream.handler = handler
        self.streams[number] = stream
        self._earn()
        self.send_frame(frame)
        return stream

    @property
    def worn(self) -> bool:
        """Whether stream numbers run out, so that another tunnel should take over."""
        return self._last_id > MAX_STREAM_ID - 2 * SPARE_IDS

    @property
    def settled(self) -> bool:
        """Whether no stream is open and the peer has got all that was sent."""
        return not self.streams and not self._outbox.size and not self._control

    @property
    def resent(self) -> int:
        """Bytes that were sent again after a carrier was lost."""
        return self._outbox.resent

    @property
    def unacknowledged(self) -> int:
        """Bytes that were sent and are kept until the peer acknowledges them."""
        return self._outbox.size

    @property
    def round_trip(self) -> float | None:
        """The least round trip lately, in seconds; None before the first."""
        return self._outbox.flight.round_trip

    def open_no_more(self) -> None:
        """From now on :meth:`open` fails; what is open goes on."""
        self._leaving = True

    def go_away(self, code: TunnelCode, detail: str = "") -> None:
        """Tell the peer that it should leave; a side that opens no streams refuses new ones."""
        payload = encode_goaway(max(self._last_id, 0), code, detail)
        self._farewell = encode(FrameType.GOAWAY, 0, 0, payload)
        self._send(self._farewell)

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; ``ponged`` brings the same eight bytes back."""
        self._send(encode(FrameType.PING, 0, 0, payload))

    def measured(self, round_trip: float) -> None:
        """A ping has measured the round trip, in seconds."""
        self._outbox.flight.measured(round_trip, self._seconds())

    def replenish(self) -> None:
        """Some time has passed: a few frames without content are forgiven."""
        self._budget = min(self._budget + 100, FLOOD_BUDGET)

    def end(self, code: StreamCode, detail: str) -> None:
        """The tunnel is over: every stream is reset, here and without a word to the peer."""
        if self._ended:
            return
        self._ended = True
        # What the peer has never heard of was not worked on: another tunnel may have it.
        unheard = set()
        if self._opens:
            for frame in self._control:
                kind, _, number, _ = next(decode(frame))
                if kind == FrameType.OPEN:
                    unheard.add(number)
        self._urgent.clear()
        self._control.clear()
        self._control_size = 0
        self._turns.clear()
        self._outbox.clear()
        for stream in list(self.streams.values()):
            try:
                if stream.id in unheard or stream.id > self._accepted:
                    stream.receive_reset(StreamCode.REFUSED, detail)
                else:
                    stream.receive_reset(code, detail)
            except Exception:  # noqa: BLE001 - the others must hear of it too
                self._handler.handler_failed(stream)
        self._check_empty()

    # ------------------------------------------------------------------ another carrier

    def resumable(self, received: int) -> bool:
        """Whether a peer that has got so many frames can be served with what is kept."""
        return not self._ended and self._outbox.acknowledged <= received <= self._outbox.sent

    def resume(self, received: int) -> None:
        """Go on with another carrier; the peer has got ``received`` frames in all.

        It has been told, or is told with the handshake, what :attr:`received` is here; nothing may
        come from the old carrier any more. Raises TunnelError unless :meth:`resumable`.
        """
        self._outbox.rewind(received, self._seconds())
        self._told = self.received
        self._bytes_untold = 0
        # Pongs for pings that nobody remembers, and the like.
        self._control_size -= sum(map(len, self._urgent))
        self._urgent.clear()
        self.pending = True  # whoever was told of output before has lost its carrier since
        if self._farewell is not None:
            self._send(self._farewell)
        self._handler.output_ready()

    # ------------------------------------------------------------------ bytes out

    def next_message(self) -> bytes:
        """Return the next message for the carrier, empty if there is nothing to send now.

        Unless ``pending`` afterwards, the one after it is empty.
        """
        outbox = self._outbox
        turns = self._turns
        urgent = self._urgent
        control = self._control
        parts: list[bytes] = []
        size = 0
        frames = 0  # of streams
        self._blocked = False
        while urgent and size < MESSAGE_TARGET:
            frame = urgent.popleft()
            parts.append(frame)
            size += len(frame)
        self._control_size -= size
        relieved: list[Stream] = []
        # What is sent again is kept already, and so goes without anything new. It may be as long as
        # a message was, and many pongs beside it would make it too long.
        again = outbox.next_again() if outbox.again and size < MESSAGE_TARGET // 2 else b""
        if again:
            parts.append(again)
        elif outbox.again or outbox.full:
            self._blocked = True
        else:
            while control and size < MESSAGE_TARGET:
                frame = control.popleft()
                parts.append(frame)
                size += len(frame)
                self._control_size -= len(frame)
                frames += 1
            if turns.others or turns.fresh:
                frames += self._take_data(size, parts, relieved)
        if self.received != self._told and (parts or self._acknowledgement_due):
            self._told = self.received
            self._bytes_untold = 0
            self._acknowledge_now = False
            parts.append(pack_header(FrameType.ACK, 0, 0, 8) + u64.pack(self._told))
        if not self._control_size:
            self._answers = 0
        message = b"".join(parts)
        if not message:
            self.pending = False
            return b""
        more = bool(turns.others or turns.fresh)
        self.pending = bool(more or urgent or control or outbox.again)
        if frames:
            # More was there, and it is the link that it waits for: not credit, not its source.
            limited = more and outbox.size * 2 >= outbox.flight.limit
            outbox.keep(message, frames, self._seconds(), limited)
        # Only now: a handler that goes on may write at once, and that must not meet a half-made
        # message.
        for stream in relieved:
            if not stream.closed:
                handler = stream.handler
                try:
                    handler.drained()
                except Exception:  # noqa: BLE001 - one handler's fault must not end the others
                    self._fail(stream, handler)
        return message

    def _take_data(self, size: int, parts: list[bytes], relieved: list[Stream]) -> int:
        """Fill up a message of ``size`` bytes with data; return the number of frames."""
        limit = self._outbox.flight.limit
        target = min(max(limit // 8, LEAST_MESSAGE), MESSAGE_TARGET)
        if self._outbox.size >= limit:
            self._blocked = True
            return 0
        frames = self._turns.fill(parts, size, target, relieved)
        self._budget = min(self._budget + frames * FLOOD_WORTH, FLOOD_BUDGET)
        return frames

    @property
    def _acknowledgement_due(self) -> bool:
        return (
            self._acknowledge_now
            or self.received - self._told >= ACK_FRAMES
            or self._bytes_untold >= ACK_BYTES
        )

    @property
    def untold(self) -> bool:
        """Whether frames came that the peer does not know of yet: :meth:`acknowledge` it soon."""
        return self.received != self._told

    def acknowledge(self) -> None:
        """Tell the peer what came, if it has not been told by then."""
        if self.received != self._told:
            self._acknowledge_now = True
            self._wake()

    def send_frame(self, frame: bytes) -> None:
        """Send a frame of a stream ahead of all data (for streams)."""
        if not self._ended:
            self._control.append(frame)
            self._control_size += len(frame)
            self._wake()

    def send_answer(self, frame: bytes) -> None:
        """The same with a frame that the peer can make us send as often as it likes."""
        self._answers += len(frame)
        self.send_frame(frame)

    def _send(self, frame: bytes) -> None:
        """Send a frame of the tunnel itself."""
        if not self._ended:
            self._urgent.append(frame)
            self._control_size += len(frame)
            self._wake()

    def _wake(self) -> None:
        if not self.pending:
            self.pending = True
            self._handler.output_ready()

    def schedule(self, stream: Stream, fresh: bool) -> None:
        """Put a stream into the round (for streams)."""
        self._turns.add(stream, fresh)
        self._wake()

    def _window(self) -> ReceiveWindow:
        return ReceiveWindow(WINDOW, self._limits.max_window, self._seconds())

    def forget(self, stream: Stream) -> None:
        """A stream is over (for streams)."""
        if self.streams.pop(stream.id, None) is not None:
            self.holding.over(stream, lingers=stream.complete and self._opens)

    def stalled(self) -> None:
        """A stream has data but no credit (for streams)."""
        self.stalls += 1

    def taken_late(self, stream: Stream, count: int) -> None:
        """A stream that is complete was holding these bytes still (for streams)."""
        self.holding.taken_late(stream, count)
        self._check_empty()

    def _check_empty(self) -> None:
        if self._ended and not self.holding.lingering:
            self._memory.holders.discard(self)

    def grant(self, window: ReceiveWindow, count: int) -> int:
        """Local sockets have taken bytes (for streams)."""
        return window.consumed(count, self._seconds(), self.round_trip, self.holding.promise)

    @property
    def buffered(self) -> int:
        """Bytes received that local sockets have not taken yet."""
        return self.holding.buffered

    # ------------------------------------------------------------------ bytes in

    def receive(self, message: bytes) -> None:
        """Take a message of the carrier. Raises TunnelError, after which the tunnel must end."""
        streams = self.streams
        for kind, flags, number, payload in decode(message):
            if self._ended:
                return
            if not number:
                self._receive_control(kind, payload)
                continue
            self.received += 1
            stream = streams.get(number)
            # A stream that ends lets go of it; should the handler fail, it is needed once more.
            handler = None if stream is None else stream.handler
            try:
                if kind == _DATA and stream is not None and payload:
                    if self._budget < FLOOD_BUDGET:
                        self._budget += FLOOD_WORTH
                    stream.receive_data(payload, flags & FIN != 0)
                else:
                    self._receive_frame(stream, kind, flags, number, payload)
            except StreamError as error:
                self._break(error)
            except ProtocolError:
                raise
            except Exception:  # noqa: BLE001 - one handler's fault must not end the others
                stream = stream or self.streams.get(number)
                if stream is not None:
                    self._fail(stream, handler)
        self._bytes_untold += len(message)
        if not self.pending and self.received != self._told and self._acknowledgement_due:
            self._wake()
        while self.holding.full:
            self.shed()
        self._memory.shed()
        if self._answers > MAX_CONTROL:
            raise TunnelError(TunnelCode.FLOODED, "asks for answers but does not take them")

    def _receive_frame(
        self, stream: Stream | None, kind: int, flags: int, number: int, payload: bytes
    ) -> None:
        if kind == _OPEN:
            self._receive_open(flags, number, payload)
        elif stream is None:
            self._receive_stray(kind, number)
        elif kind == _DATA:  # without a byte: see receive()
            if flags & FIN:
                self._earn()
            else:
                self._spend()
            stream.receive_data(payload, bool(flags & FIN))
        elif kind == _HEAD:
            if self._opens or flags & FIN:
                self._spend()
                stream.receive_head(payload, bool(flags & FIN))
            else:
                raise StreamError(number, StreamCode.PROTOCOL_ERROR, "a response to us")
        elif kind == FrameType.CREDIT:
            self._spend()
            stream.receive_credit(u32.unpack(payload)[0])
        elif kind == FrameType.RESET:
            self._spend()
            stream.receive_reset(*decode_reset(payload))
        else:
            self._spend()  # an unknown type: a later version's

    def _receive_open(self, flags: int, number: int, payload: bytes) -> None:
        if self._opens or not number & 1 or number <= self._last_id:
            raise TunnelError(TunnelCode.PROTOCOL_ERROR, f"OPEN of stream {number}")
        self._last_id = number
        if (
            self._farewell is not None
            or len(self.streams) >= self._limits.max_streams
            or self._control_size >= MAX_CONTROL
        ):
            # No flood: the peer cannot know of our limits. What bounds it are the answers.
            self._refuse(number, StreamCode.REFUSED, "no further streams")
            return
        try:
            head, to = decode_open(payload)
        except ValueError as error:
            raise StreamError(number, StreamCode.PROTOCOL_ERROR, f"OPEN: {error}") from error
        complete = bool(flags & FIN)
        self._earn()
        stream = Stream(
            number,
            self,
            self._window(),
            outgoing=Phase.HEAD,
            incoming=Phase.ENDED if complete else Phase.BODY,
        )
        self.streams[number] = stream
        handler = self._handler.opened(stream, head, to, complete)
        if not stream.closed:
            stream.handler = handler

    def _receive_stray(self, kind: int, number: int) -> None:
        """A frame of a stream that is over: on its way when we ended it. Others are errors."""
        if not number & 1 or number > self._last_id:
            raise TunnelError(TunnelCode.PROTOCOL_ERROR, f"stream {number} was never opened")
        if kind not in (FrameType.DATA, FrameType.HEAD):
            self._spend()

    def _receive_control(self, kind: int, payload: bytes) -> None:
        self._spend()
        if kind == FrameType.PING:
            answer = encode(FrameType.PONG, 0, 0, payload)
            self._answers += len(answer)
            self._send(answer)
        elif kind == FrameType.PONG:
            self._handler.ponged(payload)
        elif kind == FrameType.ACK:
            self._outbox.acknowledge(u64.unpack(payload)[0], self._seconds())
            if self._blocked:
                self._wake()
        elif kind == FrameType.GOAWAY:
            self._leaving = True
            last, code, detail = decode_goaway(payload)
            if self._opens:
                self._accepted = min(self._accepted, last)
            self._handler.going_away(last, code, detail)
        elif kind < FrameType.OPEN:
            raise TunnelError(TunnelCode.PROTOCOL_ERROR, "a handshake frame after the handshake")

    def _earn(self) -> None:
        if self._budget < FLOOD_BUDGET:
            self._budget += FLOOD_WORTH

    def _spend(self) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise TunnelError(TunnelCode.FLOODED, "more frames without content than anybody needs")

    def _break(self, error: StreamError) -> None:
        """The peer broke a rule on one stream: tell it, and whoever handles it here."""
        stream = self.streams.get(error.stream)
        self._refuse(error.stream, error.code, error.detail)
        if stream is not None:
            try:
                stream.receive_reset(error.code, error.detail)
            except Exception:  # noqa: BLE001 - as above
                self._handler.handler_failed(stream)

    def _refuse(self, number: int, code: StreamCode, detail: str) -> None:
        """Reset a stream by the peer's doing."""
        self.send_answer(encode(FrameType.RESET, 0, number, encode_reset(code, detail)))

    def shed(self) -> None:
        """Give up the stream that holds most for its reader."""
        slowest = self.holding.slowest(self.streams.values())
        detail = "its reader is slow, and memory used up"
        if not slowest.closed:
            self._break(StreamError(slowest.id, StreamCode.OVERLOADED, detail))
            return
        handler = slowest.handler
        self.taken_late(slowest, slowest.receiving.held)
        try:
            handler.reset(StreamCode.OVERLOADED, detail)
        except Exception:  # noqa: BLE001 - as above
            self._handler.handler_failed(slowest)

    def _fail(self, stream: Stream, handler: StreamHandler | None) -> None:
        """A stream's handler raised: end the stream on both sides, if it has not ended by then."""
        self._handler.handler_failed(stream)
        stream.reset(StreamCode.INTERNAL_ERROR)
        # It may have a client or an origin that still waits.
        if handler is not None:
            with suppress(Exception):
                handler.reset(StreamCode.INTERNAL_ERROR, "the handler failed")
