"""The connector: keeps a tunnel to the outer layer, for ever.

A connection that fails is tried again after a delay that doubles from ``reconnect_delay`` to
``max_reconnect_delay``, each time scaled by chance to between half and one and a half of it: when
an outer layer restarts, its inner layers do not all come at once. Only a tunnel that has lived for
a while resets the delay: an outer layer which accepts and then drops is not hammered.

An outer layer that refuses this inner layer (its key, identifier or version; it does not say which)
is asked again every ``refused_delay`` seconds, and the log says it once.

Twisted's ClientService is not used: it counts a connection as a success once TCP connects, which
says nothing here, and knows no difference between a failure and a refusal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw import __version__
from sockgw.inner.config import InnerConfig
from sockgw.inner.outerlayer import OuterLayer
from sockgw.keys import PrivateKey
from sockgw.protocol.errors import TunnelCode, TunnelError
from sockgw.protocol.frames import HEADER_SIZE, FrameType, decode, encode
from sockgw.protocol.handshake import (
    NONCE_SIZE,
    HandshakeError,
    InnerHandshake,
    Welcome,
    host_name,
)
from sockgw.tunnel.carrier import Carrier, client_factory
from sockgw.tunnel.tunnel import Opener, Tunnel

__all__ = ["Connector"]

_NO_FRAME = (0, 0, 1, b"")  # as decode() yields them

_STABLE = 10.0  # seconds that a tunnel must live before the next failure counts as the first


class Connector(Service):
    """Dials the outer layer, again and again."""

    _log = Logger()

    def __init__(
        self,
        config: InnerConfig,
        reactor: Any,
        outer_layer: OuterLayer,
        key: PrivateKey,
        opened: Opener,
        random: Callable[[], float],
        *,
        nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``random`` returns a number from 0 to 1, ``nonce`` so many random bytes."""
        self._config = config
        self._reactor = reactor
        self._outer_layer = outer_layer
        self._key = key
        self._opened = opened
        self._random = random
        self._nonce = nonce
        self._failures = 0
        self._refused = False
        self._connecting: Deferred[IProtocol] | None = None
        self._opening: Carrier | None = None  # connected; the WebSocket is not open yet
        self._carrier: Carrier | None = None  # of the tunnel
        self._greeting: _Greeting | None = None
        self._timer: IDelayedCall | None = None
        self._since = 0.0
        #: The tunnel at the moment.
        self.tunnel: Tunnel | None = None

    # ------------------------------------------------------------------ the service

    def startService(self) -> None:
        super().startService()
        self._dial()

    def stopService(self) -> Deferred[None] | None:
        """End it all; the Deferred fires when the outer layer has been told, or cannot be."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._opening is not None:
            self._opening.abort()
        if self._greeting is not None:
            self._greeting.cut()
        if self.tunnel is None or self._carrier is None:
            return None
        parting = _Parting()
        carrier = self._carrier
        self.tunnel.close(TunnelCode.NO_ERROR, "the inner layer stops")
        carrier.listener = parting
        return parting.over

    # ------------------------------------------------------------------ dialling

    def _dial(self) -> None:
        self._timer = None
        timeout = self._config.handshake_timeout
        factory = client_factory(
            self._reactor, self._outer_layer.url, timeout, self._greet, self._lost
        )
        connecting = self._outer_layer.endpoint(self._reactor, timeout).connect(factory)
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
        handshake = InnerHandshake(
            nonce=self._nonce(NONCE_SIZE),
            fingerprint=self._key.public_key.fingerprint,
            sign=self._key.sign,
            identifier=self._config.identifier,
            host=host_name(carrier.host),
            channel_binding=carrier.channel_binding(),
            agent=f"sockgw/{__version__}",
        )
        self._greeting = _Greeting(self, carrier, handshake)
        self._greeting.start(self._reactor.callLater, self._config.handshake_timeout)

    # ------------------------------------------------------------------ for the greeting

    def welcomed(self, carrier: Carrier, welcome: Welcome) -> None:
        """The outer layer has accepted us."""
        self._greeting = None
        self._carrier = carrier
        self._refused = False
        self._since = self._reactor.seconds()
        self.tunnel = Tunnel(
            self._reactor,
            carrier,
            identifier=welcome.identifier,
            max_streams=self._config.max_streams,
            ping_interval=self._config.ping_interval,
            ping_timeout=self._config.ping_timeout,
            ended=self._ended,
            opened=self._opened,
        )
        self._log.info(
            "connected to the outer layer {url} as {identifier}",
            url=self._outer_layer.url,
            identifier=welcome.identifier,
        )

    def turned_away(self, reason: str, refused: bool) -> None:
        """The handshake has failed; ``refused``: by the outer layer's decision."""
        self._greeting = None
        if not refused:
            self._lost(reason)
            return
        if not self._refused:
            self._refused = True
            self._log.error(
                "the outer layer {url} refuses this inner layer (its key {key}, identifier or "
                "version): the outer layer's log says why. Asking again every {delay:g} s",
                url=self._outer_layer.url,
                key=str(self._key.public_key),
                delay=self._config.refused_delay,
            )
        self._again(self._config.refused_delay)

    # ------------------------------------------------------------------ again

    def _ended(self, tunnel: Tunnel, reason: str) -> None:
        self.tunnel = self._carrier = None
        if self._reactor.seconds() - self._since >= _STABLE:
            self._failures = 0
        self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._opening = None
        if not self.running:
            return
        config = self._config
        delay = min(config.reconnect_delay * 2.0**self._failures, config.max_reconnect_delay)
        self._failures = min(self._failures + 1, 32)
        delay = self._again(delay)
        self._log.warn(
            "no connection to the outer layer {url}: {reason}. Trying again in {delay:.1f} s",
            url=self._outer_layer.url,
            reason=reason.rstrip("."),
            delay=delay,
        )

    def _again(self, delay: float) -> float:
        delay *= 0.5 + self._random()
        if self.running and self._timer is None:
            self._timer = self._reactor.callLater(delay, self._dial)
        return delay


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


class _Greeting:
    """The listener of a carrier until the outer layer has accepted it."""

    def __init__(self, connector: Connector, carrier: Carrier, handshake: InnerHandshake) -> None:
        self._connector = connector
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
            self._connector.welcomed(self.carrier, outcome)
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
            self._connector.turned_away(reason, refused)
