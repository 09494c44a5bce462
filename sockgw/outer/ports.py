"""Listeners of targets that have one of their own, as the targets file says at the time.

New ones are opened before anything else changes: where one cannot be, nothing changes at all. Those
that go are closed and leave the connections that came by them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.endpoints import describe, listen_error, server_endpoint
from sockgw.listeners import close_listener
from sockgw.outer.rawclient import RawFactory
from sockgw.outer.targets import Target
from sockgw.yamlfile import ConfigError

__all__ = ["TargetPorts"]

_log = Logger()


class _Open:
    """A listener and who builds its connections."""

    def __init__(self, port: IListeningPort, factory: RawFactory) -> None:
        self.port = port
        self.factory = factory


class TargetPorts:
    """Keeps the listeners of TCP targets."""

    def __init__(
        self, reactor: Any, make: Callable[[Target], RawFactory], *, reuse_port: bool
    ) -> None:
        self._reactor = reactor
        self._make = make
        self._reuse_port = reuse_port
        self._open: dict[str, _Open] = {}  # by the endpoint's description

    def use(self, targets: Iterable[Target]) -> None:
        """Have exactly the listeners of these targets.

        Raises ConfigError, and leaves all as it was, where one cannot be listened on.
        """
        wanted = {target.listen: target for target in targets}
        added: dict[str, _Open] = {}
        try:
            for description, target in wanted.items():
                if description not in self._open:
                    added[description] = self._listen(target)
        except ConfigError:
            for new in added.values():
                new.port.stopListening()
            raise
        for description in [each for each in self._open if each not in wanted]:
            self._close(self._open.pop(description).port)
        for new in added.values():
            _log.info(
                "listening on {where} for {target}",
                where=describe(new.port, "tcp"),
                target=new.factory.target.name,
            )
        self._open.update(added)
        for description, target in wanted.items():
            self._open[description].factory.target = target

    def close(self) -> Deferred[Any]:
        """Listen no longer; fires when that is so. Who has connected is served."""
        closing = [self._close(each.port) for each in self._open.values()]
        self._open.clear()
        return DeferredList(closing)

    def _listen(self, target: Target) -> _Open:
        factory = self._make(target)
        results: list[Any] = []
        result: Any
        try:
            endpoint = server_endpoint(self._reactor, target.listen, reuse_port=self._reuse_port)
            # Twisted's endpoints know at once.
            endpoint.listen(factory).addBoth(results.append)
        except (ValueError, OSError) as error:
            raise _problem(target, error) from None
        result = results[0] if results else ValueError("this kind of endpoint takes its time")
        if isinstance(result, Failure):
            result = result.value
        if isinstance(result, BaseException):
            raise _problem(target, result)
        return _Open(result, factory)

    def _close(self, port: IListeningPort) -> Deferred[None]:
        _log.info("no longer listening on {where}", where=describe(port, "tcp"))
        return Deferred.fromCoroutine(close_listener(self._reactor, port))


def _problem(target: Target, error: BaseException) -> ConfigError:
    return ConfigError(f"target {target.name}: listen: {listen_error(target.listen, error)}")
