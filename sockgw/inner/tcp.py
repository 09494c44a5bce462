"""A TCP connection to a name: resolve, keep the addresses that are permitted, race them.

Twisted's HostnameEndpoint is not used for three reasons. It refuses names with an underscore, which
private networks are full of. It waits out its delay even when an address was refused at once, so
that ``localhost`` with a server on 127.0.0.1 only costs 300 ms a connection. And it cannot
tell a name without addresses from one whose addresses are all forbidden.
"""

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["NotPermitted", "TCPEndpoint", "host_and_port", "is_loopback", "resolve", "unwrap"]

_ATTEMPT_DELAY = 0.25  # seconds between attempts: RFC 8305, section 5
_TIMEOUT = 30.0  # seconds for one attempt: Twisted's own default

# Names being resolved in this process. A look-up waits for one of a few threads and cannot be taken
# back, so streams that are opened and reset at once would pile them up without end.
_MAX_RESOLUTIONS = 4_096

_Address = IPv4Address | IPv6Address


class NotPermitted(Exception):
    """The name has addresses, and none of them may be dialled."""


def host_and_port(host: str, port: int) -> str:
    """Return how an authority is written: ``name:80``, ``[::1]:80``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a connection to that name or address cannot leave this machine."""
    host = host.removesuffix(".").lower()
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def unwrap(protocol: Any) -> None:
    """Let what arrives come to the protocol of a new connection itself.

    Twisted's endpoints leave a layer of theirs between, whose work is done.
    """
    protocol.transport.protocol = protocol


async def resolve(
    reactor: Any, host: str, port: int, permits: Callable[[str], bool]
) -> list[_Address]:
    """Return those addresses of a name that are permitted, at least one.

    Raises DNSLookupError or NotPermitted.
    """
    try:
        # Twisted's resolver never answers where getaddrinfo raises anything but gaierror.
        host.encode("idna")
        if not host.isprintable():
            raise UnicodeError
    except UnicodeError:
        raise DNSLookupError(f"{host!r} is not a host name") from None
    if _Resolution.under_way >= _MAX_RESOLUTIONS:
        raise DNSLookupError("too many names are being resolved")
    resolution = _Resolution()
    reactor.nameResolver.resolveHostName(resolution, host, port)
    try:
        addresses = await resolution.done
    except CancelledError:
        raise DNSLookupError(f"no answer about {host} in time") from None
    if not addresses:
        raise DNSLookupError(f"no address for {host}")
    return _permitted(host, addresses, permits)


def _literal(host: str, port: int) -> _Address | None:
    """Return the address that the resolver would make of a plain address; None for all else.

    That is also what getaddrinfo alone takes for one: ``127.1``, and IPv6 with a zone.
    """
    try:
        if ":" in host:
            return IPv6Address("TCP", inet_ntop(AF_INET6, inet_pton(AF_INET6, host)), port)
        return IPv4Address("TCP", inet_ntop(AF_INET, inet_pton(AF_INET, host)), port)
    except (OSError, ValueError):
        return None


def _permitted(
    host: str, addresses: list[_Address], permits: Callable[[str], bool]
) -> list[_Address]:
    permitted = [address for address in addresses if permits(address.host)]
    if not permitted:
        raise NotPermitted(f"no address of {host} may be dialled")
    return permitted


@implementer(IStreamClientEndpoint)
class TCPEndpoint:
    """Connects to the first address of a name that answers, with TCP_NODELAY set.

    ``reactor`` resolves, connects and keeps time. ``permits`` is asked for each address, as text.
    ``timeout`` is in seconds and for each attempt; a bound on the whole is the caller's.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        permits: Callable[[str], bool] = lambda address: True,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._permits = permits
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<TCPEndpoint {host_and_port(self._host, self._port)}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the connected protocol.

        Fails with DNSLookupError, NotPermitted, or the last address's ConnectError.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        literal = _literal(self._host, self._port)
        if literal is None:
            permitted = await resolve(self._reactor, self._host, self._port, self._permits)
        else:  # an address needs no thread, and no place among those who wait for one
            permitted = _permitted(self._host, [literal], self._permits)
        return await _Race(self._reactor, map(self._attempt, permitted), factory).start()

    def _attempt(self, address: _Address) -> IStreamClientEndpoint:
        endpoint = TCP6ClientEndpoint if isinstance(address, IPv6Address) else TCP4ClientEndpoint
        return endpoint(self._reactor, address.host, self._port, self._timeout)


@implementer(IResolutionReceiver)
class _Resolution:
    """Collects the addresses of one name."""

    under_way = 0  #: of all of them, those without an answer

    def __init__(self) -> None:
        _Resolution.under_way += 1
        self._addresses: list[_Address] = []
        # Without a canceller: the answer that comes after a cancellation is swallowed.
        self.done: Deferred[list[_Address]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            self._addresses.append(address)

    def resolutionComplete(self) -> None:
        _Resolution.under_way -= 1
        self.done.callback(self._addresses)


class _Race:
    """Attempts to connect, each begun when the one before failed or took its time.

    The first that succeeds wins, and the others are cancelled.
    """

    def __init__(
        self, clock: Any, endpoints: Iterable[IStreamClientEndpoint], factory: IProtocolFactory
    ) -> None:
        self._clock = clock
        self._untried = iter(endpoints)
        self._factory = factory
        self._running: list[Deferred[IProtocol]] = []
        self._timer: IDelayedCall | None = None
        self._over = False
        self._result: Deferred[IProtocol] = Deferred(lambda _: self._stop())

    def start(self) -> Deferred[IProtocol]:
        """Fires with the winner's protocol, or fails as the last attempt did."""
        self._next()
        return self._result

    def _next(self, failure: Failure | None = None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        endpoint = next(self._untried, None)
        if endpoint is not None:
            self._timer = self._clock.callLater(_ATTEMPT_DELAY, self._next)
            attempt = endpoint.connect(self._factory)
            self._running.append(attempt)
            attempt.addCallbacks(self._won, self._lost, (attempt,), errbackArgs=(attempt,))
        elif failure is not None and not self._running:
            self._over = True
            self._result.errback(failure)

    def _won(self, protocol: Any, attempt: Deferred[IProtocol]) -> None:
        self._running.remove(attempt)
        self._stop()
        protocol.transport.setTcpNoDelay(True)
        unwrap(protocol)
        self._result.callback(protocol)

    def _lost(self, failure: Failure, attempt: Deferred[IProtocol]) -> None:
        self._running.remove(attempt)
        if not self._over:
            self._next(failure)

    def _stop(self) -> None:
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for attempt in list(self._running):
            attempt.cancel()
