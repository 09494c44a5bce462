"""The test stand: clients, outer layer, relay, inner layers, origin; each a process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from control import Relay
from harness import Inner, Keys, Log, Outer, wait_until
from load import Clients, Origin

__all__ = ["HASTY_INNER", "HASTY_OUTER", "PING", "Stand", "assert_notices", "settle"]

HASTY_OUTER = ("--ping-interval", "300", "--ping-timeout", "300", "--handshake-timeout", "1000")
"""Options with which a dead peer is noticed within 0.6 seconds."""

HASTY_INNER = (*HASTY_OUTER, "--reconnect-delay", "50", "--max-reconnect-delay", "200")

PING = 0.3  # seconds: interval and timeout
GRACE = 0.5  # seconds that a busy machine may come late


def assert_notices(log: Log, mark: int, begun: float) -> None:
    """A layer with these options says in time that its peer gave no sign of life."""
    left = begun + 2 * PING + GRACE - time.monotonic()
    log.wait("no sign of life", mark, left)


class Stand(contextlib.ExitStack):
    """Starts it all; ``host`` is the target's name.

    There are two processes of clients and two of origins, so that small requests (``small``) do not
    wait within them for bulk ones (``bulk``). The relay lies between inner and outer layer.
    """

    outer: Outer
    relay: Relay
    inners: list[Inner]

    def __init__(
        self,
        directory: Path,
        keys: Keys,
        outer: Sequence[str] = HASTY_OUTER,
        inner: Sequence[str] = HASTY_INNER,
        *,
        replicas: int = 1,
        **relay: Any,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._keys = keys
        self._outer_options = outer
        self._inner_options = inner
        self._replicas = replicas
        self._relay_settings = relay

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _start(self) -> None:
        directory = self._directory
        self.origin = self.enter_context(Origin(directory))
        self.small_origin = self.enter_context(Origin(directory))
        self.outer = self.enter_context(
            Outer(directory, self._keys.certificate, *self._outer_options)
        )
        self.relay = self.enter_context(
            Relay(directory, self.outer.socket_port, **self._relay_settings)
        )
        self.inners = [self.enter_context(self.new_inner()) for _ in range(self._replicas)]
        for inner in self.inners:
            inner.wait_connected()
        self.outer.wait_for_tunnels(self._replicas)
        self.host = self.outer.route(self.origin)
        self.small_host = self.outer.route(self.small_origin)
        self.bulk = self.enter_context(Clients(directory, self.outer.app_port))
        self.small = self.enter_context(Clients(directory, self.outer.app_port))

    def replace_outer(self) -> None:
        """Start another outer layer on the ports of the one before, which has ended."""
        before = self.outer
        at = "tcp:{}:interface=127.0.0.1:backlog=1024"
        self.outer = self.enter_context(
            Outer(
                self._directory,
                self._keys.certificate,
                *self._outer_options,
                targets=before.entries,
                app=at.format(before.app_port),
                socket=at.format(before.socket_port),
            )
        )

    @property
    def inner(self) -> Inner:
        """The only inner layer."""
        (inner,) = self.inners
        return inner

    def new_inner(self) -> Inner:
        """Start one more."""
        return Inner(self._directory, self._keys.private, self.relay.port, *self._inner_options)

    def metric(self, name: str) -> float:
        """Return one of the outer layer's."""
        return self.outer.metric(name)

    def wait_idle(self, patience: float = 10) -> None:
        """Wait until no stream is open."""
        wait_until(lambda: self.metric("sockgw_streams") == 0, "all streams are closed", patience)


def settle(value: Callable[[], float], quiet: float = 0.5) -> float:
    """Wait until a value does not change for a while, and return it."""
    last, since = value(), time.monotonic()
    deadline = since + 20
    while time.monotonic() - since < quiet:
        assert time.monotonic() < deadline, f"it does not come to rest: {last}"
        time.sleep(0.02)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last
