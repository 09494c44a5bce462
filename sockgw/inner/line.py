"""A line: one tunnel to the outer layer, and the dialling that keeps it.

::

    WAITING ──▶ CONNECTING ──▶ OPENING ──▶ GREETING ──▶ CONNECTED
       ▲     TCP, proxy, TLS    WebSocket   handshake       │
       └───────────── whatever fails, or is lost ───────────┘

A carrier that is lost leaves the tunnel suspended: the next handshake names it, and where the outer
layer still has it, its streams go on. Where it has not (it was restarted, or we came too late), the
streams end, and the tunnel is a new one.

When to dial again: after a delay that doubles from ``reconnect_delay`` to ``max_reconnect_delay``,
and of which chance takes up to nine tenths away: when an outer layer restarts, its inner layers do
not all come at once, and are all back soon. An outer layer that takes the connection and then says
goodbye is draining, or has no place for us: for it the delay doubles on, up to ``refused_delay``.
One that refuses us (our key, identifier or version; it does not say which) is asked again every
``refused_delay``, and the log says it once.

Twisted's ClientService is not used: it counts a connection as a success once TCP connects, which
says nothing here, and knows no difference between a failure and a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw import __version__
from sockgw.inner.config import InnerConfig
from sockgw.inner.greeting import Greeting
from sockgw.inner.outerlayer import OuterLayer
from sockgw.keys import PrivateKey
from sockgw.protocol.errors import TunnelCode
from sockgw.protocol.frames import FrameType, encode
from sockgw.protocol.handshake import (
    NONCE_SIZE,
    InnerHandshake,
    Resumption,
    Welcome,
    host_name,
)
from sockgw.protocol.memory import Limits, Memory
from sockgw.protocol.payloads import encode_goaway
from sockgw.tunnel.carrier import NOBODY, Carrier, client_factory
from sockgw.tunnel.tunnel import Opener, Tunnel

__all__ = ["Line", "LineOwner", "Surroundings"]

_STABLE = 1.0  # seconds that a carrier must live before its loss counts as the first failure
_SAY_AGAIN = 60.0  # seconds after which the log repeats why there is no connection
_LEAST_DELAY = 0.1  # of the delay, whatever chance says


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all lines of an inner layer have in common."""

    config: InnerConfig
    reactor: Any
    outer_layer: OuterLayer
    key: PrivateKey
    opened: Opener
    #: Returns a number from 0 to 1.
    random: Callable[[], float]
    #: Returns so many random bytes.
    nonce: Callable[[int], bytes]
    limits: Limits
    memory: Memory


class LineOwner(Protocol):
    """Who keeps a line."""

    def told_to_leave(self, line: Line) -> None:
        """The outer layer wants this line's streams to end, and no new ones: open another line."""

    def over(self, line: Line) -> None:
        """A line that was left has ended."""


