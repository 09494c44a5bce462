"""The session: many streams over one carrier, without I/O.

Bytes in: :meth:`Session.receive` takes a message of the carrier and calls handlers. Bytes out:
``output_ready`` says that there is something, :meth:`Session.next_message` makes the next message
whenever the carrier can take one. No sockets, no clocks; both ends are the same class, and the one
that ``opens`` gives out the stream numbers (odd ones; even ones are reserved).

What goes out, in this order: frames that are not data (they are few, small, and others wait for
them), then data of the streams that have some and credit, in turn: frames of 64 KiB when one
stream is alone, of 16 KiB when several compete. A message ends at 64 KiB, so that the next small
answer stands behind that much and no more.

Frames of streams are numbered, in the order in which they leave, by both sides for themselves;
ACK names how many came. Nothing is sent again yet; the numbers are on the wire from the start.

Rejected: a window for the whole tunnel beside those of the streams. It would let one slow reader
use up what belongs to all, which is the stall that users of other systems report.
"""

from collections import deque
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
    MAX_DATA,
    MAX_STREAM_ID,
    FrameType,
    decode,
    encode,
    pack_header,
)
from sockgw.protocol.heads import RequestHead
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
from sockgw.protocol.windows import WINDOW

__all__ = ["Session", "SessionHandler", "TunnelFull"]

MESSAGE_TARGET = 65_536  # bytes; a message is closed once it holds so many
SHARED_FRAME = 16_384  # bytes of DATA in a frame while several streams compete

ACK_FRAMES = 64  # numbered frames received after which an ACK leaves by itself
ACK_BYTES = 262_144  # the same in bytes of messages; before that it rides along with other frames

