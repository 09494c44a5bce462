"""The relay does to plain TCP what it says."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from control import Relay
from harness import PATIENCE, closed_port, listening_socket, wait_until

MARGIN = 0.002  # seconds that the relay and this process may come late at best


class Wire:
    """A pair of sockets with a relay between them."""

    def __init__(self, directory: Path) -> None:
        self.listener = listening_socket()
        self.relay = Relay(directory, self.listener.getsockname()[1])

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return near and far end of a new connection."""
        near = socket.create_connection(("127.0.0.1", self.relay.port), PATIENCE)
        self.listener.settimeout(PATIENCE)
        far = self.listener.accept()[0]
        for end in (near, far):
            end.settimeout(PATIENCE)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return near, far


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    with wire.listener, wire.relay:
        yield wire


def exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = end.recv(size - len(data))
        assert piece, f"ended after {len(data)} bytes"
        data += piece
    return data


def to_the_end(end: socket.socket) -> tuple[bytes, str]:
    """Return what came, and how it ended: "fin", "rst" or "open" (nothing came for 0.2 s)."""
    data = b""
    while True:
        if not select.select([end], [], [], 0.2)[0]:
            return data, "open"
        try:
            piece = end.recv(1 << 20)
        except ConnectionResetError:
            return data, "rst"
        if not piece:
            return data, "fin"
        data += piece