class Line:
    """Dials the outer layer, again and again, for one tunnel after the other."""

    _log = Logger()

    def __init__(self, surroundings: Surroundings, owner: LineOwner) -> None:
        self._around = surroundings
        self._config = surroundings.config
        self._reactor = surroundings.reactor
        self._owner = owner
        self._failures = 0
        self._refused = False
        self._stopped = False
        self._said = ("", float("-inf"))  # the last complaint, and when it was logged
        self._timer: IDelayedCall | None = None
        self._connecting: Deferred[IProtocol] | None = None
        self._opening: Carrier | None = None  # connected; the WebSocket is not open yet
        self._greeting: Greeting | None = None
        self._carrier: Carrier | None = None  # of the tunnel
        self._since = 0.0  # when it was welcomed
        self._id = b""  # the tunnel's
        self._secret = b""
        #: The tunnel at the moment, perhaps suspended.
        self.tunnel: Tunnel | None = None
        #: It only waits for its streams to end.
        self.left = False

    def start(self, delay: float = 0.0) -> None:
        """Dial, after so many seconds."""
        if delay:
            self._timer = self._reactor.callLater(delay, self._dial)
        else:
            self._dial()

    def leave(self, reason: str) -> None:
        """Accept no further streams, and end with the last one; ``over`` follows."""
        self.left = True
        if self.tunnel is None:
            self.stop()
            self._owner.over(self)
        else:
            self.tunnel.finish(reason)

    def stop(self) -> Deferred[None] | None:
        """End it all; the Deferred fires when the outer layer has been told, or cannot be."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._opening is not None:
            self._opening.abort()
        if self._greeting is not None:
            self._greeting.cut()
            self._greeting = None
        tunnel, carrier = self.tunnel, self._carrier
        if tunnel is None:
            return None
        parting = _Parting()
        tunnel.close(TunnelCode.CLOSED, "the inner layer stops")
        if carrier is None:
            return None
        carrier.listener = parting
        return parting.over

    # ------------------------------------------------------------------ dialling

    def _dial(self) -> None:
        self._timer = None
        timeout = self._config.handshake_timeout
        outer_layer = self._around.outer_layer
        factory = client_factory(self._reactor, outer_layer.url, timeout, self._greet, self._lost)
        connecting = outer_layer.endpoint(self._reactor, timeout).connect(factory)
        self._connecting = connecting
        connecting.addCallbacks(self._connected, self._failed)

    def _connected(self, protocol: IProtocol) -> None:
        self._connecting = None
        self._opening = cast(Carrier, protocol)

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        self._lost(failure.getErrorMessage() or type(failure.value).__name__)

    def _greet(self, carrier: Carrier) -> None:
        self._opening = None
        key = self._around.key
        tunnel = self.tunnel
        resumption = None
        if tunnel is not None and self._secret:
            resumption = Resumption(self._id, tunnel.session.received)
        handshake = InnerHandshake(
            nonce=self._around.nonce(NONCE_SIZE),
            fingerprint=key.public_key.fingerprint,
            sign=key.sign,
            identifier=self._config.identifier,
            host=host_name(carrier.host),
            channel_binding=carrier.channel_binding(),
            agent=f"sockgw/{__version__}",
            resumption=resumption,
            secret=self._secret,
        )
        self._greeting = Greeting(self, carrier, handshake)
        self._greeting.start(self._reactor.callLater, self._config.handshake_timeout)

    # ------------------------------------------------------------------ for the greeting

    def welcomed(self, carrier: Carrier, welcome: Welcome) -> None:
        """The outer layer has accepted us."""
        self._greeting = None
        self._refused = False
        tunnel = self.tunnel
        if welcome.received is not None:
            if tunnel is not None and tunnel.session.resumable(welcome.received):
                self._welcomed(carrier)
                tunnel.resume_on(carrier, welcome.received)
                self._log.info(
                    "the tunnel goes on: {streams} streams, {bytes} bytes are sent again",
                    streams=len(tunnel.session.streams),
                    bytes=tunnel.session.unacknowledged,
                )
                return
            # Its time was over meanwhile, or the outer layer claims what cannot be.
            self._decline(carrier)
            if tunnel is not None:
                tunnel.close(TunnelCode.INTERNAL_ERROR, "the outer layer cannot go on with it")
            if not self._stopped and not self.left:
                self._lost("the tunnel could not be resumed")
            return
        if tunnel is not None:
            tunnel.close(TunnelCode.CLOSED, "the outer layer has lost this tunnel")
        if self.left or self._stopped:
            self._decline(carrier)
            return
        self._welcomed(carrier)
        config = self._config
        self._id = welcome.tunnel
        self._secret = welcome.secret
        self.tunnel = Tunnel(
            self._reactor,
            carrier,
            self,
            identifier=welcome.identifier,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
            resume_window=self._resume_window(welcome),
            limits=self._around.limits,
            memory=self._around.memory,
            opened=self._around.opened,
        )
        self._log.info(
            "connected to the outer layer {url} as {identifier}",
            url=self._around.outer_layer.url,
            identifier=welcome.identifier,
        )

    def turned_away(self, reason: str, refused: bool) -> None:
        """The handshake has failed; ``refused``: by the outer layer's decision."""
        greeting, self._greeting = self._greeting, None
        if not refused:
            # One that is cut within the handshake is a broken link as any other.
            dismissed = greeting is not None and greeting.carrier.dismissed
            self._lost(reason, self._config.refused_delay if dismissed else 0.0)
            return
        if not self._refused:
            self._refused = True
            self._log.error(
                "the outer layer {url} refuses this inner layer (its key {key}, identifier or "
                "version): the outer layer's log says why. Asking again every {delay:g} s",
                url=self._around.outer_layer.url,
                key=str(self._around.key.public_key),
                delay=self._config.refused_delay,
            )
        self._again(self._config.refused_delay * (0.5 + self._around.random()))

    def _resume_window(self, welcome: Welcome) -> float:
        if not welcome.resume_window or not welcome.secret:
            return 0.0
        # The outer layer may have noticed the loss later than we did, by what a ping takes.
        config = self._config
        return welcome.resume_window + config.ping_interval + config.ping_timeout

    def _welcomed(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._since = self._reactor.seconds()
        self._said = ("", float("-inf"))

    def _decline(self, carrier: Carrier) -> None:
        """End a tunnel that the outer layer has just made or resumed."""
        carrier.listener = NOBODY
        goodbye = encode_goaway(0, TunnelCode.CLOSED, "not wanted any more")
        carrier.send(encode(FrameType.GOAWAY, 0, 0, goodbye))
        carrier.close()

    # ------------------------------------------------------------------ the tunnel's owner

    def suspended(self, tunnel: Tunnel, reason: str) -> None:
        self._carrier = None
        self._lost(reason)

    def ended(self, tunnel: Tunnel, reason: str) -> None:
        carrier, self._carrier = self._carrier, None
        self.tunnel = None
        if self.left:
            if self._stopped:
                return
            self.stop()
            if carrier is None or tunnel.suspended:
                self._owner.over(self)
            else:
                # What was said last is still on its way.
                carrier.listener = parting = _Parting()
                parting.over.addCallback(lambda _: self._owner.over(self))
        elif carrier is not None:
            self._lost(reason)
        else:
            # We are dialling already.
            self._log.warn("the tunnel is lost, with its streams: {reason}", reason=reason)

    def told_to_leave(self, tunnel: Tunnel) -> None:
        if not self.left and not self._stopped:
            self.left = True
            self._log.info("the outer layer asks us to leave: opening the next tunnel")
            self._owner.told_to_leave(self)

    # ------------------------------------------------------------------ again

    def _lost(self, reason: str, longest: float = 0.0) -> None:
        self._opening = None
        if self._stopped:
            return
        config = self._config
        now = self._reactor.seconds()
        if self._since and now - self._since >= _STABLE:
            self._failures = 0
        self._since = 0.0
        longest = max(longest, config.max_reconnect_delay)
        delay = min(config.reconnect_delay * 2.0**self._failures, longest)
        delay *= _LEAST_DELAY + (1 - _LEAST_DELAY) * self._around.random()
        self._failures = min(self._failures + 1, 32)
        self._again(delay)
        said, at = self._said
        if reason != said or now - at >= _SAY_AGAIN:
            self._said = reason, now
            self._log.warn(
                "no connection to the outer layer {url}: {reason}. Trying again in {delay:.1f} s",
                url=self._around.outer_layer.url,
                reason=reason.rstrip("."),
                delay=delay,
            )

    def _again(self, delay: float) -> None:
        if not self._stopped and self._timer is None:
            self._timer = self._reactor.callLater(delay, self._dial)


class _Parting:
    """The listener of a carrier that is being closed."""

    def __init__(self) -> None:
        #: Fires at its end.
        self.over: Deferred[None] = Deferred()

    def heard(self) -> None:
        """Of no interest any more."""

    def pause(self) -> None:
        """Nothing more is sent."""

    def resume(self) -> None:
        """See pause."""

    def message_received(self, message: bytes) -> None:
        """None comes after closing."""

    def closed(self, reason: str, refused: bool) -> None:
        self.over.callback(None)