MAX_CONTROL = 1_048_576  # bytes of frames other than data that wait for the carrier

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
        max_streams: int,
        window: int = WINDOW,
    ) -> None:
        self._handler = handler
        self._opens = opens
        self._max_streams = max_streams
        self._window = window
        self._last_id = -1  # the highest number opened so far, by whichever side opens
        self._control: deque[bytes] = deque()
        self._control_size = 0
        # Beyond it only frames that answer the peer's own can pile up.
        self._most_control = MAX_CONTROL * 2 if opens else MAX_CONTROL
        self._ready: deque[Stream] = deque()
        self._woken = False
        self._leaving = False
        self._ended = False
        self._sent = 0  # numbered frames sent
        self._acknowledged = 0  # how many of them the peer has said it got
        self._received = 0  # numbered frames received
        self._told = 0  # how many of them the peer has been told
        self._bytes_untold = 0
        self._budget = FLOOD_BUDGET
        self.streams: dict[int, Stream] = {}
        #: How often a stream had data but no credit.
        self.stalls = 0

    # ------------------------------------------------------------------ opening and leaving

    @property
    def available(self) -> bool:
        """Whether :meth:`open` would succeed now."""
        return (
            not self._leaving
            and not self._ended
            and len(self.streams) < self._max_streams
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
            self._window,
            outgoing=Phase.ENDED if complete else Phase.BODY,
            incoming=Phase.HEAD,
        )
        stream.handler = handler
        self.streams[number] = stream
        self.send_frame(frame)
        return stream

    def go_away(self, code: TunnelCode, detail: str = "") -> None:
        """Tell the peer that no further streams are accepted."""
        if not self._leaving:
            self._leaving = True
            payload = encode_goaway(max(self._last_id, 0), code, detail)
            self._send(encode(FrameType.GOAWAY, 0, 0, payload))

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; ``ponged`` brings the same eight bytes back."""
        self._send(encode(FrameType.PING, 0, 0, payload))

    def replenish(self) -> None:
        """Some time has passed: a few frames without content are forgiven."""
        self._budget = min(self._budget + 100, FLOOD_BUDGET)

    def end(self, code: StreamCode, detail: str) -> None:
        """The tunnel is over: every stream is reset, here and without a word to the peer."""
        if self._ended:
            return
        self._ended = True
        self._control.clear()
        self._ready.clear()
        for stream in list(self.streams.values()):
            try:
                stream.receive_reset(code, detail)
            except Exception:  # noqa: BLE001 - the others must hear of it too
                self._handler.handler_failed(stream)
        self.streams.clear()

    # ------------------------------------------------------------------ bytes out

    def next_message(self) -> bytes:
        """Return the next message for the carrier, empty if there is nothing to send."""
        parts: list[bytes] = []
        size = 0
        control = self._control
        while control and size < MESSAGE_TARGET:
            frame = control.popleft()
            parts.append(frame)
            size += len(frame)
        self._control_size -= size
        relieved: list[Stream] = []
        ready = self._ready
        while ready and size < MESSAGE_TARGET:
            stream = ready.popleft()
            if stream.closed or not stream.sendable:
                stream.scheduled = False
                continue
            size += stream.take_frame(SHARED_FRAME if ready else MAX_DATA, parts)
            self._sent += 1
            self._earn()
            if stream.sendable:
                ready.append(stream)
            else:
                stream.scheduled = False
            if stream.relieved():
                relieved.append(stream)
        if self._received != self._told and (
            parts or self._received - self._told >= ACK_FRAMES or self._bytes_untold >= ACK_BYTES
        ):
            self._told = self._received
            self._bytes_untold = 0
            parts.append(pack_header(FrameType.ACK, 0, 0, 8) + u64.pack(self._told))
        if not parts:
            self._woken = False
            return b""
        # Only now: a handler that goes on may write at once, and that must not meet a half-made
        # message.
        for stream in relieved:
            if not stream.closed:
                try:
                    stream.handler.drained()
                except Exception:  # noqa: BLE001 - one handler's fault must not end the others
                    self._fail(stream)
        return b"".join(parts)

    def send_frame(self, frame: bytes) -> None:
        """Send a frame of a stream ahead of all data (for streams)."""
        self._sent += 1
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        if self._ended:
            return
        self._control.append(frame)
        self._control_size += len(frame)
        if not self._woken:
            self._woken = True
            self._handler.output_ready()

    def schedule(self, stream: Stream) -> None:
        """Put a stream into the round (for streams)."""
        stream.scheduled = True
        self._ready.append(stream)
        if not self._woken:
            self._woken = True
            self._handler.output_ready()

    def forget(self, stream: Stream) -> None:
        """A stream is over (for streams)."""
        self.streams.pop(stream.id, None)

    def stalled(self) -> None:
        """A stream has data but no credit (for streams)."""
        self.stalls += 1

    # ------------------------------------------------------------------ bytes in

    def receive(self, message: bytes) -> None:
        """Take a message of the carrier. Raises TunnelError, after which the tunnel must end."""
        for kind, flags, number, payload in decode(message):
            if self._ended:
                return
            if not number:
                self._receive_control(kind, payload)
                continue
            self._received += 1
            stream = self.streams.get(number)
            try:
                self._receive_frame(stream, kind, flags, number, payload)
            except StreamError as error:
                self._break(error)
            except ProtocolError:
                raise
            except Exception:  # noqa: BLE001 - one handler's fault must not end the others
                stream = stream or self.streams.get(number)
                if stream is not None:
                    self._fail(stream)
        self._bytes_untold += len(message)
        if not self._woken and (
            self._received - self._told >= ACK_FRAMES or self._bytes_untold >= ACK_BYTES
        ):
            self._woken = True
            self._handler.output_ready()
        if self._control_size > self._most_control:
            raise TunnelError(TunnelCode.FLOODED, "asks for answers but does not take them")

    def _receive_frame(
        self, stream: Stream | None, kind: int, flags: int, number: int, payload: bytes
    ) -> None:
        if kind == FrameType.OPEN:
            self._receive_open(flags, number, payload)
        elif stream is None:
            self._receive_stray(kind, number)
        elif kind == FrameType.DATA:
            if payload or flags & FIN:
                self._earn()
            else:
                self._spend()
            stream.receive_data(payload, bool(flags & FIN))
        elif kind == FrameType.HEAD:
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
        if self._leaving or len(self.streams) >= self._max_streams:
            self._spend()
            reason = encode_reset(StreamCode.REFUSED, "no further streams")
            self.send_frame(encode(FrameType.RESET, 0, number, reason))
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
            self._window,
            outgoing=Phase.HEAD,
            incoming=Phase.ENDED if complete else Phase.BODY,
        )
        self.streams[number] = stream
        stream.handler = self._handler.opened(stream, head, to, complete)

    def _receive_stray(self, kind: int, number: int) -> None:
        """A frame of a stream that is over: on its way when we ended it. Others are errors."""
        if not number & 1 or number > self._last_id:
            raise TunnelError(TunnelCode.PROTOCOL_ERROR, f"stream {number} was never opened")
        if kind not in (FrameType.DATA, FrameType.HEAD):
            self._spend()

    def _receive_control(self, kind: int, payload: bytes) -> None:
        self._spend()
        if kind == FrameType.PING:
            self._send(encode(FrameType.PONG, 0, 0, payload))
        elif kind == FrameType.PONG:
            self._handler.ponged(payload)
        elif kind == FrameType.ACK:
            (count,) = u64.unpack(payload)
            if not self._acknowledged <= count <= self._sent:
                raise TunnelError(TunnelCode.PROTOCOL_ERROR, f"ACK of {count} frames")
            self._acknowledged = count
        elif kind == FrameType.GOAWAY:
            self._leaving = True
            self._handler.going_away(*decode_goaway(payload))
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
        reason = encode_reset(error.code, error.detail)
        self.send_frame(encode(FrameType.RESET, 0, error.stream, reason))
        if stream is not None:
            try:
                stream.receive_reset(error.code, error.detail)
            except Exception:  # noqa: BLE001 - as above
                self._handler.handler_failed(stream)

    def _fail(self, stream: Stream) -> None:
        """A stream's handler raised: end the stream on both sides, if it has not ended by then."""
        self._handler.handler_failed(stream)
        stream.reset(StreamCode.INTERNAL_ERROR)
        # It may have a client or an origin that still waits.
        with suppress(Exception):
            stream.handler.reset(StreamCode.INTERNAL_ERROR, "the handler failed")
