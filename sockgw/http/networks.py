"""Sets of addresses: whose word about a client is taken, written as Express writes them."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from twisted.internet.interfaces import IAddress

__all__ = ["NAMED", "UNIX_PEER", "Networks", "canonical", "host_and_port"]

#: The names of Express's ``trust proxy`` setting, and what each stands for.
NAMED = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "linklocal": ("169.254.0.0/16", "fe80::/10"),
    "uniquelocal": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}

#: What a peer on a Unix socket counts as, here and in what the origin is told: a process of this
#: machine, like one that comes over loopback.
UNIX_PEER = "127.0.0.1"

_MAX_CACHED = 4096  # addresses
# The longest IPv6 text (45) with "%" and a zone of IFNAMSIZ - 1. It keeps long keys out of caches.
_MAX_LENGTH = 61


class Networks:
    """An immutable set of addresses."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._v4: list[IPv4Network] = []
        self._v6: list[IPv6Network] = []
        for network in networks:
            if isinstance(network, IPv4Network):
                self._v4.append(network)
            else:
                self._v6.append(network)
        self._known: dict[str, bool] = {}

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "Networks":
        """Return the set that the entries describe.

        An entry is an address, a network in CIDR notation (host bits are ignored), one of the names
        in :data:`NAMED`, or several of these with commas between. Blank ones are skipped. Raises
        ValueError, whose text names the entry, for anything else.
        """
        networks: list[IPv4Network | IPv6Network] = []
        for entry in ",".join(entries).split(","):
            text = entry.strip()
            if text:
                for part in NAMED.get(text, (text,)):
                    networks.append(_network(part))
        return cls(networks)

    def contains(self, address: str) -> bool:
        """Tell whether the address lies in the set.

        IPv4-mapped IPv6 addresses count as IPv4, zones (``%eth0``) as absent. The peer of a Unix
        socket, ``""`` or ``"unix"``, counts as :data:`UNIX_PEER`. What is no address lies in none.
        """
        known = self._known.get(address)
        if known is not None:
            return known
        try:
            parsed = _parse(UNIX_PEER if address in ("", "unix") else address)
        except ValueError:
            return False
        if isinstance(parsed, IPv4Address):
            result = any(parsed in network for network in self._v4)
        else:
            result = any(parsed in network for network in self._v6)
        if len(self._known) >= _MAX_CACHED:
            self._known.clear()
        self._known[address] = result
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Networks):
            return NotImplemented
        return self._v4 == other._v4 and self._v6 == other._v6

    def __hash__(self) -> int:
        return hash((*self._v4, *self._v6))

    def __bool__(self) -> bool:
        return bool(self._v4 or self._v6)

    def __repr__(self) -> str:
        return f"Networks({', '.join(map(str, [*self._v4, *self._v6]))})"


@lru_cache(maxsize=_MAX_CACHED)
def canonical(address: str) -> str:
    """Return the one way to write an address: RFC 5952, without zone, IPv4-mapped ones as IPv4.

    Raises ValueError for what is no address.
    """
    return str(_parse(address))


def _parse(text: str) -> IPv4Address | IPv6Address:
    if len(text) > _MAX_LENGTH:
        raise ValueError("too long for an address")
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        # By its number: that leaves the zone behind.
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        # A zone is refused: it would stand for the address in every zone.
        network = ip_network(text if "%" not in text else "", strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an address, nor a network such as 10.0.0.0/8, "
            f"nor one of {', '.join(NAMED)}"
        ) from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def host_and_port(address: IAddress) -> tuple[str, int]:
    """Return a socket's IP and port; "" and 0 for what has none.

    IPv4 in IPv6 (RFC 4291, section 2.5.5.2) as IPv4.
    """
    host = str(getattr(address, "host", ""))
    if host.lower().startswith("::ffff:") and "." in host:
        host = host[len("::ffff:") :]
    return host.partition("%")[0], int(getattr(address, "port", 0))
