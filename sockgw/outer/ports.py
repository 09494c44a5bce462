"""Listeners of targets that have one of their own, as the targets file says at the time.

New ones are opened before anything else changes: where one cannot be, nothing changes at all. Those
that go are closed and leave the connections that came by them alone; datagrams have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from socket import has_dualstack_ipv6
from typing import Any, Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.edge import Edge
from sockgw.endpoints import describe, listen_error, server_endpoint, udp_address
from sockgw.listeners import close_listener
from sockgw.outer.rawclient import RawFactory
from sockgw.outer.targets import Target
from sockgw.outer.udp import UDPListener
from sockgw.udpport import UDPPort
from sockgw.yamlfile import ConfigError

__all__ = ["TargetPorts"]

_log = Logger()


class _Builder(Protocol):
    """What makes something of who comes by a listener."""

    #: Whose clients come.
    target: Target


class _Open:
    """A listener and what stands behind it."""

    def __init__(self, port: IListeningPort, builder: _Builder) -> None:
        self.port = port
        self.builder = builder


class TargetPorts:
    """Keeps the listeners of TCP and UDP targets."""

    def __init__(
        self,
        reactor: Any,
        make_tcp: Callable[[Target], RawFactory],
        make_udp: Callable[[Target], UDPListener],
        *,
        reuse_port: bool,
        edge: Edge | None = None,
        others: Callable[[], Iterable[IListeningPort]] = tuple,
    ) -> None:
        """``edge`` is what all listeners of the process share, ``others`` are those it has."""
        self._reactor = reactor
        self._others = others
        self._make_tcp = make_tcp
        self._make_udp = make_udp
        self._reuse_port = reuse_port
        self._edge = edge
        self._open: dict[str, _Open] = {}  # by the endpoint's description
        self._closed = False

    def use(self, targets: Iterable[Target]) -> None:
        """Have exactly the listeners of these targets.

        Raises ConfigError, and leaves all as it was, where one cannot be listened on.
        """
        if self._closed:  # they are a successor's, perhaps
            return
        wanted = {target.listen: target for target in targets}
        added: dict[str, _Open] = {}
        try:
            for description, target in wanted.items():
                if description not in self._open:
                    added[description] = self._listen(target)
            self._check_shared({**self._open, **added}, wanted)
        except ConfigError:
            for new in added.values():
                new.port.stopListening()
            raise
        for description in [each for each in self._open if each not in wanted]:
            Deferred.fromCoroutine(self._close(self._open.pop(description)))
        for new in added.values():
            target = new.builder.target
            _log.info("listening on {where} for {target}", where=_where(new), target=target.name)
        self._open.update(added)
        for description, target in wanted.items():
            self._open[description].builder.target = target

    def close(self) -> Deferred[Any]:
        """Listen no longer, for good; fires when that is so. Who has connected is served."""
        self._closed = True
        closing = [Deferred.fromCoroutine(self._close(each)) for each in self._open.values()]
        self._open.clear()
        return DeferredList(closing)

    def _check_shared(self, listeners: Mapping[str, _Open], wanted: Mapping[str, Target]) -> None:
        """See that no two listen on one address, as the system would let them with SO_REUSEPORT.

        Each would get some of the other's clients.
        """
        taken = {_address(port): "" for port in self._others()}
        for description, target in wanted.items():
            address = _address(listeners[description].port)
            if address in taken:
                by = f" by target {taken[address]}" if taken[address] else ""
                raise ConfigError(f"target {target.name}: listen: {target.listen}: taken{by}")
            taken[address] = target.name

    def _listen(self, target: Target) -> _Open:
        try:
            if target.protocol == "udp":
                return self._listen_udp(target)
            return self._listen_tcp(target)
        except (ValueError, OSError, CannotListenError) as error:
            detail = listen_error(target.listen, error)
            raise ConfigError(f"target {target.name}: listen: {detail}") from None

    def _listen_tcp(self, target: Target) -> _Open:
        factory = self._make_tcp(target)
        endpoint = server_endpoint(
            self._reactor, target.listen, reuse_port=self._reuse_port, edge=self._edge
        )
        results: list[Any] = []
        # Twisted's endpoints know at once.
        endpoint.listen(factory).addBoth(results.append)
        if not results:
            raise ValueError("this kind of endpoint takes its time")
        result: Any = results[0]
        if isinstance(result, Failure):
            result.raiseException()
        return _Open(result, factory)

    def _listen_udp(self, target: Target) -> _Open:
        number, interface = udp_address(target.listen)
        if not interface and has_dualstack_ipv6():
            interface = "::"
        listener = self._make_udp(target)
        port = UDPPort(self._reactor, number, listener, interface, reuse_port=self._reuse_port)
        port.startListening()
        return _Open(port, listener)

    async def _close(self, each: _Open) -> None:
        _log.info("no longer listening on {where}", where=_where(each))
        if isinstance(each.builder, UDPListener):
            each.builder.end()
            await maybeDeferred(each.port.stopListening)
        else:
            await close_listener(self._reactor, each.port)


def _address(port: IListeningPort) -> tuple[Any, ...]:
    """Return where a port listens, in a form that is equal for equal addresses."""
    address: Any = port.getHost()
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return (address,)
    host = "" if address.host in ("::", "0.0.0.0") else address.host
    return (address.type, host, address.port)


def _where(each: _Open) -> str:
    return describe(each.port, "udp" if isinstance(each.builder, UDPListener) else "tcp")
