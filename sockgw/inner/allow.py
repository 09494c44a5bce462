"""Which origins an inner layer may be asked for, judged by the address that is really dialled.

A name says little about where it leads: whoever controls its DNS record chooses the address. So a
request is judged twice: by name before anything is resolved, and by address before anything is
dialled. An entry is one of

- ``db.internal`` or ``*.example.org``: that name, or any name below it, wherever it leads;
- ``10.0.0.7``, ``fd00::7``, ``10.0.0.0/8``, ``[fd00::]/8``: addresses, whatever name led there;
- ``*``: everything;

each with ``:PORT`` where only that port is meant.

A Unix socket gives what its server gives to whoever may open it: ``/var/run/docker.sock`` is root's
power over the machine. So none may be asked for, with a list or without, unless it is named:

- ``unix:/run/app.sock``: that path; ``unix:/run/apps/*``: whatever lies in that directory, but not
  further below.

Paths are compared, and dialled, in their normal form. Symbolic links are followed: an entry trusts
whoever may write where it points.

Addresses that serve credentials to whoever asks (cloud metadata), and those that are not one host
in the network, are refused unless an address entry that lies within them says otherwise: neither
``*`` nor ``0.0.0.0/0`` nor a name does.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from posixpath import dirname, normpath

__all__ = ["AllowList", "socket_path"]

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

_GUARDED: tuple[_Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local; in it the metadata services of most clouds
        "fe80::/10",
        "100.100.100.200",  # metadata: Alibaba Cloud
        "168.63.129.16",  # Azure's wire server
        "192.0.0.192",  # metadata: Oracle Cloud
        "fd00:ec2::254",  # metadata: Amazon
        "fd20:ce::254",  # metadata: Google
        "fd00:42::42",  # metadata: Scaleway
        "0.0.0.0/8",  # "this host" (RFC 1122, section 3.2.1.3): Linux takes it for loopback
        "::",
        "224.0.0.0/4",  # multicast
        "ff00::/8",
        "255.255.255.255",  # broadcast
    )
)

_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291, section 2.5.5.2
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))  # RFC 6052, RFC 8215

# RFC 1123, section 2.1, and the underscore that names in private networks have.
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
# 127.1, 0x7f.1 and 2130706433 are addresses to getaddrinfo, so no entry may take them for names.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PORT = re.compile(r"[0-9]{1,5}")

_UNIX = "unix:"
_MAX_SOCKET = 107  # bytes of a Unix socket's path: sun_path of Linux, without its end


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry; ``port`` is None for every port."""

    pattern: str | _Network  # a name in lower case, "*.name", "*", or a network
    port: int | None

    def is_for(self, port: int) -> bool:
        return self.port is None or self.port == port

    def matches_name(self, name: str) -> bool:
        if not isinstance(self.pattern, str):
            return False
        if self.pattern.startswith("*"):
            return name.endswith(self.pattern[1:])
        return name == self.pattern

    def contains(self, address: _Address) -> bool:
        return not isinstance(self.pattern, str) and address in self.pattern

    def lies_within(self, network: _Network) -> bool:
        pattern = self.pattern
        if isinstance(pattern, IPv4Network):
            return isinstance(network, IPv4Network) and pattern.subnet_of(network)
        if isinstance(pattern, IPv6Network):
            return isinstance(network, IPv6Network) and pattern.subnet_of(network)
        return False


