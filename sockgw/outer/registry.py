"""Which inner layers are connected, and which of them serves a request.

A client's connection stays with the inner layer that served it before, while that one lives. A new
one goes to the tunnel with the fewest streams, and among equals to the one that was chosen longest
ago, so that idle replicas take turns.
"""

from collections import Counter
from collections.abc import Iterator
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
    secret: bytes = field(default=b"", repr=False)  #: which it then has to know
    chosen: int = 0  #: when it was last chosen, by a counter


Affinity = dict[frozenset[str] | None, Member]
"""Which member a client's connection stays with, by the identifiers that a target allows."""


class Registry:
    """The connected inner layers."""

    def __init__(self, max_tunnels: int, max_per_key: int | None = None) -> None:
        """``max_per_key`` keeps one key from taking the places of all others; None: no bound."""
        self._max_tunnels = max_tunnels
        self._max_per_key = max_tunnels if max_per_key is None else max_per_key
        self._per_key: Counter[bytes] = Counter()
        self._members: dict[Tunnel, Member] = {}
        self._by_id: dict[bytes, Member] = {}
        self._by_identifier: dict[str, list[Member]] = {}
        self._turn = count(1)

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
        """A tunnel has lost its carrier; return whose it is."""
        return self._members.get(tunnel)

    def resumed(self, member: Member) -> None:
        """A tunnel has a carrier again."""

    def add(self, member: Member) -> None:
        """An inner layer has proved who it is."""
        self._members[member.tunnel] = member
        self._by_identifier.setdefault(member.identifier, []).append(member)
        self._per_key[member.fingerprint] += 1
        if member.tunnel_id:
            self._by_id[member.tunnel_id] = member

    def remove(self, tunnel: Tunnel) -> Member | None:
        """A tunnel has ended; return whose it was."""
        member = self._members.pop(tunnel, None)
        if member is not None:
            self._by_id.pop(member.tunnel_id, None)
            same = self._by_identifier[member.identifier]
            same.remove(member)
            if not same:
                del self._by_identifier[member.identifier]
            self._per_key[member.fingerprint] -= 1
            if not self._per_key[member.fingerprint]:
                del self._per_key[member.fingerprint]
        return member

    def identifiers(self) -> dict[str, int]:
        """Return how many tunnels each identifier has."""
        return {identifier: len(same) for identifier, same in self._by_identifier.items()}

    def streams(self) -> int:
        """Return how many streams are open."""
        return sum(len(tunnel.session.streams) for tunnel in self._members)

    def choose(self, identifiers: frozenset[str] | None, affinity: Affinity) -> Member | None:
        """Return who serves a target that allows these identifiers (None: any).

        None where no suitable inner layer is connected or each is at its limit.
        """
        known = affinity.get(identifiers)
        if known is not None and known.tunnel.available:
            return known
        best: Member | None = None
        fewest = 0
        for member in self._candidates(identifiers):
            if member.tunnel.available:
                streams = len(member.tunnel.session.streams)
                if (
                    best is None
                    or streams < fewest
                    or (streams == fewest and member.chosen < best.chosen)
                ):
                    best, fewest = member, streams
        if best is not None:
            best.chosen = next(self._turn)
            affinity[identifiers] = best
        return best

    def serves(self, identifiers: frozenset[str] | None) -> bool:
        """Whether a suitable inner layer is connected, be it at its limit or not."""
        return next(self._candidates(identifiers), None) is not None

    def _candidates(self, identifiers: frozenset[str] | None) -> Iterator[Member]:
        if identifiers is None:
            yield from self._members.values()
        else:
            for identifier in identifiers:
                yield from self._by_identifier.get(identifier, ())
