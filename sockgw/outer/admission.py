"""Who may be an inner layer: the handshake of each new carrier, with its deadlines.

Whatever goes wrong, the stranger sees the same: the connection closes. The log says why, in one
line, and the metrics count it.

An inner layer that lost its carrier comes back here: it authenticates in full, as everybody does,
and proves the secret of its tunnel besides. Then the new carrier takes the place of the old one at
once, also of one that still looks alive.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import ceil
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
    MAX_RESUME_WINDOW,
    NONCE_SIZE,
    SECRET_SIZE,
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
        self._limits = config.limits()
        self._memory = config.memory()
        self._hosts = frozenset(host_name(name) for name in config.socket_host)
        self._waiting: set[_Greeting] = set()
        self._draining = False

    def opened(self, carrier: Carrier) -> None:
        """A carrier has opened; let it prove who it is."""
        handshake = OuterHandshake(
            nonce=self._random(NONCE_SIZE),
            hosts=self._hosts or frozenset((host_name(carrier.host),)),
            channel_binding=carrier.channel_binding() if self._config.channel_binding else None,
            lookup=self._keyring.find,
            decoy=self._decoy,
            secret_of=self._secret_of,
        )
        greeting = _Greeting(self, carrier, handshake)
        self._waiting.add(greeting)
        if self._draining:
            greeting.turn_away()

    def revoke(self) -> None:
        """The keyring has changed: end the tunnels that it no longer permits."""
        for member in self._registry:
            if not self._keyring.permits(member.fingerprint, member.identifier):
                member.tunnel.close(TunnelCode.REVOKED, "the key is no longer accepted")

    def drain(self) -> None:
        """Admit nobody any more: whoever is about to have a tunnel is to go elsewhere."""
        self._draining = True
        for greeting in list(self._waiting):
            greeting.turn_away()

    def leave(self) -> None:
        """Tell all inner layers to go elsewhere; the streams that they have go on."""
        for member in self._registry:
            member.tunnel.leave("the outer layer is draining")

    def stop(self) -> None:
        """End all tunnels, and whoever is about to have one."""
        for greeting in list(self._waiting):
            greeting.cut()
        for member in self._registry:
            member.tunnel.close(TunnelCode.CLOSED, "the outer layer stops")

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
        if known.resumption is not None:
            member = self._registry.find(known.resumption.tunnel)
            # It has the secret. Whether it is also the same inner layer, is another question.
            if (
                member is not None
                and member.fingerprint == known.fingerprint
                and member.identifier == known.identifier
                and member.tunnel.session.resumable(known.resumption.received)
            ):
                self._resume(member, carrier, handshake, known.resumption.received)
                return
        limit = self._registry.room_for(known.fingerprint)
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
        config = self._config
        tunnel_id = self._random(TUNNEL_ID_SIZE)
        resume_window = config.resume_window if handshake.resumes else 0.0
        secret = self._random(SECRET_SIZE) if resume_window else b""
        self._welcome(carrier, handshake, tunnel_id, secret=secret)
        tunnel = Tunnel(
            self._clock,
            carrier,
            self,
            identifier=known.identifier,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
            resume_window=resume_window,
            limits=self._limits,
            memory=self._memory,
        )
        member = Member(
            tunnel,
            known.identifier,
            known.fingerprint,
            _address(carrier),
            time.time(),
            tunnel_id=tunnel_id,
            secret=secret,
        )
        self._registry.add(member)
        self._retire(member)
        self._log.info(
            "inner layer {identifier} connected address={address} key={key} agent={agent}",
            identifier=known.identifier,
            address=_address(carrier),
            key=fingerprint_text(known.fingerprint),
            agent=known.agent,
        )

    def _retire(self, successor: Member) -> None:
        """End the tunnels that had to be replaced, as their streams do."""
        for member in self._registry:
            if (
                member.tunnel.session.worn
                and member.fingerprint == successor.fingerprint
                and member.identifier == successor.identifier
            ):
                member.tunnel.finish("another tunnel has taken over")

    def _resume(
        self, member: Member, carrier: Carrier, handshake: OuterHandshake, received: int
    ) -> None:
        """An inner layer is back: its tunnel goes on with the new carrier."""
        tunnel = member.tunnel
        taken_over = not tunnel.suspended
        # From here on nothing comes from the old carrier, so that the count below is true.
        tunnel.detach()
        self._welcome(carrier, handshake, member.tunnel_id, received=tunnel.session.received)
        tunnel.resume_on(carrier, received)
        member.address = _address(carrier)
        member.resumes += 1
        member.takeovers += taken_over
        self._metrics.resumed(taken_over)
        self._registry.resumed(member)
        self._log.info(
            "inner layer {identifier} is back{how} address={address}: {streams} streams go on,"
            " {bytes} bytes are sent again",
            identifier=member.identifier,
            how=" while its old connection looked alive" if taken_over else "",
            address=member.address,
            streams=len(tunnel.session.streams),
            bytes=tunnel.session.unacknowledged,
        )

    def _welcome(
        self,
        carrier: Carrier,
        handshake: OuterHandshake,
        tunnel_id: bytes,
        *,
        secret: bytes = b"",
        received: int | None = None,
    ) -> None:
        kind, payload = handshake.welcome(
            tunnel=tunnel_id,
            max_streams=self._config.max_streams,
            # Whole seconds, and not 0, which means none; nor more than an inner layer accepts.
            resume_window=min(ceil(self._config.resume_window), MAX_RESUME_WINDOW)
            if handshake.resumes
            else 0,
            secret=secret,
            received=received,
        )
        carrier.send(encode(FrameType(kind), 0, 0, payload))

    def _secret_of(self, tunnel_id: bytes) -> bytes | None:
        member = self._registry.find(tunnel_id)
        return member.secret if member is not None and member.secret else None

    # ------------------------------------------------------------------ the tunnels' owner

    def suspended(self, tunnel: Tunnel, reason: str) -> None:
        member = self._registry.suspended(tunnel)
        if member is not None:
            self._log.warn(
                "inner layer {identifier} has lost its connection: {reason} address={address};"
                " {streams} streams wait for it, {window:g} s at most",
                identifier=member.identifier,
                reason=reason,
                address=member.address,
                streams=len(tunnel.session.streams),
                window=self._config.resume_window,
            )

    def ended(self, tunnel: Tunnel, reason: str) -> None:
        member = self._registry.remove(tunnel)
        if member is not None:
            if tunnel.suspended:
                self._metrics.tunnel_lost()
            session = tunnel.session
            self._metrics.tunnel_ended(
                tunnel.bytes_in, tunnel.bytes_out, session.stalls, session.resent
            )
            self._log.info(
                "inner layer {identifier} disconnected: {reason} address={address}",
                identifier=member.identifier,
                reason=reason,
                address=member.address,
            )

    def told_to_leave(self, tunnel: Tunnel) -> None:
        """An inner layer is draining: its tunnel takes no further streams, and it ends it."""


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

    def turn_away(self) -> None:
        """End it in good order: the peer is welcome at another time, or elsewhere."""
        self._end()
        self.carrier.close()

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
