"""Which inner layers are connected, and which of them serves a request.

A client's connection stays with the inner layer that served it before, while that one lives. A new
one goes to the tunnel with the fewest streams, and among equals to the one that was chosen longest
ago, so that idle replicas take turns.

An inner layer can be here and yet be gone: *suspended*, its tunnel has lost its carrier and may
resume; *leaving*, it takes no further streams. Of those, and of the ones that went altogether, it
is remembered when they were last there, because requests wait a while for who may be back.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from sockgw.protocol.errors import TunnelCode
from sockgw.tunnel.tunnel import Tunnel

__all__ = ["Affinity", "Member", "Registry"]


@dataclass(slots=True, eq=False)
class Member:
    """A connected inner layer."""

    tunnel: Tunnel
    identifier: str
    fingerprint: bytes  #: SHA-256 of its public key
    address: str
    since: float  #: seconds since the epoch
    tunnel_id: bytes = b""  #: by which the inner layer can come back to it
    resumes: int = 0  #: how often it has come back
    takeovers: int = 0  #: how often of these while its old carrier looked alive
    secret: bytes = field(default=b"", repr=False)  #: which it then has to know
    chosen: int = 0  #: when it was last chosen, or came, by a counter
    suspended_since: float | None = None  #: in seconds of the registry's clock
    gone: float | None = None  #: since when it takes no streams, in the same

    @property
    def connected(self) -> bool:
        """Whether it takes streams, but for limits."""
        return not (self.tunnel.suspended or self.tunnel.leaving)


Affinity = dict[frozenset[str] | None, Member]
"""Which member a client's connection stays with, by the identifiers that a target allows."""


