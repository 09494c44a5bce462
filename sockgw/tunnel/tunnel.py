"""A tunnel: a session on one carrier after the other, with its timers.

::

    CONNECTED ──carrier lost──▶ SUSPENDED ──resume-window over──▶ ENDED
        ▲                           │                               ▲
        └──────── resume ───────────┘             close, finished ──┘

When to write: at the end of a reactor's turn, all its frames in one message, because messages cost
by their number. Nothing waits for it: what is written within a turn is not sent before its end.

Liveness: every ``ping_interval`` seconds a ping goes out ahead of all data. If not one byte of
anything comes within ``ping_timeout`` seconds after it, the peer is dead. A busy link is never
taken for dead, since any byte counts; a silent one is noticed within interval and timeout.

A carrier that is lost, for whatever reason, suspends the streams; only a GOAWAY that says so, an
error of the protocol or the end of the resume window ends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sockgw.protocol.errors import StreamCode, TunnelCode, TunnelError
from sockgw.protocol.flight import ACK_DELAY
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.memory import Limits, Memory
from sockgw.protocol.payloads import Destination, u64
from sockgw.protocol.session import Session
from sockgw.protocol.streams import Stream, StreamHandler
from sockgw.tunnel.carrier import NOBODY, Carrier

__all__ = ["Opener", "Tunnel", "TunnelOwner"]


class Opener(Protocol):
    """Called for each stream that the peer opens; returns who handles it."""

    def __call__(
        self, tunnel: Tunnel, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler: ...


class _AtTurnEnd(Protocol):
    """Calls something once, when the reactor's turn ends; see :mod:`sockgw.reactor`."""

    def __call__(self, call: Callable[[], None], /) -> None: ...


class TunnelOwner(Protocol):
    """Who has a tunnel."""

    def suspended(self, tunnel: Tunnel, reason: str) -> None:
        """It has lost its carrier, and waits for :meth:`Tunnel.resume_on`."""

    def ended(self, tunnel: Tunnel, reason: str) -> None:
        """It is over; called once, before its streams are reset: whoever then asks for a new stream
        must not find this tunnel any more."""

    def told_to_leave(self, tunnel: Tunnel) -> None:
        """The peer wants no further streams here, and those that are open to end: move on."""


