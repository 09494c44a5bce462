"""The reactor of the services: Twisted's epoll reactor, with less to do for each event.

Twisted asks epoll whether a socket can be written to before it writes, and then takes the question
back: two system calls and another event for each answer, though nearly every socket can. Here what
was written in a turn is sent before the reactor waits for the next one, once per socket; only what
the socket does not take is left to epoll.

Before that come the calls that :meth:`Reactor.at_turn_end` was asked for, which is what
``callLater(0)`` is for elsewhere: they can put into one write what a turn has brought together, and
cost no timer.

A turn takes few events, though more may be there: what it has written is then on its way to the
next process, which works on it while this one goes on. With all at once, a load of fifty clients
passes through both layers like a lump, and each stands idle while the other works.

The last thing is a context that Twisted makes for each event, to name it in its log. Ours does
not show it.

Rejected: sending from within ``write``. A head and its body would leave in two system calls, and
a transport would call its producer from within the producer's own write.
"""

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IWriteDescriptor
from twisted.logger import Logger

__all__ = ["Reactor"]

_log = Logger()

# In a turn. Half as many cost more messages than the overlap is worth, twice as many overlap less.
# epoll hands out those that are left over first the next time.
_EVENTS = 16


class Reactor(EPollReactor):
    """Raises what Twisted's raises; made once, by :func:`sockgw.daemon.choose_reactor`."""

    def __init__(self) -> None:
        self._unasked: dict[IWriteDescriptor, None] = {}  # written to in this turn, in order
        self._ending: list[Callable[[], None]] = []
        super().__init__()

    def at_turn_end(self, call: Callable[[], None]) -> None:
        """Call it once, in this turn, before what was written is sent."""
        self._ending.append(call)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        if writer.fileno() not in self._writes:
            self._unasked[writer] = None

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        if self._unasked.pop(writer, self) is self:
            super().removeWriter(writer)

    def removeAll(self) -> list[Any]:
        unasked = [writer for writer in self._unasked if writer.fileno() not in self._reads]
        self._unasked.clear()
        return [*super().removeAll(), *unasked]

    def getWriters(self) -> list[Any]:
        return [*super().getWriters(), *self._unasked]

    def doPoll(self, timeout: float | None) -> None:
        if self._ending or self._unasked:
            self._end_turn()
            # Something may have been put off until the next turn.
            due = 0.0 if self._ending or self._unasked else self.timeout()
            if due is not None and (timeout is None or due < timeout):
                timeout = due
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, _EVENTS)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        selectables = self._selectables
        act = self._doReadOrWrite
        for fd, event in events:
            selectable = selectables.get(fd)  # None: one of the others has closed it
            if selectable is not None:
                act(selectable, fd, event)

    doIteration = doPoll

    def _end_turn(self) -> None:
        ending, self._ending = self._ending, []
        for call in ending:
            try:
                call()
            except Exception:  # noqa: BLE001 - as Twisted does with what it calls later
                _log.failure("at the end of a turn")
        if self._unasked:
            self._write()

    def _write(self) -> None:
        unasked = self._unasked
        for writer in list(unasked):
            if writer in unasked:  # one of the others may have closed it
                self._doReadOrWrite(writer, writer.fileno(), self._POLL_OUT)
            if unasked.pop(writer, self) is None:  # it has more
                super().addWriter(writer)
