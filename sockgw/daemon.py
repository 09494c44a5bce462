"""What both services have in common as daemons: the log, listening, signals, and systemd."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python.failure import Failure

from sockgw.edge import Edge
from sockgw.endpoints import BeforeTLS, listen_error, server_endpoint
from sockgw.logs import install
from sockgw.monotonic import make_monotonic
from sockgw.notify import Notifier

__all__ = ["Daemon", "choose_reactor"]


# Objects that may be in a cycle, made and not yet freed, before Python looks for such cycles.
# With its own 700 it looks several times a turn, at streams that are merely open.
_COLLECT_AFTER = 20_000


def choose_reactor() -> None:
    """Have this process run on our reactor, where there is epoll and ``twistd`` names no other."""
    if "twisted.internet.reactor" not in sys.modules:
        with suppress(ImportError):
            from sockgw.reactor import Reactor

            reactor = Reactor()
            installReactor(reactor)
            reactor.callWhenRunning(_spare_the_collector)


def _spare_the_collector() -> None:
    """What is there once all is started stays: it need not be looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


class Daemon(MultiService):
    """The service that ``makeService`` returns.

    ``name`` is the command's; ``twistd`` are twistd's own options, where it started us. Subclasses
    call :meth:`listen` in ``privilegedStartService``, and override :meth:`reload` and
    :meth:`drain`.

    The first SIGTERM or SIGINT drains the service, after which the process exits with status 0; a
    second one ends it at once, whatever the reactor is doing, with the status of that signal.
    """

    _log = Logger()

    def __init__(
        self, name: str, reactor: Any, twistd: Mapping[str, Any] | None, log_format: str
    ) -> None:
        super().__init__()
        make_monotonic(reactor)  # before anything is scheduled
        self.command = name
        self.reactor = reactor
        #: What this process's listeners share; subclasses may have their own.
        self.edge = Edge(reactor.seconds)
        self._twistd = twistd
        self._log_format = log_format
        self._notifier = Notifier(os.environ, reactor)
        self._previous: dict[int, Any] = {}  # handlers of signals
        self._drained: Deferred[None] | None = None  # since a signal has come

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        install(parent, self._twistd, self._log_format)

    def startService(self) -> None:
        _raise_descriptor_limit()
        super().startService()
        self._handle(signal.SIGHUP, self._hangup)
        self.reactor.callWhenRunning(self._reactor_runs)

    def stopService(self) -> Any:
        if self._drained is None:
            self._notifier.stopping()
        else:
            self._drained.cancel()
        for number, previous in self._previous.items():
            if signal.getsignal(number) != signal.SIG_DFL:  # else the next one ends us at once
                signal.signal(number, previous or signal.SIG_DFL)
        self._previous.clear()
        return super().stopService()

    def reload(self) -> None:
        """Read again what may have changed (SIGHUP)."""

    def drain(self) -> Deferred[None] | None:
        """Finish what is under way and take nothing new; then the service is stopped.

        The Deferred is cancelled where the service is stopped before.
        """
        return None

    @property
    def draining(self) -> bool:
        """Whether a signal has told it to end."""
        return self._drained is not None

    def listen(
        self,
        option: str,
        descriptions: tuple[str, ...],
        factory: IProtocolFactory,
        opened: Callable[[IListeningPort], None],
        *,
        reuse_port: bool = False,
        before_tls: BeforeTLS | None = None,
    ) -> None:
        """Listen on each endpoint now, or end the process with one sentence.

        ``opened`` is called with each port that listens; ``reuse_port`` and ``before_tls`` as for
        :func:`sockgw.endpoints.server_endpoint`.
        """
        for description in descriptions:
            try:
                listening: Deferred[IListeningPort] = server_endpoint(
                    self.reactor,
                    description,
                    reuse_port=reuse_port,
                    edge=self.edge,
                    before_tls=before_tls,
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

    def _reactor_runs(self) -> None:
        # The reactor has installed its own handlers just before. They would have the process end
        # by the signal once all is done, as if it had been killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            # A shell's job in the background ignores SIGINT.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number, self._terminate)
        self._notifier.ready()

    def _handle(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self._previous[number] = signal.signal(number, handler)

    def _terminate(self, number: int, frame: object) -> None:
        # Now, and not in the reactor: it may be stuck.
        for each in (signal.SIGTERM, signal.SIGINT):
            if each in self._previous:
                signal.signal(each, signal.SIG_DFL)
        self.reactor.callFromThread(self._leave, signal.Signals(number).name)

    def _leave(self, name: str) -> None:
        if self._drained is not None or not self.running:
            return
        self._log.info("ending ({signal})", signal=name)
        self._notifier.stopping()
        self._drained = maybeDeferred(cast(Callable[[], Deferred[None]], self.drain))
        self._drained.addErrback(self._not_drained)
        self._drained.addCallback(self._stop)

    def _not_drained(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("draining failed", failure)

    def _stop(self, _: object) -> None:
        with suppress(ReactorNotRunning):  # somebody was faster
            self.reactor.stop()

    def _hangup(self, number: int, frame: object) -> None:
        self.reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        self._log.info("reloading (SIGHUP)")
        if not self.draining:
            self._notifier.reloading()
        try:
            self.reload()
        finally:
            if not self.draining:
                self._notifier.ready()


def _sentence(description: str, failure: Failure, option: str) -> str:
    return listen_error(description, cast(Exception, failure.value), option)


def _raise_descriptor_limit() -> None:
    """Use what the system allows: the usual soft limit, 1,024, is for programs that use select(2),
    and a tenth of the connections that our own limits let in."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
