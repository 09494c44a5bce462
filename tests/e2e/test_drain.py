"""SIGTERM to the outer layer: what is under way finishes, and nothing new is let in."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from clients import Client, fetch
from harness import PATIENCE, Gateway, Inner, Keys, Outer, wait_until
from origins import Connection, Origin, Request, answering

PIECE = os.urandom(32 * 1024)
PIECES = 64
PAUSE_AFTER = 8  # pieces
GRACE = 1.0  # seconds, sockgw.outer.service._GRACE

# An inner layer waits for an outer layer that is gone, should it come back to its streams.
QUICK = ("--drain-timeout", "100")

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


class Slow:
    """An origin that begins, and goes on when it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.uploads: list[str] = []

    def respond(self, connection: Connection, request: Request) -> None:
        if request.target == "/download":
            size = PIECES * len(PIECE)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for number in range(PIECES):
                if number == PAUSE_AFTER:
                    assert self.release.wait(PATIENCE)
                connection.send(PIECE)
        elif request.target == "/late":
            assert self.release.wait(PATIENCE)
            connection.answer(b"late")
        elif request.target == "/never":
            connection.wait_gone()
        else:
            digest = hashlib.sha256()
            for piece in connection.pieces(request):
                digest.update(piece)
            connection.answer(digest.hexdigest().encode())