class Registry:
    """The connected inner layers."""

    def __init__(
        self,
        max_tunnels: int,
        max_per_key: int | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """``max_per_key`` keeps one key from taking the places of all others; None: no bound."""
        self._max_tunnels = max_tunnels
        self._max_per_key = max_tunnels if max_per_key is None else max_per_key
        self._per_key: Counter[bytes] = Counter()
        self._members: dict[Tunnel, Member] = {}
        self._by_id: dict[bytes, Member] = {}
        # Ordered sets, chosen longest ago first: who is idle is found without a walk through all.
        self._in_turn: dict[Member, None] = {}
        self._by_identifier: dict[str, dict[Member, None]] = {}
        self._turn = count(1)
        self._seconds = seconds
        self._began = seconds()
        # When an inner layer of an identifier has gone last; who has gone longest ago stands first.
        self._last_there: dict[str, float] = {}
        #: Called with an inner layer that takes streams from now on, and the seconds for which its
        #: tunnel was suspended before.
        self.on_there: Callable[[Member, float], object] = _ignore
        #: Called with an inner layer that is out of the registry.
        self.on_removed: Callable[[Member], object] = _ignore

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def room_for(self, fingerprint: bytes) -> str:
        """Return the limit that keeps that key from having another tunnel; empty where none does.

        Its own tunnels that wait for their inner layer make room first, the oldest of them: who
        comes with a new one has lost that.
        """
        while limit := self._limit(fingerprint):
            waiting = (
                member
                for member in self._members.values()
                if member.tunnel.suspended and member.fingerprint == fingerprint
            )
            oldest = next(waiting, None)
            if oldest is None:
                return limit
            oldest.tunnel.close(TunnelCode.CLOSED, "its key has too many tunnels")
        return ""

    def _limit(self, fingerprint: bytes) -> str:
        if self._per_key[fingerprint] >= self._max_per_key:
            return "max-tunnels-per-key"
        return "max-tunnels" if len(self._members) >= self._max_tunnels else ""

    def find(self, tunnel_id: bytes) -> Member | None:
        """Return whose tunnel it is."""
        return self._by_id.get(tunnel_id)

    def suspended(self, tunnel: Tunnel) -> Member | None:
        """A tunnel has lost its carrier, and may get another; return whose it is."""
        member = self._members.get(tunnel)
        if member is not None:
            member.suspended_since = member.gone = self._seconds()
        return member

    def resumed(self, member: Member) -> None:
        """A tunnel has a carrier again."""
        since = member.suspended_since
        member.suspended_since = member.gone = None
        self.on_there(member, 0.0 if since is None else self._seconds() - since)

    def add(self, member: Member) -> None:
        """An inner layer has proved who it is."""
        self._members[member.tunnel] = member
        member.chosen = next(self._turn)
        self._in_turn[member] = None
        self._by_identifier.setdefault(member.identifier, {})[member] = None
        self._per_key[member.fingerprint] += 1
        if member.tunnel_id:
            self._by_id[member.tunnel_id] = member
        self.on_there(member, 0.0)

    def remove(self, tunnel: Tunnel) -> Member | None:
        """A tunnel has ended; return whose it was."""
        member = self._members.pop(tunnel, None)
        if member is not None:
            self._by_id.pop(member.tunnel_id, None)
            del self._in_turn[member]
            same = self._by_identifier[member.identifier]
            del same[member]
            if not same:
                del self._by_identifier[member.identifier]
            self._remember(member)
            self._per_key[member.fingerprint] -= 1
            if not self._per_key[member.fingerprint]:
                del self._per_key[member.fingerprint]
            self.on_removed(member)
        return member

    @property
    def ready(self) -> bool:
        """Whether an inner layer is connected."""
        return any(not tunnel.suspended for tunnel in self._members)

    def identifiers(self) -> dict[str, int]:
        """Return how many tunnels each identifier has that are connected."""
        return self._count(suspended=False)

    def suspended_identifiers(self) -> dict[str, int]:
        """Return how many tunnels each identifier has that are suspended."""
        return self._count(suspended=True)

    def streams(self) -> int:
        """Return how many streams are open."""
        return sum(len(tunnel.session.streams) for tunnel in self._members)

    def choose(
        self,
        identifiers: frozenset[str] | None,
        affinity: Affinity,
        tried: Collection[Member] = (),
        passed_over: Collection[Member] = (),
    ) -> Member | None:
        """Return who serves a target that allows these identifiers (None: any).

        Never one of ``tried``; one of ``passed_over`` only where there is nobody else. None where
        no suitable inner layer is connected or each is at its limit.
        """
        known = affinity.get(identifiers)
        if (
            known is not None
            and known.tunnel.available
            and known not in tried
            and known not in passed_over
        ):
            return known
        best: Member | None = None
        fewest = 0
        in_turn = identifiers is None or len(identifiers) == 1
        for member in self.candidates(identifiers):
            if member.tunnel.available and member not in tried and member not in passed_over:
                streams = len(member.tunnel.session.streams)
                if (
                    best is None
                    or streams < fewest
                    or (streams == fewest and member.chosen < best.chosen)
                ):
                    best, fewest = member, streams
                    if not streams and in_turn:
                        break  # nobody has fewer, and who is idle too was chosen later
        if best is None and passed_over:
            return self.choose(identifiers, affinity, tried)
        if best is not None:
            best.chosen = next(self._turn)
            for ordered in (self._in_turn, self._by_identifier[best.identifier]):
                del ordered[best]
                ordered[best] = None
            affinity[identifiers] = best
        return best

    def serves(self, identifiers: frozenset[str] | None) -> bool:
        """Whether a suitable inner layer is connected, be it at its limit or not."""
        return any(member.connected for member in self.candidates(identifiers))

    def served_within(self, identifiers: frozenset[str] | None, seconds: float) -> bool:
        """Whether a suitable inner layer was connected in the last so many seconds.

        Who has just started cannot know, and says yes: it may have taken over from another process,
        whose inner layers are on their way.
        """
        now = self._seconds()
        since = now - seconds
        if self._began >= since:
            return True
        for member in self.candidates(identifiers):
            if member.gone is None:
                if member.connected:
                    return True
                member.gone = now  # it is leaving, of which nobody tells
            if member.gone >= since:
                return True
        last_there = self._last_there
        if identifiers is None:
            return any(there >= since for there in last_there.values())
        return any(last_there.get(identifier, since - 1) >= since for identifier in identifiers)

    def candidates(self, identifiers: frozenset[str] | None) -> Iterator[Member]:
        """Return the inner layers that may serve a target, whether they can now or not."""
        if identifiers is None:
            yield from self._in_turn
        else:
            for identifier in identifiers:
                yield from self._by_identifier.get(identifier, ())

    def _remember(self, member: Member) -> None:
        """An inner layer has gone."""
        there = self._seconds() if member.gone is None else member.gone
        last_there = self._last_there
        there = max(there, last_there.pop(member.identifier, there))
        if len(last_there) >= self._max_tunnels:
            del last_there[next(iter(last_there))]
        last_there[member.identifier] = there

    def _count(self, *, suspended: bool) -> dict[str, int]:
        counts = {
            identifier: sum(member.tunnel.suspended is suspended for member in same)
            for identifier, same in self._by_identifier.items()
        }
        return {identifier: number for identifier, number in counts.items() if number}


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
