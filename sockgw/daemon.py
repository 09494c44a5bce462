"""What both services have in common as daemons: the log, listening, SIGHUP, and systemd."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.clock import make_monotonic
from sockgw.endpoints import listen_error, server_endpoint
from sockgw.logs import install
from sockgw.notify import Notifier

__all__ = ["Daemon"]


class Daemon(MultiService):
    """The service that ``makeService`` returns.

    ``name`` is the command's; ``twistd`` are twistd's own options, where it started us. Subclasses
    call :meth:`listen` in ``privilegedStartService``, and override :meth:`reload`.
    """

    _log = Logger()

    def __init__(
        self, name: str, reactor: Any, twistd: Mapping[str, Any] | None, log_format: str
    ) -> None:
        super().__init__()
        make_monotonic(reactor)  # before anything is scheduled
        self.command = name
        self.reactor = reactor
        self._twistd = twistd
        self._log_format = log_format
        self._notifier = Notifier(os.environ, reactor)
        self._previous_hangup: Any = None

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        install(parent, self._twistd, self._log_format)

    def startService(self) -> None:
        _raise_descriptor_limit()
        super().startService()
        self._previous_hangup = signal.signal(signal.SIGHUP, self._hangup)
        self.reactor.callWhenRunning(self._notifier.ready)

    def stopService(self) -> Any:
        self._notifier.stopping()
        signal.signal(signal.SIGHUP, self._previous_hangup or signal.SIG_DFL)
        return super().stopService()

    def reload(self) -> None:
        """Read again what may have changed (SIGHUP)."""

    def listen(
        self,
        option: str,
        descriptions: tuple[str, ...],
        factory: IProtocolFactory,
        opened: Callable[[IListeningPort], None],
    ) -> None:
        """Listen on each endpoint now, or end the process with one sentence.

        ``opened`` is called with each port that listens.
        """
        for description in descriptions:
            try:
                listening: Deferred[IListeningPort] = server_endpoint(
                    self.reactor, description
                ).listen(factory)
            except (ValueError, OSError) as error:
                raise self._exit(listen_error(description, error, option)) from None
            failures: list[Failure] = []
            listening.addCallbacks(opened, failures.append)
            if failures:
                raise self._exit(_sentence(description, failures[0], option))
            # Twisted's endpoints know at once; a plugin's may take its time.
            listening.addCallback(self._check_late, description, failures, option)

    def _check_late(
        self, result: object, description: str, failures: list[Failure], option: str
    ) -> None:
        for failure in failures:
            self._log.critical("{problem}", problem=_sentence(description, failure, option))

    def _exit(self, sentence: str) -> SystemExit:
        return SystemExit(f"{self.command}: {sentence}")

    def _hangup(self, number: int, frame: object) -> None:
        self.reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        self._log.info("reloading (SIGHUP)")
        self._notifier.reloading()
        try:
            self.reload()
        finally:
            self._notifier.ready()


def _sentence(description: str, failure: Failure, option: str) -> str:
    return listen_error(description, cast(Exception, failure.value), option)


def _raise_descriptor_limit() -> None:
    """Use what the system allows: the usual soft limit, 1,024, is for programs that use select(2),
    and a tenth of the connections that our own limits let in."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
