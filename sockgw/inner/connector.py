"""The connector: keeps a tunnel to the outer layer, for ever, on one line after the other.

An outer layer that is about to go says so (GOAWAY). Then the next line is opened, to whoever
answers behind the same name, before the old one is left: that one stays until its streams have
ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from sockgw.inner.config import InnerConfig
from sockgw.inner.line import Line, Surroundings
from sockgw.inner.outerlayer import OuterLayer
from sockgw.keys import PrivateKey
from sockgw.tunnel.tunnel import Opener, Tunnel

__all__ = ["Connector"]

# Lines that are being left. An outer layer that sends us away again and again must not have us keep
# every tunnel that it ever made.
_MAX_LEFT = 8


class Connector(Service):
    """Keeps the lines."""

    _log = Logger()

    def __init__(
        self,
        config: InnerConfig,
        reactor: Any,
        outer_layer: OuterLayer,
        key: PrivateKey,
        opened: Opener,
        random: Callable[[], float],
        *,
        nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``random`` returns a number from 0 to 1, ``nonce`` so many random bytes."""
        self._config = config
        self._reactor = reactor
        self._surroundings = Surroundings(
            config=config,
            reactor=reactor,
            outer_layer=outer_layer,
            key=key,
            opened=opened,
            random=random,
            nonce=nonce,
            limits=config.limits(),
            memory=config.memory(),
        )
        self._line: Line | None = None
        self._left: list[Line] = []
        self._drained: Deferred[None] | None = None

    @property
    def tunnel(self) -> Tunnel | None:
        """The tunnel at the moment, perhaps suspended."""
        return None if self._line is None else self._line.tunnel

    @property
    def streams(self) -> int:
        """How many streams are open."""
        lines = [*self._left, self._line]
        return sum(
            len(line.tunnel.session.streams) for line in lines if line and line.tunnel is not None
        )

    # ------------------------------------------------------------------ the service

    def startService(self) -> None:
        super().startService()
        self._line = Line(self._surroundings, self)
        self._line.start()

    def drain(self) -> Deferred[None]:
        """Take no further streams; the Deferred fires when those that are open have ended."""
        if self._drained is None:
            self._drained = Deferred()
            line, self._line = self._line, None
            if line is not None:
                self._left.append(line)
            for line in list(self._left):
                line.leave("the inner layer is draining")
            self._check_drained()
        return self._drained

    def stopService(self) -> Deferred[None] | None:
        """End it all; the Deferred fires when the outer layer has been told, or cannot be."""
        super().stopService()
        lines = [*self._left, self._line]
        self._left.clear()
        self._line = None
        partings = [line.stop() for line in lines if line is not None]
        parting = DeferredList([deferred for deferred in partings if deferred is not None])
        return parting.addCallback(lambda _: None)

    # ------------------------------------------------------------------ the lines' owner

    def told_to_leave(self, line: Line) -> None:
        if line is not self._line:
            return
        self._left.append(line)
        if len(self._left) > _MAX_LEFT:
            self._left.pop(0).stop()
        self._line = Line(self._surroundings, self)
        # All inner layers of this outer layer are told at the same time.
        self._line.start(self._config.reconnect_delay * self._surroundings.random())

    def over(self, line: Line) -> None:
        if line in self._left:
            self._left.remove(line)
        self._check_drained()

    def _check_drained(self) -> None:
        drained = self._drained
        if drained is not None and not drained.called and not self._left:
            drained.callback(None)