def sending(end: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        end.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def fill(end: socket.socket) -> int:
    """Send until nothing is taken for a while; return how many bytes were."""
    end.settimeout(0.2)
    sent = 0
    try:
        while sent < 100_000_000:
            sent += end.send(bytes(4096))
    except TimeoutError:
        pass
    return sent


def test_bytes_pass_both_ways(wire: Wire) -> None:
    near, far = wire.connect()
    up, down = os.urandom(20_000_000), os.urandom(20_000_000)
    with near, far:
        threads = [sending(near, up), sending(far, down)]
        got: dict[str, bytes] = {}
        reader = threading.Thread(target=lambda: got.update(up=exactly(far, len(up))))
        reader.start()
        got["down"] = exactly(near, len(down))
        for thread in [*threads, reader]:
            thread.join(PATIENCE)
        assert hashlib.sha256(got["up"]).digest() == hashlib.sha256(up).digest()
        assert got["down"] == down
        stats = wire.relay.stats()
        assert (stats["open"], stats["accepted"]) == (1, 1)
        assert stats["up"]["delivered"] == len(up)
        assert stats["down"]["delivered"] == len(down)


def test_each_side_may_end_by_itself(wire: Wire) -> None:
    near, far = wire.connect()
    with near, far:
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert to_the_end(far) == (b"question", "fin")
        far.sendall(b"answer")
        far.close()
        assert to_the_end(near) == (b"answer", "fin")
    wait_until(lambda: wire.relay.stats()["open"] == 0, "it is over")


def test_a_reset_passes(wire: Wire) -> None:
    near, far = wire.connect()
    with far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
        assert to_the_end(far) == (b"", "rst")
    wait_until(lambda: wire.relay.stats()["open"] == 0, "it is over")


def test_nobody_there(tmp_path: Path) -> None:
    with closed_port() as port, Relay(tmp_path, port) as relay:

        def ask() -> None:
            with socket.create_connection(("127.0.0.1", relay.port), PATIENCE) as near:
                near.recv(1)

        with pytest.raises(ConnectionResetError):  # it may come before connecting returns
            ask()
        assert relay.stats()["refused"] == 1


@pytest.mark.parametrize("delay", [0.005, 0.05])
def test_delay(wire: Wire, delay: float) -> None:
    """None is shorter, and the least is no longer: others may suffer from a busy machine."""
    wire.relay.set(delay=delay)
    near, far = wire.connect()
    times = []
    with near, far:
        for _ in range(15):
            begun = time.monotonic()
            near.sendall(b"1")
            far.sendall(far.recv(1))
            assert near.recv(1) == b"1"
            times.append(time.monotonic() - begun)
    assert 2 * delay <= min(times) < 2 * delay + MARGIN


def test_delay_does_not_limit_the_rate(wire: Wire) -> None:
    wire.relay.set(delay=0.05, rate=400e6, hold=1 << 20)
    near, far = wire.connect()
    data = bytes(20_000_000)
    with near, far:
        begun = time.monotonic()
        thread = sending(near, data)
        exactly(far, len(data))
        took = time.monotonic() - begun
        thread.join(PATIENCE)
    assert 0.45 <= took < 0.9


@pytest.mark.parametrize("rate", [20e6, 200e6])
@pytest.mark.parametrize("connections", [1, 4])
def test_rate_is_shared_and_smooth(wire: Wire, rate: float, connections: int) -> None:
    """Half a second's worth takes half a second, and within each tenth of it a fifth comes."""
    wire.relay.set(rate=rate, hold=65_536)
    size = int(rate / 8 / 2) // connections
    pairs = [wire.connect() for _ in range(connections)]
    ends = [far for _, far in pairs]
    begun = time.monotonic()
    threads = [sending(near, bytes(size)) for near, _ in pairs]
    got: list[tuple[float, int]] = []
    left = size * connections
    while left:
        for end in select.select(ends, [], [], PATIENCE)[0]:
            count = len(end.recv(1 << 20))
            got.append((time.monotonic() - begun, count))
            left -= count
    for thread in threads:
        thread.join(PATIENCE)
    for near, far in pairs:
        near.close()
        far.close()
    assert 0.49 < got[-1][0] < 0.8
    for tenth in range(1, 5):
        come = sum(count for at, count in got if at <= tenth / 10)
        # Never more than that, and on a busy machine sometimes less.
        assert 0.6 < come / (size * connections * tenth / 5) < 1.1


def test_one_direction_is_slow(wire: Wire) -> None:
    wire.relay.set(rate=8e6, delay=0.1, direction="down")
    near, far = wire.connect()
    with near, far:
        begun = time.monotonic()
        thread = sending(near, bytes(5_000_000))
        exactly(far, 5_000_000)
        assert time.monotonic() - begun < 0.5
        thread.join(PATIENCE)
        begun = time.monotonic()
        far.sendall(bytes(100_000))
        exactly(near, 100_000)
        assert 0.19 < time.monotonic() - begun < 0.6


@pytest.mark.parametrize("hold", [65_536, 4 << 20])
def test_it_holds_so_much(wire: Wire, hold: int) -> None:
    """A peer that does not read: beyond what the relay holds only kernels' buffers take bytes."""
    wire.relay.set(hold=hold, buffers=65_536)
    near, far = wire.connect()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        sent = fill(near)
        stuck = wire.relay.stats()["up"]["delivered"]  # in the far end's kernel
        assert hold <= sent - stuck < hold + 400_000


def test_a_slow_line_holds_so_much(wire: Wire) -> None:
    wire.relay.set(hold=1 << 20, rate=8e5, buffers=65_536)
    near, far = wire.connect()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        sent = fill(near)
        assert 1 << 20 <= sent < (1 << 20) + 500_000


@pytest.mark.parametrize(
    ("action", "end"), [("fin", "fin"), ("rst", "rst"), ("hole", "open"), ("stall", "open")]
)
@pytest.mark.parametrize("on", ["up", "down"])
def test_cut_at_a_byte(wire: Wire, action: str, end: str, on: str) -> None:
    """Exactly so many bytes come, and then the end that was asked for. New connections pass."""
    near, far = wire.connect()
    source, sink = (near, far) if on == "up" else (far, near)
    with near, far:
        source.sendall(bytes(100))
        exactly(sink, 100)
        armed = wire.relay.arm(on, 77_777, action)
        data = os.urandom(200_000)
        thread = sending(source, data)
        if end == "rst":
            # A reset takes from the kernel's buffer what was not read: it is counted before.
            assert wire.relay.result(armed)["fired"]
            got, how = to_the_end(sink)
            assert len(got) <= 77_777
        else:
            got, how = to_the_end(sink)
            assert len(got) == 77_777
        assert wire.relay.stats()[on]["delivered"] == 77_877
        assert data.startswith(got)
        assert how == end
        if end != "rst":
            assert wire.relay.result(armed)["fired"]
            assert to_the_end(source) == (b"", end)
        thread.join(0 if action == "stall" else PATIENCE)
        again, again_far = wire.connect()
        with again, again_far:
            again.sendall(b"x")
            assert exactly(again_far, 1) == b"x"


def test_a_cut_may_be_called_off(wire: Wire) -> None:
    near, far = wire.connect()
    with near, far:
        armed = wire.relay.arm("up", 5, "rst")
        wire.relay.ask("disarm")
        assert wire.relay.result(armed) == {"number": armed, "fired": False}
        near.sendall(bytes(10))
        exactly(far, 10)


def test_black_hole(wire: Wire) -> None:
    """Both sides can send without end, nothing arrives, and nobody hears that the other left."""
    near, far = wire.connect()
    with near, far:
        wire.relay.fail("hole")
        near.sendall(bytes(10_000_000))
        far.sendall(bytes(10_000_000))
        assert to_the_end(near) == to_the_end(far) == (b"", "open")
        near.close()
        assert to_the_end(far) == (b"", "open")


@pytest.mark.parametrize("lost", ["up", "down"])
def test_one_direction_is_lost(wire: Wire, lost: str) -> None:
    near, far = wire.connect()
    mute, heard = (near, far) if lost == "up" else (far, near)
    with near, far:
        wire.relay.fail("lose", lost)
        mute.sendall(b"vanishes")
        heard.sendall(b"arrives")
        assert exactly(mute, 7) == b"arrives"
        assert to_the_end(heard) == (b"", "open")
        mute.close()
        assert to_the_end(heard) == (b"", "open")
        heard.close()
    wait_until(lambda: wire.relay.stats()["open"] == 0, "it is over")


def test_freeze_and_thaw(wire: Wire) -> None:
    """Nothing passes, for new connections too, and nothing is lost."""
    near, far = wire.connect()
    with near, far:
        wire.relay.fail("freeze")
        near.sendall(b"before")
        with socket.create_connection(("127.0.0.1", wire.relay.port), PATIENCE) as new:
            new.sendall(b"new")
            assert to_the_end(far) == (b"", "open")
            wire.listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                wire.listener.accept()
            wire.relay.ask("thaw")
            assert exactly(far, 6) == b"before"
            wire.listener.settimeout(PATIENCE)
            with wire.listener.accept()[0] as new_far:
                assert exactly(new_far, 3) == b"new"


def test_freeze_at_a_byte_of_a_fast_transfer(wire: Wire) -> None:
    near, far = wire.connect()
    data = os.urandom(5_000_000)
    with near, far:
        armed = wire.relay.arm("up", 1_000_001, "freeze")
        thread = sending(near, data)
        assert len(exactly(far, 1_000_001)) == 1_000_001
        assert wire.relay.result(armed)["fired"]
        assert to_the_end(far) == (b"", "open")
        wire.relay.ask("thaw")
        assert exactly(far, 3_999_999) == data[1_000_001:]
        thread.join(PATIENCE)


def test_refuse_and_accept(wire: Wire) -> None:
    near, far = wire.connect()
    with near, far:
        for _ in range(3):
            wire.relay.ask("refuse")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", wire.relay.port), PATIENCE)
            near.sendall(b"still")
            assert exactly(far, 5) == b"still"
            wire.relay.ask("accept")
            for end in wire.connect():
                end.close()


@pytest.mark.parametrize(
    ("action", "changed"), [("flip", b"abc\x9bef"), ("double", b"abcddef"), ("", b"abcdef")]
)
def test_tampering(wire: Wire, action: str, changed: bytes) -> None:
    near, far = wire.connect()
    with near, far:
        if action:
            wire.relay.arm("up", 3, action)
        near.sendall(b"abcdef")
        near.shutdown(socket.SHUT_WR)
        assert to_the_end(far) == (changed, "fin")


def test_it_is_fast_enough_not_to_be_measured(wire: Wire) -> None:
    near, far = wire.connect()
    size = 200_000_000
    with near, far:
        begun = time.monotonic()
        thread = sending(near, bytes(size))
        buffer = bytearray(1 << 20)
        left = size
        while left:
            left -= far.recv_into(buffer)
        took = time.monotonic() - begun
        thread.join(PATIENCE)
    assert size / took > 100e6
