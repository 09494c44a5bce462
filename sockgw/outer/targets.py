"""Targets: which public host names, and which ports, lead to which private services."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING

from sockgw.http.networks import Networks
from sockgw.outer.policy import Policy

if TYPE_CHECKING:
    from sockgw.outer.pathrouting import Paths

__all__ = ["HTTP", "Target", "Targets"]

#: Protocols of which the gateway sees requests; of all others it sees bytes.
HTTP = frozenset(("https", "http"))

# RFC 9110, section 4.2.3: host, optional dot of the root, optional port. 255 is DNS's own bound
# (RFC 1035, section 2.3.4); it also bounds the labels to look at.
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{0,255}?)\.?(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests for one public host name go, and which of them may."""

    name: str
    """The public host name, as in the file; may be ``*.example.org`` or ``*``. For a path the path
    follows: ``www.example.org/api``. With ``tcp`` and ``udp`` a label: clients come by the port."""
    protocol: str
    """``https``, ``http``, ``tcp``, ``tls`` (passed through, found by SNI) or ``udp``. For a
    service ``http`` stands for both: the inner layer alone knows better."""
    hostname: str
    """The origin's host in lower case, IPv6 without brackets; empty for a service."""
    port: int
    """The origin's port; 0 for a service."""
    socket: str
    """The path of the origin's Unix socket, to which hostname and port only give ``Host``; or
    empty."""
    http2: bool
    """Whether the origin is spoken to in HTTP/2."""
    service: str | None
    """The name under which the inner layer's own configuration has the origin."""
    policy: Policy
    identifiers: frozenset[str] | None
    """The inner layers that may serve it; None for any."""
    preserve_host: bool
    """Whether the origin is to see the public host name in ``Host``."""
    hold: float | None
    """Seconds for which a request waits for an inner layer; None for what holds for all targets."""
    listen: str = ""
    """The endpoint of the target's own listener; only for ``tcp`` and ``udp``."""
    clients: Networks | None = None
    """Who may connect; None for everybody. Only for ``tcp``, ``tls`` and ``udp``."""
    proxy_protocol: int = 0
    """The version of the PROXY header that the origin gets; 0 for none. Only for ``tcp`` and
    ``tls``."""
    prefix: str = ""
    """What the paths of its requests begin with, in normal form and without a final slash, except
    for ``/``; empty for the host's own target."""
    strip_prefix: str = ""
    """What is taken off the beginning of the path: the prefix, or its first segments."""
    add_prefix: str = ""
    """What is put there."""

    @property
    def destination(self) -> str:
        """Where it leads, for people."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        if self.service is not None:
            to = f"service {self.service}"
            if self.protocol not in HTTP:
                to = f"{self.protocol} {to}"
        elif self.socket and self.protocol not in HTTP:
            to = f"{self.protocol} at unix:{self.socket}"
        else:
            to = f"{self.protocol}://{host}:{self.port}"
            if self.socket:
                to += f" at unix:{self.socket}"
        notes = [f"from {self.listen}"] if self.listen else []
        if self.strip_prefix or self.add_prefix:
            notes.append(f"{self.strip_prefix}/… as {self.add_prefix}/…")
        if self.http2:
            notes.append("HTTP/2")
        if self.proxy_protocol:
            notes.append(f"PROXY protocol {self.proxy_protocol}")
        return ", ".join((to, *notes))


class Targets:
    """All targets of a file, found by host in a time that does not depend on how many there are."""

    __slots__ = ("_all", "_catch_all", "_exact", "_wildcards", "ports", "sealed")

    def __init__(
        self, targets: Mapping[str, Target | Paths] | None = None, ports: Iterable[Target] = ()
    ) -> None:
        """``targets`` has hosts in the form in which they are compared, ``*.host`` or ``*`` as
        keys; ``ports`` are those with a listener of their own."""
        by_pattern = targets or {}
        #: Those that are reached by their port, and not by a host name.
        self.ports = tuple(ports)
        self._all = (*_each(by_pattern.values()), *self.ports)
        #: Whether some of them get TLS as the client sends it.
        self.sealed = any(target.protocol == "tls" for target in by_pattern.values())
        self._catch_all = by_pattern.get("*")
        self._wildcards = {
            pattern[2:]: target for pattern, target in by_pattern.items() if pattern[:2] == "*."
        }
        self._exact = {
            pattern: target for pattern, target in by_pattern.items() if pattern[0] != "*"
        }

    def match(self, host: str) -> Target | Paths | None:
        """Return the most specific target for a ``Host``, which may have a port, or None.

        For a host with path routing its paths, which say more when they are given one.
        """
        host = host.lower()
        found = self._exact.get(host)
        if found is not None:
            return found
        normal = _HOST.fullmatch(host)
        if normal is None:
            return None
        host = normal[1]
        if host[:1] == "[":
            try:
                host = f"[{IPv6Address(host[1:-1])}]"
            except AddressValueError:
                return None
        found = self._exact.get(host)
        if found is not None:
            return found
        if self._wildcards:
            dot = host.find(".")
            while dot > 0:
                found = self._wildcards.get(host[dot + 1 :])
                if found is not None:
                    return found
                dot = host.find(".", dot + 1)
        return self._catch_all

    def __iter__(self) -> Iterator[Target]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def _each(entries: Iterable[Target | Paths]) -> Iterator[Target]:
    for entry in entries:
        if isinstance(entry, Target):
            yield entry
        else:
            yield from entry