class AllowList:
    """Says whether a name, and then an address, may be dialled.

    Without entries everything is allowed but the guarded addresses and Unix sockets.
    """

    def __init__(
        self,
        entries: tuple[_Entry, ...] = (),
        sockets: frozenset[str] = frozenset(),
        *,
        listed: bool = False,
    ) -> None:
        """``sockets`` are paths, and directories with ``/*`` behind them."""
        self._entries = entries
        self._sockets = sockets
        #: Whether there is a list at all.
        self.listed = listed

    @classmethod
    def parse(cls, entries: Iterable[str], sockets: Iterable[str] = ()) -> "AllowList":
        """Read entries as the module's docstring has them.

        ``sockets`` are paths of Unix sockets that are allowed besides, in normal form; they make no
        list. Raises ValueError naming the entry that is wrong.
        """
        texts = [entry.strip() for entry in entries]
        named = {_socket_entry(text) for text in texts if text.startswith(_UNIX)}
        others = tuple(_parse(text) for text in texts if not text.startswith(_UNIX))
        return cls(others, frozenset(named.union(sockets)), listed=bool(texts))

    def permits_socket(self, path: str) -> bool:
        """Whether the Unix socket at that path, in normal form, may be dialled."""
        directory = dirname(path)
        return path in self._sockets or f"{directory.rstrip('/')}/*" in self._sockets

    def permits_name(self, hostname: str, port: int) -> bool:
        """Whether it is worth resolving the name: some address of it could be permitted.

        Asking first keeps names that are of no use here from reaching a DNS server. ``hostname``
        may be an address too.
        """
        name = _normalise(hostname)
        try:
            ip_address(name)
        except ValueError:
            return not self.listed or any(
                entry.is_for(port)
                and (entry.matches_name(name) or not isinstance(entry.pattern, str))
                for entry in self._entries
            )
        return self.permits(name, name, port)

    def permits(self, hostname: str, address: str, port: int) -> bool:
        """Whether that address, to which ``hostname`` was resolved, may be dialled.

        Raises ValueError where ``address`` is none.
        """
        name = _normalise(hostname)
        number = _unmapped(ip_address(_normalise(address)))
        entries = [entry for entry in self._entries if entry.is_for(port)]
        for reached in _reached(number):
            for network in _GUARDED:
                if reached in network and not any(
                    entry.contains(reached) and entry.lies_within(network) for entry in entries
                ):
                    return False
        return not self.listed or any(
            entry.matches_name(name) or entry.contains(number) for entry in entries
        )


def socket_path(path: str) -> str:
    """Return the path of a Unix socket in normal form.

    Raises ValueError where it is not absolute, has a control character, or more than 107 bytes.
    """
    normal = "/" + normpath(path).lstrip("/")
    if not path.startswith("/") or not path.isprintable() or len(normal.encode()) > _MAX_SOCKET:
        raise ValueError(f"{path!r} is no absolute path of at most {_MAX_SOCKET} bytes")
    return normal


def _socket_entry(text: str) -> str:
    path = text.removeprefix(_UNIX)
    name = path.rpartition("/")[2]
    try:
        normal = socket_path(path)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if path.endswith("/") or ("*" in path and (name != "*" or path.count("*") > 1)):
        raise ValueError(f"{text!r}: expected unix:/PATH, or unix:/DIRECTORY/*")
    return normal


def _normalise(host: str) -> str:
    """Return a name or address in lower case, without brackets or final dot."""
    return host.removeprefix("[").removesuffix("]").removesuffix(".").lower()


def _unmapped(address: _Address) -> _Address:
    """Return the IPv4 address that the system dials for an IPv4-mapped one."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _reached(address: _Address) -> list[_Address]:
    """Return the address with the IPv4 one that a translator or relay would make of it.

    The second counts against an address only. That 10.0.0.1 is allowed does not allow what calls
    itself 10.0.0.1 behind somebody's relay.
    """
    if isinstance(address, IPv6Address):
        if address.sixtofour is not None:  # RFC 3056
            return [address, address.sixtofour]
        if address.teredo is not None:  # RFC 4380: server and client
            return [address, *address.teredo]
        if any(address in network for network in _NAT64):
            return [address, IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


def _parse(text: str) -> _Entry:
    host, port = _split(text.strip(), text)
    if port is not None and not (_PORT.fullmatch(port) and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: {port!r} is not a port number")
    return _Entry(_pattern(host, text), None if port is None else int(port))


def _split(entry: str, text: str) -> tuple[str, str | None]:
    """Return the host, with its prefix length, and the text after the colon of the port."""
    if not entry.startswith("["):
        if entry.count(":") > 1:  # IPv6 without brackets leaves no room for a port
            return entry, None
        host, colon, port = entry.partition(":")
        return host, port if colon else None
    address, bracket, rest = entry[1:].partition("]")
    prefix, colon, port = rest.partition(":")
    if not bracket or ":" not in address or (prefix and not prefix.startswith("/")):
        raise ValueError(f"{text!r}: brackets stand around an IPv6 address")
    return address + prefix, port if colon else None


def _pattern(host: str, text: str) -> str | _Network:
    if "/" in host or ":" in host or _NUMERIC.fullmatch(host.lower()):
        try:
            return _unmapped_network(ip_network(host))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
    name = host.removesuffix(".").lower()
    if not name.isascii():
        raise ValueError(f"{text!r}: write the name in its ASCII form (xn--...)")
    if name == "*" or _NAME.fullmatch(name.removeprefix("*.")):
        return name
    raise ValueError(f"{text!r}: neither a host name nor an address; expected HOST[:PORT] or CIDR")


def _unmapped_network(network: _Network) -> _Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        address = IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return IPv4Network((address, network.prefixlen - 96))
    return network
