"""One stream: what may come and go in which order, its credit, and what waits to be sent.

Each direction walks through three phases::

    outer to inner:           OPEN ─▶ BODY ─▶ ENDED
    inner to outer:   HEAD ─▶ HEAD ─▶ BODY ─▶ ENDED
                      └─ interim (1xx)

OPEN carries the request head, so the direction that opens starts in BODY. 101 is a final head like
those from 200 on: what follows are the bytes of another protocol. FIN on OPEN, HEAD or DATA, or a
HEAD with trailers, leads to ENDED. A stream is over when both directions have ended, or
when either side resets it.

Data waits here, in the stream that it belongs to, until there is credit and the carrier takes
more. Whoever writes looks at :attr:`Stream.congested` afterwards and stops its source until
``drained`` is called: advice, so a stream holds one high-water mark and one read of its source.
"""

from enum import Enum, auto
from typing import Protocol

from sockgw.protocol.errors import (
    LocalError,
    StreamCode,
    StreamError,
    TunnelCode,
    TunnelError,
)
from sockgw.protocol.frames import FIN, MAX_DATA, FrameType, encode, pack_header
from sockgw.protocol.heads import Headers, ResponseHead
from sockgw.protocol.memory import Pool
from sockgw.protocol.payloads import (
    decode_head,
    encode_reset,
    encode_response,
    encode_trailers,
    u32,
)
from sockgw.protocol.windows import (
    CreditOverflow,
    CreditOverrun,
    ReceiveWindow,
    SendWindow,
)

__all__ = ["Phase", "Stream", "StreamHandler"]

HIGH_WATER = 65_536  # bytes waiting; above it the source should pause. One read of a socket.
# Bytes as which a frame of data counts at least, while it waits for a local socket: what an object
# takes that holds two bytes.
LEAST_COST = 128
LOW_WATER = 32_768  # bytes waiting; at or below it the source goes on before the queue runs dry


class Phase(Enum):
    """How far one direction of a stream has come."""

    HEAD = auto()
    BODY = auto()
    ENDED = auto()


class StreamHandler(Protocol):
    """What a stream tells its user. Nothing is called after ``reset`` or after both ends.

    But for one ``reset`` of a stream that is complete: where bytes of it are still held, and memory
    is needed.
    """

    def head_received(self, head: ResponseHead) -> None:
        """An interim or the final response head has come (outer layer only)."""

    def data_received(self, data: bytes) -> None:
        """Bytes of the body have come. Call ``stream.consumed`` once they are out of the house."""

    def ended(self, trailers: Headers) -> None:
        """The peer's direction is complete."""

    def reset(self, code: StreamCode, detail: str) -> None:
        """The stream has ended before its time: by the peer, by an error, or with its tunnel."""

    def drained(self) -> None:
        """After ``congested`` was true: there is room again."""


class _Nobody:
    """Handles a stream of which nothing more can come."""

    def head_received(self, head: ResponseHead) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        pass

    def ended(self, trailers: Headers) -> None:
        pass

    def reset(self, code: StreamCode, detail: str) -> None:
        pass

    def drained(self) -> None:
        pass


_NOBODY: StreamHandler = _Nobody()


class Books(Protocol):
    """Where a stream's memory is accounted for. Added to without a call: each frame comes by."""

    buffered: int  #: bytes that the tunnel holds for local sockets
    pool: Pool  #: what all tunnels of the process hold


class Link(Protocol):
    """What a stream needs from its session."""

    @property
    def holding(self) -> Books:
        """The books of its tunnel."""

    def send_frame(self, frame: bytes) -> None:
        """Send a frame of a stream ahead of all data."""

    def send_answer(self, frame: bytes) -> None:
        """The same with a frame that the peer can make us send as often as it likes."""

    def schedule(self, stream: "Stream", fresh: bool) -> None:
        """The stream has something to send, and may; ``fresh``: it had nothing before."""

    def forget(self, stream: "Stream") -> None:
        """The stream is over."""

    def stalled(self) -> None:
        """A stream has data but no credit."""

    def taken_late(self, stream: "Stream", count: int) -> None:
        """A stream that is complete was holding these bytes still."""

    def grant(self, window: ReceiveWindow, count: int) -> int:
        """Local sockets have taken bytes; return how much credit to give."""


