"""A tunnel: a session on a carrier, with its timers.

When to write: frames of one reactor turn leave in one message, because messages cost by their
number; only when a single stream is there does it leave at once (:meth:`Tunnel.hurry`), because
then nothing could share the message and the turn would be waited for in vain.

Liveness: every ``ping_interval`` seconds a ping goes out ahead of all data. If not one byte of
anything comes within ``ping_timeout`` seconds after it, the peer is dead. A busy link is never
taken for dead, since any byte counts; a silent one is noticed within interval and timeout.
"""

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sockgw.protocol.errors import StreamCode, TunnelCode, TunnelError
from sockgw.protocol.heads import RequestHead
from sockgw.protocol.payloads import Destination, u64
from sockgw.protocol.session import Session
from sockgw.protocol.streams import Stream, StreamHandler
from sockgw.tunnel.carrier import Carrier

__all__ = ["Opener", "Tunnel"]


class Opener(Protocol):
    """Called for each stream that the peer opens; returns who handles it."""

    def __call__(
        self, tunnel: "Tunnel", stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler: ...


class Tunnel:
    """One end of an authenticated tunnel.

    ``ended`` is called once with the tunnel and the reason, before its streams are reset: whoever
    then asks for a new stream must not find this tunnel any more.
    ``opened`` handles the streams that the peer opens; without it, this side is the one that opens.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        carrier: Carrier,
        *,
        identifier: str,
        max_streams: int,
        ping_interval: float,
        ping_timeout: float,
        ended: Callable[["Tunnel", str], None],
        opened: Opener | None = None,
    ) -> None:
        self._clock = clock
        self._carrier = carrier
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._on_ended = ended
        self._on_opened = opened
        self._writable = True
        self._ended = False
        self._flushing = False
        self._blamed = False  # the peer has said that it ends the tunnel, and the log has it
        self._flush_call: IDelayedCall | None = None
        self._heard = self._pinged = clock.seconds()
        self._ping_number = 0
        self.identifier = identifier
        self.peer_address = carrier.peer_address
        self.session = Session(self, opens=opened is None, max_streams=max_streams)
        #: Bytes of messages, each way.
        self.bytes_in = 0
        self.bytes_out = 0
        #: The last measured round trip in seconds; None before the first.
        self.round_trip: float | None = None
        #: The peer takes no further streams.
        self.leaving = False
        #: It has no carrier at the moment; its streams wait for the next one.
        self.suspended = False
        carrier.allow_large()
        carrier.listener = self
        self._timer = clock.callLater(0, self._ping)

    # ------------------------------------------------------------------ use

    @property
    def available(self) -> bool:
        """Whether a stream can be opened now."""
        return self.session.available

    def open(
        self, head: RequestHead, to: Destination, handler: StreamHandler, *, complete: bool
    ) -> Stream:
        """Open a stream; see :meth:`sockgw.protocol.session.Session.open`."""
        return self.session.open(head, to, handler, complete=complete)

    def hurry(self) -> None:
        """Send what there is at once if there is one stream at most. Call it when an event from a
        socket has been dealt with."""
        if len(self.session.streams) <= 1 and self._flush_call is not None:
            self._flush()

    def leave(self, reason: str) -> None:
        """Tell the peer that no further streams are accepted; those that are open go on."""
        if not self._ended:
            self.session.go_away(TunnelCode.NO_ERROR, reason)

    def close(self, code: TunnelCode, reason: str) -> None:
        """Tell the peer to go, and end."""
        if not self._ended:
            self.session.go_away(code, reason)
            self._flush()
            self._carrier.close()
            self._end(reason)

    # ------------------------------------------------------------------ the carrier's listener

    def heard(self) -> None:
        self._heard = self._clock.seconds()

    def message_received(self, message: bytes) -> None:
        if self._ended:
            return
        self.bytes_in += len(message)
        try:
            self.session.receive(message)
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
        self.hurry()

    def pause(self) -> None:
        self._writable = False

    def resume(self) -> None:
        self._writable = True
        self._flush()

    def closed(self, reason: str, refused: bool) -> None:
        self._end(reason)

    # ------------------------------------------------------------------ the session's handler

    def output_ready(self) -> None:
        if self._flush_call is None and not self._ended:
            self._flush_call = self._clock.callLater(0, self._flush_later)

    def opened(
        self, stream: Stream, head: RequestHead, to: Destination, complete: bool
    ) -> StreamHandler:
        assert self._on_opened is not None  # noqa: S101 - the session opens or is opened to
        return self._on_opened(self, stream, head, to, complete)

    def ponged(self, payload: bytes) -> None:
        if u64.unpack(payload)[0] == self._ping_number:
            self.round_trip = self._clock.seconds() - self._pinged

    def going_away(self, last_stream: int, code: TunnelCode, detail: str) -> None:
        self.leaving = True
        if code is not TunnelCode.NO_ERROR and not self._blamed:
            self._blamed = True
            self._log.error(
                "tunnel of inner layer {identifier}: the peer ends it: {code} {detail}",
                identifier=self.identifier,
                code=code.name,
                detail=detail,
            )

    def handler_failed(self, stream: Stream) -> None:
        self._log.failure(
            "stream {stream} of {identifier}", stream=stream.id, identifier=self.identifier
        )

    # ------------------------------------------------------------------ inside

    def _flush_later(self) -> None:
        self._flush_call = None
        self._flush()

    def _flush(self) -> None:
        if self._flushing:
            # A handler that was told to go on hurries: a message made now would overtake the one
            # that is just being made.
            return
        self._flushing = True
        try:
            while self._writable:  # send() may pause us from within
                message = self.session.next_message()
                if not message:
                    return
                self.bytes_out += len(message)
                self._carrier.send(message)
        finally:
            self._flushing = False

    def _ping(self) -> None:
        self._pinged = self._clock.seconds()
        self._ping_number += 1
        self.session.replenish()
        self.session.ping(u64.pack(self._ping_number))
        self._timer = self._clock.callLater(self._ping_timeout, self._judge)

    def _judge(self) -> None:
        if self._heard < self._pinged:
            self._end(f"no sign of life for {self._ping_timeout:g} s after a ping")
            self._carrier.abort()
            return
        rest = max(self._ping_interval - self._ping_timeout, 0)
        self._timer = self._clock.callLater(rest, self._ping)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._writable = False
        if self._timer.active():
            self._timer.cancel()
        if self._flush_call is not None and self._flush_call.active():
            self._flush_call.cancel()
        self._on_ended(self, reason)
        self.session.end(StreamCode.TUNNEL_LOST, reason)
