"""The handshake on a carrier, from the inner layer's side, with its deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall

from sockgw.protocol.errors import TunnelError
from sockgw.protocol.frames import HEADER_SIZE, FrameType, decode, encode
from sockgw.protocol.handshake import HandshakeError, InnerHandshake, Welcome
from sockgw.tunnel.carrier import Carrier

__all__ = ["Greeting"]

_NO_FRAME = (0, 0, 1, b"")  # as decode() yields them


class GreetingOwner(Protocol):
    """Who wants to be let in."""

    def welcomed(self, carrier: Carrier, welcome: Welcome) -> None:
        """The outer layer has accepted us; sets the carrier's listener."""

    def turned_away(self, reason: str, refused: bool) -> None:
        """It has failed; ``refused``: the outer layer does not accept who we are."""


class Greeting:
    """The listener of a carrier until the outer layer has accepted it."""

    def __init__(self, owner: GreetingOwner, carrier: Carrier, handshake: InnerHandshake) -> None:
        self._owner = owner
        self._handshake = handshake
        self._timer: IDelayedCall
        self._over = False
        self.carrier = carrier
        carrier.listener = self

    def start(self, call_later: Callable[..., IDelayedCall], timeout: float) -> None:
        """Say hello; the whole handshake has ``timeout`` seconds."""
        self._timer = call_later(timeout, self._expired)
        self._send(*self._handshake.start())

    def heard(self) -> None:
        """Bytes mean nothing yet."""

    def pause(self) -> None:
        """The few frames of a handshake fit into any buffer."""

    def resume(self) -> None:
        """See pause."""

    def message_received(self, message: bytes) -> None:
        if self._over:
            return
        try:
            kind, _, stream, payload = next(decode(message), _NO_FRAME)
            if stream:
                raise HandshakeError("no frame of the handshake")
            outcome = self._handshake.receive(kind, payload)
            rest = message[HEADER_SIZE + len(payload) :]
            if rest and not isinstance(outcome, Welcome):
                raise HandshakeError("more than one frame in a message of the handshake")
        except (HandshakeError, TunnelError) as error:
            self.carrier.abort()
            self._end(f"the outer layer broke the handshake: {error}", refused=False)
            return
        if isinstance(outcome, Welcome):
            self._over = True
            self._timer.cancel()
            self._owner.welcomed(self.carrier, outcome)
            if rest:
                # The first frames of the tunnel.
                self.carrier.listener.message_received(rest)
        else:
            self._send(*outcome)

    def closed(self, reason: str, refused: bool) -> None:
        self._end(reason, refused)

    def cut(self) -> None:
        """End it by our own wish."""
        self.carrier.abort()
        self._end("stopped", refused=False)

    def _send(self, kind: int, payload: bytes) -> None:
        self.carrier.send(encode(FrameType(kind), 0, 0, payload))

    def _expired(self) -> None:
        self.carrier.abort()
        self._end(str(self._handshake.expire()), refused=False)

    def _end(self, reason: str, refused: bool) -> None:
        if not self._over:
            self._over = True
            if self._timer.active():
                self._timer.cancel()
            self._owner.turned_away(reason, refused)
