"""Datagrams to systemd."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from sockgw.notify import Notifier


class Manager:
    """What systemd does: a datagram socket that collects states."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        states = []
        while True:
            try:
                states.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return states


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def environ(manager: Manager) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.socket.getsockname()}


def test_states(manager: Manager, environ: dict[str, str], clock: Clock) -> None:
    notifier = Notifier(environ, clock)
    notifier.ready()
    notifier.status("2 inner layers\nREADY=0")
    notifier.reloading()
    notifier.stopping()
    ready, status, reloading, stopping = manager.received()
    assert ready == "READY=1"
    assert status == "STATUS=2 inner layers READY=0"
    assert stopping == "STOPPING=1"
    kind, monotonic = reloading.split("\n")
    assert kind == "RELOADING=1"
    assert int(monotonic.removeprefix("MONOTONIC_USEC=")) > 0
    assert not clock.getDelayedCalls()


def test_abstract_socket(clock: Clock) -> None:
    name = f"sockgw-test-{os.getpid()}"
    manager = Manager("\0" + name)
    Notifier({"NOTIFY_SOCKET": "@" + name}, clock).ready()
    assert manager.received() == ["READY=1"]
    manager.socket.close()


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": str(os.getpid())}])
def test_watchdog_is_fed_at_half_time(
    manager: Manager, environ: dict[str, str], clock: Clock, pid: dict[str, str]
) -> None:
    notifier = Notifier({**environ, "WATCHDOG_USEC": "10000000", **pid}, clock)
    notifier.ready()
    assert manager.received() == ["READY=1", "WATCHDOG=1"]
    clock.advance(4.9)
    assert manager.received() == []
    clock.advance(0.1)
    assert manager.received() == ["WATCHDOG=1"]
    notifier.ready()  # after a reload: no second timer
    manager.received()
    clock.advance(5)
    assert manager.received() == ["WATCHDOG=1"]
    notifier.stopping()
    clock.advance(60)
    assert manager.received() == ["STOPPING=1"]
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "me"},
    ],
)
def test_no_watchdog(
    manager: Manager, environ: dict[str, str], clock: Clock, watchdog: dict[str, str]
) -> None:
    Notifier({**environ, **watchdog}, clock).ready()
    assert manager.received() == ["READY=1"]
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/notify", "/" + "x" * 200, "@"])
def test_a_missing_socket_is_no_error(address: str | None, clock: Clock) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    before = dict(environ)
    notifier = Notifier(environ, clock)
    notifier.ready()
    notifier.status("well")
    notifier.stopping()
    assert environ == before
