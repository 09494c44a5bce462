"""Who performs a request: an inner layer, one that is expected back, or another after a failure.

::

    request ──▶ asked ──answer──▶ done          asked: a stream of a tunnel carries it
       │         ▲ │
       │  served │ │ no work was done, or all of it may be done twice
       ▼         │ ▼
      held ◀── nobody else there ──▶ answered with the failure
       └──── in vain ──▶ answered with the failure

A request is *held* while no inner layer for its target is connected, but one was, not long ago. It
is never performed twice unless its method allows that (RFC 9110, section 9.2.2): the one who failed
has said that no work was done, or its tunnel was lost before any byte of an answer.

All times of one request to the first byte of the answer count together, except those in hold.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sockgw.deadlines import Deadlines
from sockgw.http.methods import IDEMPOTENT
from sockgw.outer.config import OuterConfig
from sockgw.outer.health import NOT_REACHED, Health
from sockgw.outer.held import Held
from sockgw.outer.kept import KeptBodies
from sockgw.outer.metrics import Metrics
from sockgw.outer.refusals import BAD_HEAD, BUSY, NO_INNER_LAYER, TOO_MANY_HELD, Refusal
from sockgw.outer.registry import Member, Registry
from sockgw.outer.relay import Relay
from sockgw.protocol.errors import LocalError, StreamCode
from sockgw.protocol.session import TunnelFull

__all__ = ["Dispatcher"]

_log = Logger()


class Dispatcher:
    """Finds inner layers for relays."""

    def __init__(
        self,
        config: OuterConfig,
        clock: IReactorTime,
        deadlines: Deadlines,
        registry: Registry,
        metrics: Metrics,
    ) -> None:
        self._deadlines = deadlines
        self._registry = registry
        self._metrics = metrics
        self._hold_time = config.hold
        self._max_tries = config.max_tries
        self._stopping = False
        self._seconds = clock.seconds
        self.bodies = KeptBodies(config.kept_body, config.max_kept_bodies)
        self.held = Held(clock, config.max_held, self._serve)
        self.health = Health(
            clock.seconds,
            registry.candidates,
            metrics.ejected,
            after=config.eject_after,
            pause=config.eject_time,
            max_pause=config.max_eject_time,
        )
        registry.on_there = self._there
        registry.on_removed = self.health.forget

    def stop(self) -> None:
        """Hold nobody any longer, and ask nobody again: the process ends."""
        self._stopping = True
        for relay in list(self.held.relays):
            self._give_up(relay, NO_INNER_LAYER)
        self.held.stop()

    # ------------------------------------------------------------------ for relays

    def dispatch(self, relay: Relay) -> None:
        """Have a new request performed, hold it, or answer it with the reason why neither."""
        if not self._ask(relay):
            refusal = self._hold(relay)
            if refusal is not None:
                relay.refuse(refusal)

    def again(self, relay: Relay, code: StreamCode) -> bool:
        """The stream that carried it was reset; return whether it goes on elsewhere or is held.

        The relay says by ``repeatable`` whether all of the request is still here and nothing of an
        answer has come.
        """
        if code in NOT_REACHED:
            self.health.unreached(relay.route.target, relay.member, code)
        elif code is StreamCode.TUNNEL_LOST:
            if relay.head.method not in IDEMPOTENT:
                return False
        elif code is not StreamCode.REFUSED:
            return False
        if not relay.repeatable or relay.tries >= self._max_tries or self._stopping:
            return False
        suspended_since = relay.member.suspended_since
        if suspended_since is not None:  # and never came back
            relay.postpone(self._seconds() - suspended_since)
        relay.tried = (*relay.tried, relay.member)
        return self._ask(relay) or self._hold(relay) is None

    def expired(self, relay: Relay) -> None:
        """It has been held for as long as it may be."""
        self._metrics.hold_expired()
        busy = self._registry.serves(relay.route.target.identifiers)
        self._give_up(relay, BUSY if busy else NO_INNER_LAYER)

    # ------------------------------------------------------------------ inside

    def _give_up(self, relay: Relay, refusal: Refusal) -> None:
        self.held.discard(relay)
        if relay.failure is None:
            relay.refuse(refusal)
        else:
            relay.give_up(*relay.failure)

    def _ask(self, relay: Relay) -> bool:
        """Open a stream for it; return False if nobody takes one now."""
        target = relay.route.target
        health = self.health
        passed_over = health.passed_over(target.name) if health.failing else ()
        member = self._registry.choose(target.identifiers, relay.affinity, relay.tried, passed_over)
        if member is None:
            return False
        if self.held.relays:
            self.held.discard(relay)
        if relay.tried:
            self._metrics.retried()
        try:
            stream = member.tunnel.open(
                relay.head, relay.route.destination, relay, complete=relay.whole
            )
        except TunnelFull:
            relay.refuse(BUSY)
        except LocalError:
            relay.refuse(BAD_HEAD)
        else:
            relay.carry(member, stream)
        return True

    def _hold(self, relay: Relay) -> Refusal | None:
        """Let it wait; return why it may not."""
        target = relay.route.target
        if self._registry.serves(target.identifiers):
            return BUSY
        hold = self._hold_time if target.hold is None else target.hold
        if not hold or self._stopping:
            return NO_INNER_LAYER
        if not self._registry.served_within(target.identifiers, hold):
            return NO_INNER_LAYER
        if not self.held.add(relay):
            return TOO_MANY_HELD
        relay.hold(self._deadlines.after(hold))
        return None

    def _serve(self, relays: Iterable[Relay]) -> bool:
        """There may be somebody for those who are held; return whether there may be soon."""
        hopeless: set[frozenset[str] | None] = set()
        for relay in relays:
            identifiers = relay.route.target.identifiers
            if relay not in self.held.relays or identifiers in hopeless:
                continue
            try:
                asked = self._ask(relay)
            except Exception:  # noqa: BLE001 - the others must not wait for ever for its sake
                _log.failure("a request that has waited was not taken")
                relay.fail()
                continue
            if not asked and not relay.tried:
                hopeless.add(identifiers)
        return any(map(self._registry.serves, hopeless))

    def _there(self, member: Member, suspended: float) -> None:
        """An inner layer takes streams, for the first time or again after so many seconds."""
        if suspended:
            # While nothing could come from the origin its time stood still.
            for stream in member.tunnel.session.streams.values():
                if isinstance(stream.handler, Relay):
                    stream.handler.postpone(suspended)
        self.held.wake()
