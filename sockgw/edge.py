"""What all listeners of a process share: whom they believe, how long they wait, what they count."""

from collections.abc import Callable, Hashable
from ipaddress import ip_address
from typing import Any, Protocol

from sockgw.certificatestore import CertificateStore, Settings
from sockgw.seldom import Seldom

__all__ = ["PATIENCE", "Edge"]

PATIENCE = 10.0
"""Seconds for a PROXY header, where nobody says otherwise: as for a request's head."""

MAX_WAITING = 10_000
"""Connections that wait for it, where nobody says otherwise: as many as clients may be."""


class _Members(Protocol):
    def add(self, member: Any) -> None: ...

    def discard(self, member: Any) -> None: ...

    def __len__(self) -> int: ...


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


class Edge:
    """For the listeners of one process, however many they are.

    ``trusts(address)`` says whose PROXY headers are believed; ``patience`` is for those to come, in
    seconds; ``max_waiting`` is how many connections may wait for theirs, and ``waiting``, a set, is
    those.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        trusts: Callable[[str], bool] = _is_loopback,
        patience: float = PATIENCE,
        max_waiting: int = MAX_WAITING,
        waiting: _Members | None = None,
    ) -> None:
        self.trusts = trusts
        self.patience = patience
        self.max_waiting = max_waiting
        self.waiting: _Members = set[Hashable]() if waiting is None else waiting
        #: Connections closed for their PROXY header, or for want of one.
        self.headers_refused = 0
        #: TLS connections that ended within their handshake, by a fault or too late.
        self.handshakes_failed = 0
        #: The certificates of TLS listeners.
        self.stores: dict[Settings, CertificateStore] = {}
        self.say_header = Seldom(seconds)
        self.say_handshake = Seldom(seconds)

    def check(self) -> None:
        """Look now whether certificates have changed."""
        for store in self.stores.values():
            store.check()

    def expiries(self) -> dict[str, float]:
        """Return when the certificates end, in seconds since 1970, by file."""
        ends: dict[str, float] = {}
        for store in self.stores.values():
            ends.update(store.expiries())
        return ends