class Draining:
    """A gateway with an origin behind it."""

    def __init__(self, stack: ExitStack, directory: Path, keys: Keys, *options: str) -> None:
        self.slow = Slow()
        origin = stack.enter_context(Origin(answering(self.slow.respond)))
        self.gateway = stack.enter_context(Gateway(directory, keys, options, QUICK))
        self.outer: Outer = self.gateway.outer
        self.port = self.gateway.port
        self.host = self.gateway.route(origin)
        self.begun = 0.0

    def begin(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait until the outer layer drains."""
        self.begun = time.monotonic()
        self.outer.signal(number)
        self.outer.log.wait("draining: ")
        wait_until(lambda: not connects(self.port), "the app port is closed")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def draining(tmp_path: Path, keys: Keys) -> Iterator[Draining]:
    with ExitStack() as stack:
        yield Draining(stack, tmp_path, keys)


@BOTH
def test_transfers_under_way_are_finished(draining: Draining, number: signal.Signals) -> None:
    with Client(draining.port) as down, Client(draining.port) as up:
        down.ask(draining.host, "/download")
        status, fields = down.head()
        assert status == 200
        assert ("Connection", "close") not in fields
        whole = hashlib.sha256(PIECE * PIECES).hexdigest()
        up.ask(draining.host, "/upload", "POST", Content_Length=str(PIECES * len(PIECE)))
        for _ in range(PAUSE_AFTER):
            up.send(PIECE)
        wait_until(lambda: draining.outer.metric("sockgw_streams") == 2, "both are under way")

        draining.begin(number)
        assert draining.outer.log.matching("draining: 2 requests under way, at most 60 s")
        assert not connects(draining.outer.socket_port)
        draining.slow.release.set()
        for _ in range(PIECES - PAUSE_AFTER):
            up.send(PIECE)
        answer = up.answer()
        assert answer.text == whole
        assert answer.header("Connection") == "close"
        assert up.ends()
        up.close()
        received = hashlib.sha256(down.file.read(PIECES * len(PIECE)))
        assert received.hexdigest() == whole
        assert down.ends(), "its head had not said so, and yet it has to close"
    assert draining.outer.wait() == 0
    assert draining.elapsed < 2 * GRACE + 3
    assert draining.outer.log.matching("drained")
    lines = draining.outer.access.lines()
    assert sum("outcome=-" in line for line in lines) == 2, lines


def test_last_requests(draining: Draining) -> None:
    """Idle connections are served once more; later ones are told to come back."""
    with (
        Client(draining.port) as busy,
        Client(draining.port) as idle,
        Client(draining.port) as mute,
    ):
        busy.ask(draining.host, "/download")
        assert busy.head()[0] == 200
        assert idle.request(draining.host, "/one").status == 200
        draining.begin()

        answer = idle.request(draining.host, "/two")
        assert answer.status == 200, "a request that had been on its way"
        assert answer.header("Connection") == "close"
        assert idle.ends()
        assert mute.ends()
        assert GRACE <= draining.elapsed < GRACE + 3

        # This connection's answer has not told its end. So one more request is answered.
        wait_until(lambda: draining.elapsed > 2 * GRACE + 1, "nothing new is taken")
        busy.ask(draining.host, "/three")
        draining.slow.release.set()
        assert len(busy.file.read(PIECES * len(PIECE))) == PIECES * len(PIECE)
        answer = busy.answer()
        assert answer.status == 503
        assert answer.header("Retry-After") == "1"
        assert answer.header("Connection") == "close"
        assert busy.ends()
    assert draining.outer.wait() == 0


def test_pipelined_requests_are_answered(draining: Draining) -> None:
    with Client(draining.port) as client:
        for path in ("/late", "/one", "/two"):
            client.ask(draining.host, path)
        wait_until(lambda: draining.outer.metric("sockgw_streams") == 1, "the first is under way")
        draining.begin()
        draining.slow.release.set()
        answers = [client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 200]
        closes = [answer.header("Connection") for answer in answers]
        assert closes == [None, None, "close"]
        assert client.ends()
    assert draining.outer.wait() == 0


def test_not_ready_while_draining(draining: Draining) -> None:
    with (
        Client(draining.port) as busy,
        Client(draining.port) as app,
        Client(draining.outer.socket_port) as health,
    ):
        busy.ask(draining.host, "/late")
        assert health.request("any", "/readyz").status == 200
        assert app.request("any", "/readyz").status == 200
        draining.begin()
        for client in (health, app):
            answer = client.request("any", "/readyz")
            assert answer.status == 503
            assert answer.text == "draining\n"
        assert health.request("any", "/healthz").status == 200
        draining.slow.release.set()
        assert busy.answer().text == "late"
    assert draining.outer.wait() == 0


def test_time_is_over(tmp_path: Path, keys: Keys) -> None:
    with ExitStack() as stack:
        draining = Draining(stack, tmp_path, keys, "--drain-timeout", "1500")
        with Client(draining.port) as waiting, Client(draining.port) as reading:
            waiting.ask(draining.host, "/never")
            reading.ask(draining.host, "/download")
            assert reading.head()[0] == 200
            draining.begin()
            assert waiting.answer().status in (502, 503)
            assert 1.5 <= draining.elapsed < 1.5 + 2
            got = reading.file.read()
            assert len(got) == PAUSE_AFTER * len(PIECE), "what had come, and no more"
            assert draining.outer.wait() == 0
            assert draining.elapsed < 1.5 + 4
        assert draining.outer.log.matching("drain-timeout is over: 2 requests cut off")
        draining.slow.release.set()


@BOTH
def test_second_signal_ends_it_at_once(draining: Draining, number: signal.Signals) -> None:
    with Client(draining.port) as client:
        client.ask(draining.host, "/never")
        wait_until(lambda: draining.outer.metric("sockgw_streams") == 1, "it is under way")
        draining.begin()
        draining.outer.signal(number)
        assert draining.outer.wait(2) == -number
    draining.outer.kill()


def test_second_signal_ends_even_a_stuck_one(draining: Draining) -> None:
    """The reactor does not get to see the first one, nor has to."""
    outer = draining.outer
    outer.signal(signal.SIGSTOP)
    outer.signal(signal.SIGTERM)
    outer.signal(signal.SIGCONT)
    outer.log.wait("ending")
    outer.signal(signal.SIGTERM)
    assert outer.wait(2) in (-signal.SIGTERM, 0)
    outer.kill()


def test_idle(tmp_path: Path, keys: Keys) -> None:
    """Without clients there is nothing to wait for."""
    with Gateway(tmp_path, keys) as gateway:
        begun = time.monotonic()
        gateway.outer.signal(signal.SIGTERM)
        assert gateway.outer.wait() == 0
        assert time.monotonic() - begun < 1
        gateway.inner.log.wait("no connection to the outer layer")


# ---------------------------------------------------------------------- the inner layer


@BOTH
def test_an_inner_layer_finishes_what_it_has_and_gets_nothing_new(
    tmp_path: Path, keys: Keys, number: signal.Signals
) -> None:
    slow = Slow()
    with (
        Origin(answering(slow.respond)) as origin,
        Gateway(tmp_path, keys) as gateway,
        Client(gateway.port) as down,
        Client(gateway.port) as up,
    ):
        outer, leaving = gateway.outer, gateway.inner
        host = gateway.route(origin)
        down.ask(host, "/download")
        assert down.head()[0] == 200
        up.ask(host, "/upload", "POST", Content_Length=str(PIECES * len(PIECE)))
        for _ in range(PAUSE_AFTER):
            up.send(PIECE)
        wait_until(lambda: outer.metric("sockgw_streams") == 2, "both are under way")
        leaving.signal(number)
        leaving.log.wait("draining: 2 requests under way, at most 60 s")
        with Inner(tmp_path, keys.private, outer.socket_port, name="next"):
            assert fetch(gateway.port, host, "/upload").status == 200
            # It was held until the next one was there, and not given to the old one.
            outer.access.wait(r"GET /upload .* held=[0-9.]*[1-9]")
            assert leaving.status is None, "it waits for what it has"
            slow.release.set()
            for _ in range(PIECES - PAUSE_AFTER):
                up.send(PIECE)
            whole = hashlib.sha256(PIECE * PIECES).hexdigest()
            assert up.answer().text == whole
            assert hashlib.sha256(down.file.read(PIECES * len(PIECE))).hexdigest() == whole
            assert leaving.wait() == 0
            assert leaving.log.matching("drained")
            assert fetch(gateway.port, host, "/upload").status == 200
        assert not outer.log.matching("lost its connection")


def test_an_inner_layers_time_is_over(tmp_path: Path, keys: Keys) -> None:
    with (
        Origin(answering(Slow().respond)) as origin,
        Outer(tmp_path, keys.certificate) as outer,
        Inner(tmp_path, keys.private, outer.socket_port, "--drain-timeout", "500") as inner,
    ):
        outer.wait_for_tunnels(1)
        host = outer.route(origin)
        with Client(outer.app_port) as client:
            client.ask(host, "/never", "POST", Content_Length="0")
            wait_until(lambda: outer.metric("sockgw_streams") == 1, "it is under way")
            inner.signal(signal.SIGTERM)
            assert client.answer().status == 502
        assert inner.wait() == 0
        assert inner.log.matching("drain-timeout is over: 1 requests cut off")
