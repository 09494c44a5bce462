"""The line between the demonstration's layers, which can be cut to see what then happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.python.failure import Failure

__all__ = ["Line"]

_NOTICE = 0.1  # seconds before a cut, in which those who watch are told
_REST = 2.0  # seconds after a cut without another, so that nobody can hold the line down


class _End(ProxyServer):
    """The inner layer's connection to us, beside which there is ours to the outer layer."""

    factory: Line
    transport: Any

    def connectionMade(self) -> None:
        if self.factory.is_cut:
            self.transport.abortConnection()
            return
        self.factory.ends.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.ends.discard(self)
        super().connectionLost(reason)


class Line(ProxyFactory):
    """Passes connections on to a port of this machine.

    ``told`` is called with the seconds of a cut before it, and with 0 after it.
    """

    protocol = _End
    noisy = False

    def __init__(self, clock: Any, port: int) -> None:
        ProxyFactory.__init__(self, "127.0.0.1", port)
        self._clock = clock
        self._free = True
        self.is_cut = False
        self.ends: set[_End] = set()
        self.told: Callable[[int], None] = lambda seconds: None

    def cut(self, seconds: int) -> bool:
        """Break all connections, and let none through for so long; return False if it is too soon.

        There is one cut at a time, and some seconds between two.
        """
        if not self._free:
            return False
        self._free = False
        self.told(seconds)
        self._clock.callLater(_NOTICE, self._cut, seconds)
        return True

    def _cut(self, seconds: int) -> None:
        self.is_cut = True
        self._clock.callLater(seconds, self._mend)
        for end in list(self.ends):
            far: Any = end.peer
            if far is not None:
                far.transport.abortConnection()
            end.transport.abortConnection()

    def _mend(self) -> None:
        self.is_cut = False
        self._clock.callLater(_REST, self._rested)
        self.told(0)

    def _rested(self) -> None:
        self._free = True