class Tunnel:
    """One end of an authenticated tunnel.

    ``opened`` handles the streams that the peer opens; without it, this side is the one that opens.
    ``resume_window`` is in seconds; with 0 the tunnel ends with its carrier.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        owner: TunnelOwner,
        *,
        identifier: str,
        ping_interval: float,
        ping_timeout: float,
        resume_window: float = 0.0,
        limits: Limits | None = None,
        memory: Memory | None = None,
        opened: Opener | None = None,
    ) -> None:
        self._clock = clock
        self._owner = owner
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._resume_window = resume_window
        self._on_opened = opened
        self._carrier: Carrier | None = None
        self._writable = False
        self._ended = False
        self._replaced = False  # the peer has been asked for another tunnel
        self._finishing = ""  # why it ends with its last stream
        self._confirmed = opened is not None  # the peer knows of this tunnel
        self._flushing = False
        self._blamed = False  # the peer has said that it ends the tunnel, and the log has it
        # The services' reactor has a cheaper way to the end of a turn than a timer.
        self._at_turn_end: _AtTurnEnd | None = getattr(clock, "at_turn_end", None)
        self._flush_due = False
        self._flush_call: IDelayedCall | None = None
        self._acknowledge_call: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None  # ping, judgement, or the end of the window
        self._heard = True  # since the last ping
        self._pinged = clock.seconds()
        self._ping_number = 0
        self.identifier = identifier
        self.peer_address = carrier.peer_address
        self.session = Session(
            self, opens=opened is None, limits=limits, memory=memory, seconds=clock.seconds
        )
        #: Bytes of messages, each way.
        self.bytes_in = 0
        self.bytes_out = 0
        #: The last measured round trip in seconds; None before the first.
        self.round_trip: float | None = None
        #: The peer takes no further streams.
        self.leaving = False
        #: It has no carrier now, or had none at its end; its streams wait for the next one.
        self.suspended = False
        self._adopt(carrier)

    # ------------------------------------------------------------------ use

    @property
    def available(self) -> bool:
        """Whether a stream can be opened now."""
        return self._carrier is not None and self.session.available

    def open(
        self, head: RequestHead, to: Destination, handler: StreamHandler, *, complete: bool
    ) -> Stream:
        """Open a stream; see :meth:`sockgw.protocol.session.Session.open`."""
        stream = self.session.open(head, to, handler, complete=complete)
        if self.session.worn and not self._replaced:
            self._replaced = True
            self.leave("the numbers of its streams run out")
        return stream

    def leave(self, reason: str) -> None:
        """Tell the peer to move on to another tunnel; the streams that are open go on."""
        if not self._ended:
            self.session.go_away(TunnelCode.NO_ERROR, reason)

    def finish(self, reason: str) -> None:
        """Tell the peer to move on, open no further streams, and end with the last one."""
        if not self._ended and not self._finishing:
            self._finishing = reason
            self.session.open_no_more()
            self.session.go_away(TunnelCode.NO_ERROR, reason)
            self._clock.callLater(0, self._check_finished)

    def close(self, code: TunnelCode, reason: str) -> None:
        """Tell the peer that the tunnel is over, and end it at once."""
        if self._ended:
            return
        carrier = self._carrier
        if carrier is not None:
            self.session.go_away(code, reason)
            self._flush()
        self._end(reason)
        if carrier is not None:
            carrier.close()

    # ------------------------------------------------------------------ carriers

    def resume_on(self, carrier: Carrier, received: int) -> None:
        """Go on with another carrier; the peer has got ``received`` frames in all.

        An older carrier that is still there is dropped: whoever comes later is the one that lives.
        Raises TunnelError unless ``session.resumable(received)``.
        """
        self.detach()
        self._adopt(carrier)
        self.session.resume(received)

    def detach(self) -> None:
        """Drop the carrier, if there is one: nothing that it still brings counts any more."""
        carrier = self._release()
        if carrier is not None:
            carrier.abort()

    def _release(self) -> Carrier | None:
        """Listen to the carrier no longer, and have no timer; return the carrier."""
        carrier, self._carrier = self._carrier, None
        self._writable = False
        for call in (self._timer, self._flush_call, self._acknowledge_call):
            if call is not None and call.active():
                call.cancel()
        if self._flush_call is not None:
            self._flush_due = False
        self._timer = self._flush_call = self._acknowledge_call = None
        if carrier is not None:
            carrier.listener = NOBODY
        return carrier

    def _adopt(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._writable = True
        self.suspended = False
        self._heard = True
        self.peer_address = carrier.peer_address
        carrier.allow_large()
        carrier.listener = self
        self._timer = self._clock.callLater(0, self._ping)

    def _lose(self, reason: str) -> None:
        """The carrier is lost."""
        if self._ended:
            return
        self.detach()
        self.suspended = True
        # A peer that has never been heard of here does not know that there is anything to resume.
        if not self._resume_window or not self._confirmed:
            self._end(reason)
            return
        self._timer = self._clock.callLater(
            self._resume_window, self._end, f"not resumed in time after: {reason}"
        )
        self._owner.suspended(self, reason)

    # ------------------------------------------------------------------ the carrier's listener

    def heard(self) -> None:
        self._heard = True

    def message_received(self, message: bytes) -> None:
        if self._ended:
            return
        self._heard = self._confirmed = True
        self.bytes_in += len(message)
        session = self.session
        try:
            session.receive(message)
        except TunnelError as error:
            self._log.error(
                "inner layer {identifier}: the peer {address} broke the protocol: {detail}"
                if self._on_opened is None
                else "the outer layer broke the protocol: {detail}",
                identifier=self.identifier,
                address=self.peer_address,
                detail=error.detail,
            )
            self.close(error.code, error.detail)
            return
        if session.untold and self._acknowledge_call is None and self._carrier is not None:
            self._acknowledge_call = self._clock.callLater(ACK_DELAY, self._acknowledge)
        if self._finishing:
            self._check_finished()

    def pause(self) -> None:
        self._writable = False

    def resume(self) -> None:
        self._writable = True
        self._flush()

    def closed(self, reason: str, refused: bool) -> None:
        self._lose(reason)

    # ------------------------------------------------------------------ the session's handler

    def output_ready(self) -> None:
        # While flushing, that goes on.
        if self._flush_due or self._flushing or self._carrier is None:
            return
        self._flush_due = True
        if self._at_turn_end is not None:
            self._at_turn_end(self._flush_later)
        else:
            self._flush_call = self._clock.callLater(0, self._flush_later)

    def opened(
        self, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler:
        assert self._on_opened is not None  # noqa: S101 - the session opens or is opened to
        return self._on_opened(self, stream, head, to, complete)

    def ponged(self, payload: bytes) -> None:
        if u64.unpack(payload)[0] == self._ping_number:
            self.round_trip = self._clock.seconds() - self._pinged
            self.session.measured(self.round_trip)

    def going_away(self, last_stream: int, code: TunnelCode, detail: str) -> None:
        self.leaving = True
        if code is TunnelCode.NO_ERROR:
            self._owner.told_to_leave(self)
            return
        if code is not TunnelCode.CLOSED and not self._blamed:
            self._blamed = True
            self._log.error(
                "tunnel of inner layer {identifier}: the peer ends it: {code} {detail}",
                identifier=self.identifier,
                code=code.name,
                detail=detail,
            )
        carrier = self._carrier
        self._end(detail or code.name.lower().replace("_", " "))
        if carrier is not None:
            carrier.close()

    def handler_failed(self, stream: Stream) -> None:
        self._log.failure(
            "stream {stream} of {identifier}", stream=stream.id, identifier=self.identifier
        )

    # ------------------------------------------------------------------ inside

    def _flush_later(self) -> None:
        self._flush_due = False
        self._flush_call = None
        self._flush()

    def _flush(self) -> None:
        if self._flushing:
            # A handler that was told to go on has the tunnel closed: a message made now would
            # overtake the one that is just being made.
            return
        self._flushing = True
        session = self.session
        try:
            while self._writable and session.pending:  # send() may pause us from within
                message = session.next_message()
                # A handler that was told to go on may have ended all this.
                if not message or self._carrier is None:
                    return
                self.bytes_out += len(message)
                self._carrier.send(message)
        finally:
            self._flushing = False

    def _acknowledge(self) -> None:
        self._acknowledge_call = None
        self.session.acknowledge()

    def _ping(self) -> None:
        self._pinged = self._clock.seconds()
        self._heard = False
        self._ping_number += 1
        self.session.replenish()
        self.session.ping(u64.pack(self._ping_number))
        self._timer = self._clock.callLater(self._ping_timeout, self._judge)

    def _judge(self) -> None:
        if not self._heard:
            self._lose(f"no sign of life for {self._ping_timeout:g} s after a ping")
            return
        rest = max(self._ping_interval - self._ping_timeout, 0)
        self._timer = self._clock.callLater(rest, self._ping)

    def _check_finished(self) -> None:
        over = self.session.settled or (self.suspended and not self.session.streams)
        if over and not self._ended:
            self.close(TunnelCode.CLOSED, self._finishing)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._release()
        self._owner.ended(self, reason)
        self.session.end(StreamCode.TUNNEL_LOST, reason)