class Stream:
    """One exchange in a tunnel."""

    __slots__ = (
        "_congested",
        "_end",
        "_incoming",
        "_link",
        "_offset",
        "_outgoing",
        "_queue",
        "_receive",
        "_send",
        "_trailers",
        "closed",
        "complete",
        "handler",
        "id",
        "queued",
        "scheduled",
    )

    def __init__(
        self, number: int, link: Link, receive: ReceiveWindow, *, outgoing: Phase, incoming: Phase
    ) -> None:
        self.id = number
        self._link = link
        self._outgoing = outgoing
        self._incoming = incoming
        self._send = SendWindow()
        self._receive = receive
        self._queue: list[bytes] = []  # seldom long; a deque takes 760 bytes when it is empty
        self._offset = 0  # bytes of the first chunk that are sent already
        self._end = False  # our direction ends behind what is queued
        self._trailers = b""  # the frame, if there are any
        self._congested = False
        self.handler: StreamHandler = _NOBODY
        #: Bytes that wait to be sent.
        self.queued = 0
        #: Whether it waits for its turn; the mark of who gives the turns.
        self.scheduled = False
        #: Over: reset, or ended in both directions. Calls do nothing from then on.
        self.closed = False
        #: Over, and not before its time.
        self.complete = False

    # ------------------------------------------------------------------ what we send

    def respond(self, head: ResponseHead, *, end: bool = False) -> None:
        """Send an interim or the final response head; with ``end``, no body follows.

        Raises LocalError out of order, or where the head is larger than a frame may be.
        """
        if self.closed:
            return
        if self._outgoing is not Phase.HEAD:
            raise LocalError("a second response head")
        frame = encode(FrameType.HEAD, FIN if end else 0, self.id, encode_response(head))
        if not head.interim:
            self._outgoing = Phase.BODY
        self._link.send_frame(frame)
        if end:
            self._outgoing = Phase.ENDED
            self._sent_everything()

    def write(self, data: bytes) -> None:
        """Queue bytes of the body. Look at :attr:`congested` afterwards."""
        if self.closed or not data:
            return
        if self._outgoing is not Phase.BODY:
            raise LocalError("data outside of a body")
        self._queue.append(data)
        self.queued += len(data)
        if not self.scheduled:
            if self._send.available:
                self._link.schedule(self, True)
            else:
                self._link.stalled()

    def end(self, trailers: Headers | None = None) -> None:
        """Queue the end of our direction, with trailers where there are any.

        Raises LocalError, and does nothing, where they are larger than a frame may be.
        """
        if self.closed:
            return
        if self._outgoing is not Phase.BODY:
            raise LocalError("an end outside of a body")
        if trailers:
            self._trailers = encode(FrameType.HEAD, FIN, self.id, encode_trailers(trailers))
        self._outgoing = Phase.ENDED
        self._end = True
        if not self.scheduled and (self._send.available or not self.queued):
            self._link.schedule(self, True)

    def reset(self, code: StreamCode, detail: str = "") -> None:
        """End the stream at once in both directions; what is queued is dropped."""
        if self.closed:
            return
        self._close()
        self._link.send_frame(encode(FrameType.RESET, 0, self.id, encode_reset(code, detail)))

    @property
    def congested(self) -> bool:
        """Whether so much waits that the source should pause; ``drained`` follows."""
        if self.queued > HIGH_WATER and not self.closed:
            self._congested = True
        return self._congested

    def consumed(self, count: int) -> None:
        """The local socket has taken so many bytes of what was received: the peer gets credit.

        On the side that opens, also after ``ended``: until then they count as held.
        """
        if self.closed:
            if self.complete:
                self._link.taken_late(self, count)
            return
        receive = self._receive
        freed = count
        if receive.surcharge and count >= receive.held:
            freed += receive.surcharge
            receive.surcharge = 0
        books = self._link.holding
        books.buffered -= freed
        books.pool.used -= freed
        if self._incoming is Phase.ENDED:
            receive.held -= count
            return
        grant = self._link.grant(receive, count)
        if grant:
            frame = pack_header(FrameType.CREDIT, 0, self.id, 4) + u32.pack(grant)
            self._link.send_answer(frame)

    # ------------------------------------------------------------------ what the session sends

    @property
    def sendable(self) -> bool:
        """Whether a frame could be made now."""
        return self._send.available > 0 if self.queued else self._end

    def take_frame(self, limit: int, parts: list[bytes]) -> int:
        """Append the next frame of at most ``limit`` payload bytes to ``parts``; return its size.

        Only for a stream that is sendable.
        """
        if not self.queued and self._trailers:
            frame, self._trailers = self._trailers, b""
            parts.append(frame)
            self._sent_everything()
            return len(frame)
        size = min(limit, self.queued, self._send.available, MAX_DATA)
        self._send.take(size)
        self.queued -= size
        last = self._end and not self.queued and not self._trailers
        parts.append(pack_header(FrameType.DATA, FIN if last else 0, self.id, size))
        queue = self._queue
        missing = size
        sent = 0  # chunks
        while missing:
            chunk = queue[sent]
            offset = self._offset
            length = len(chunk) - offset
            if length <= missing:
                sent += 1
                self._offset = 0
                missing -= length
                parts.append(chunk[offset:] if offset else chunk)
            else:
                parts.append(chunk[offset : offset + missing])
                self._offset = offset + missing
                missing = 0
        del queue[:sent]
        if last:
            self._sent_everything()
        elif self.queued and not self._send.available:
            self._link.stalled()
        return size + 9

    def relieved(self) -> bool:
        """Whether the source may go on; true once for each time that it was told to pause."""
        if self._congested and self.queued <= LOW_WATER:
            self._congested = False
            return True
        return False

    def _sent_everything(self) -> None:
        self._end = False
        if self._incoming is Phase.ENDED:
            self.complete = True
            self._close()

    # ------------------------------------------------------------------ what the peer sends

    def receive_data(self, payload: bytes, end: bool) -> None:
        """DATA has come. Raises StreamError; TunnelError where it is more than was granted."""
        if self._incoming is not Phase.BODY:
            raise StreamError(self.id, StreamCode.PROTOCOL_ERROR, "DATA outside of a body")
        if payload:
            try:
                self._receive.received(len(payload))
            except CreditOverrun as error:
                raise self._senseless_credit(error) from error
            cost = len(payload)
            if cost < LEAST_COST:
                self._receive.surcharge += LEAST_COST - cost
                cost = LEAST_COST
            books = self._link.holding
            books.buffered += cost
            books.pool.used += cost
            self.handler.data_received(payload)
        if end and not self.closed:
            self._received_everything([])

    def receive_head(self, payload: bytes, end: bool) -> None:
        """HEAD has come. Raises StreamError."""
        try:
            head = decode_head(payload)
        except ValueError as error:
            raise StreamError(self.id, StreamCode.PROTOCOL_ERROR, f"HEAD: {error}") from error
        # An interim head never ends a direction, trailers always do.
        if isinstance(head, list):
            if self._incoming is not Phase.BODY or not end:
                raise self._out_of_order("TRAILERS")
            self._received_everything(head)
            return
        interim = head.interim
        if self._incoming is not Phase.HEAD or (interim and end):
            raise self._out_of_order("INTERIM" if interim else "RESPONSE")
        if not interim:
            self._incoming = Phase.BODY
        self.handler.head_received(head)
        if end and not self.closed:
            self._received_everything([])

    def _out_of_order(self, what: str) -> StreamError:
        return StreamError(self.id, StreamCode.PROTOCOL_ERROR, f"{what} out of order")

    def receive_credit(self, count: int) -> None:
        """CREDIT has come. Raises TunnelError."""
        try:
            self._send.grant(count)
        except CreditOverflow as error:
            raise self._senseless_credit(error) from error
        if self.queued and not self.scheduled:
            self._link.schedule(self, False)

    def _senseless_credit(self, error: ValueError) -> TunnelError:
        """Who does not count as we do cannot be held to any bound: it is cut off."""
        return TunnelError(TunnelCode.FLOW_CONTROL_ERROR, f"stream {self.id}: {error}")

    def receive_reset(self, code: StreamCode, detail: str) -> None:
        """RESET has come, or the tunnel has ended, or the peer broke a rule."""
        if not self.closed:
            handler = self.handler
            self._close()
            handler.reset(code, detail)

    def _received_everything(self, trailers: Headers) -> None:
        handler = self.handler
        self._incoming = Phase.ENDED
        if self._outgoing is Phase.ENDED and not self._end:
            self.complete = True
            self._close()
        handler.ended(trailers)

    @property
    def receiving(self) -> ReceiveWindow:
        """What the peer may send, and what of it is held here."""
        return self._receive

    def _close(self) -> None:
        self.closed = True
        self._congested = False
        self._queue.clear()
        self.queued = 0
        self._end = False
        self._link.forget(self)
        # It knows the stream: the two would be left to the garbage collector.
        if not self._receive.held:
            self.handler = _NOBODY

    def let_go(self) -> None:
        """What was still held of a stream that is complete has been taken: nothing more comes."""
        self.handler = _NOBODY
