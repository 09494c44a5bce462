"""Who may be an inner layer: the handshake of each new carrier, with its deadlines.

Whatever goes wrong, the stranger sees the same: the connection closes. The log says why, in one
line, and the metrics count it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sockgw.http.networks import canonical
from sockgw.keys import fingerprint_text
from sockgw.outer.config import OuterConfig
from sockgw.outer.keyring import Keyring
from sockgw.outer.metrics import Metrics
from sockgw.outer.registry import Member, Registry
from sockgw.protocol.errors import TunnelCode, TunnelError
from sockgw.protocol.frames import FrameType, decode, encode
from sockgw.protocol.handshake import (
    NONCE_SIZE,
    TUNNEL_ID_SIZE,
    Authenticated,
    HandshakeError,
    OuterHandshake,
    Refused,
    State,
    Verifier,
    host_name,
)
from sockgw.tunnel.carrier import Carrier
from sockgw.tunnel.tunnel import Tunnel

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

__all__ = ["Admission"]


class Admission:
    """Turns carriers into tunnels of known inner layers, and ends those whose key is revoked."""

    _log = Logger()

    def __init__(
        self,
        config: OuterConfig,
        clock: IReactorTime,
        keyring: Keyring,
        registry: Registry,
        metrics: Metrics,
        decoy: Verifier,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._config = config
        self._clock = clock
        self._keyring = keyring
        self._registry = registry
        self._metrics = metrics
        self._decoy = decoy
        self._random = random
        self._hosts = frozenset(host_name(name) for name in config.socket_host)
        self._waiting: set[_Greeting] = set()

    def opened(self, carrier: Carrier) -> None:
        """A carrier has opened; let it prove who it is."""
        handshake = OuterHandshake(
            nonce=self._random(NONCE_SIZE),
            hosts=self._hosts or frozenset((host_name(carrier.host),)),
            channel_binding=carrier.channel_binding() if self._config.channel_binding else None,
            lookup=self._keyring.find,
            decoy=self._decoy,
        )
        self._waiting.add(_Greeting(self, carrier, handshake))

    def revoke(self) -> None:
        """The keyring has changed: end the tunnels that it no longer permits."""
        for member in self._registry:
            if not self._keyring.permits(member.fingerprint, member.identifier):
                member.tunnel.close(TunnelCode.REVOKED, "the key is no longer accepted")

    def stop(self) -> None:
        """End all tunnels, and whoever is about to have one."""
        for greeting in list(self._waiting):
            greeting.cut()
        for member in self._registry:
            member.tunnel.close(TunnelCode.NO_ERROR, "the outer layer stops")

    # ------------------------------------------------------------------ for greetings

    def deadline(self, state: State, expired: Callable[[], None]) -> IDelayedCall:
        """Start the time that the peer has for its next frame."""
        if state is State.AWAITING_PROOF:
            return self._clock.callLater(self._config.validity, expired)
        return self._clock.callLater(self._config.handshake_timeout, expired)

    def over(self, greeting: _Greeting) -> None:
        """A greeting has come to its end, good or bad."""
        self._waiting.discard(greeting)

    def failed(self, carrier: Carrier, error: HandshakeError) -> None:
        """The peer is not let in."""
        self._metrics.handshake_failed(error.kind)
        self._log.warn(
            "inner layer refused: {reason} address={address} key={key}",
            reason=error.reason,
            address=_address(carrier),
            key="-" if error.fingerprint is None else fingerprint_text(error.fingerprint),
        )
        carrier.refuse()

    def admit(self, carrier: Carrier, handshake: OuterHandshake, known: Authenticated) -> None:
        """The peer has proved who it is."""
        limit = ""
        if self._registry.full:
            limit = "max-tunnels"
        elif self._registry.crowded(known.fingerprint):
            limit = "max-tunnels-per-key"
        if limit:
            self._metrics.handshake_failed(Refused.LIMIT)
            self._log.error(
                "inner layer {identifier} turned away: {limit} is reached address={address}",
                identifier=known.identifier,
                limit=limit,
                address=_address(carrier),
            )
            carrier.close()
            return
        kind, payload = handshake.welcome(
            tunnel=self._random(TUNNEL_ID_SIZE), max_streams=self._config.max_streams
        )
        carrier.send(encode(FrameType(kind), 0, 0, payload))
        tunnel = Tunnel(
            self._clock,
            carrier,
            identifier=known.identifier,
            max_streams=self._config.max_streams,
            ping_interval=self._config.ping_interval,
            ping_timeout=self._config.ping_timeout,
            ended=self._ended,
        )
        member = Member(tunnel, known.identifier, known.fingerprint, _address(carrier), time.time())
        self._registry.add(member)
        self._log.info(
            "inner layer {identifier} connected address={address} key={key} agent={agent}",
            identifier=known.identifier,
            address=_address(carrier),
            key=fingerprint_text(known.fingerprint),
            agent=known.agent,
        )

    def _ended(self, tunnel: Tunnel, reason: str) -> None:
        member = self._registry.remove(tunnel)
        if member is not None:
            self._metrics.tunnel_ended(tunnel.bytes_in, tunnel.bytes_out, tunnel.session.stalls)
            self._log.info(
                "inner layer {identifier} disconnected: {reason} address={address}",
                identifier=member.identifier,
                reason=reason,
                address=member.address,
            )


def _address(carrier: Carrier) -> str:
    try:
        return canonical(carrier.peer_address)
    except ValueError:
        return carrier.peer_address


class _Greeting:
    """The listener of a carrier until its peer is known."""

    def __init__(self, admission: Admission, carrier: Carrier, handshake: OuterHandshake) -> None:
        self._admission = admission
        self._handshake = handshake
        self._over = False
        self.carrier = carrier
        carrier.listener = self
        self._timer = admission.deadline(handshake.state, self._expired)

    def heard(self) -> None:
        """Bytes are no proof of anything yet."""

    def pause(self) -> None:
        """The few frames of a handshake fit into any buffer."""

    def resume(self) -> None:
        """See pause."""

    def message_received(self, message: bytes) -> None:
        if self._over:
            return
        try:
            frames = list(decode(message))
            if len(frames) != 1 or frames[0][2]:
                raise HandshakeError("a message of the handshake holds exactly one frame")
            kind, _, _, payload = frames[0]
            outcome = self._handshake.receive(kind, payload)
        except HandshakeError as error:
            self._fail(error)
            return
        except TunnelError as error:
            self._fail(HandshakeError(error.detail))
            return
        if isinstance(outcome, Authenticated):
            self._end()
            self._admission.admit(self.carrier, self._handshake, outcome)
            return
        self._timer.cancel()
        self._timer = self._admission.deadline(self._handshake.state, self._expired)
        self.carrier.send(encode(FrameType(outcome[0]), 0, 0, outcome[1]))

    def closed(self, reason: str, refused: bool) -> None:
        if not self._over:
            self._fail(
                HandshakeError(
                    f"the peer went away during the handshake ({reason[:200]})", kind=Refused.LEFT
                )
            )

    def cut(self) -> None:
        """End it by our own wish."""
        self._end()
        self.carrier.abort()

    def _expired(self) -> None:
        self._fail(self._handshake.expire())

    def _fail(self, error: HandshakeError) -> None:
        self._end()
        self._admission.failed(self.carrier, error)

    def _end(self) -> None:
        self._over = True
        if self._timer.active():
            self._timer.cancel()
        self._admission.over(self)
