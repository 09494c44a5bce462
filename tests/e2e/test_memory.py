"""Memory is bounded by the streams' windows, however slow who reads and how fast who sends."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import Client
from harness import Gateway, Keys, Process, wait_until
from origins import Connection, Nginx, Origin

EACH_WAY = 20  # transfers at a time
SIZE = 1 << 30  # bytes of each, of which a small part is ever read
RATE = 1 << 20  # bytes a second
READ = 4 << 20  # bytes that each reader has got when memory is judged
BOUND = 150 << 20  # bytes resident, for each process


class SlowReader:
    """Reads at a bounded rate from when it is started until it is told to stop."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self.received = 0
        self._receive = receive

    def run(self, stop: threading.Event) -> None:
        piece = 65_536
        while not stop.wait(piece / RATE):  # the pace, and no wait for anything to happen
            data = self._receive(piece)
            assert data, "the transfer has ended"
            self.received += len(data)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is not mounted")
def test_slow_readers_both_ways(tmp_path: Path, keys: Keys) -> None:
    """20 clients that read slowly, and 20 origins that are fed uploads and read slowly.

    The other end of each would send a gigabyte within seconds. What it would send beyond what was
    read has to stay where it is.
    """
    (tmp_path / "files").mkdir()
    with open(tmp_path / "files" / "large", "wb") as file:
        file.truncate(SIZE)
    stop = threading.Event()
    readers: list[SlowReader] = []
    sent = [0] * EACH_WAY
    errors: list[BaseException] = []

    def slow_origin(connection: Connection) -> None:
        assert connection.request()
        reader = SlowReader(connection.socket.recv)
        readers.append(reader)
        reader.run(stop)

    def upload(number: int, client: Client) -> None:
        data = bytes(1 << 20)
        while not stop.is_set():
            try:
                sent[number] += client.socket.send(data)
            except TimeoutError:
                continue
            except OSError:
                return

    def noting(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            try:
                function(*arguments)
            except BaseException as error:
                errors.append(error)
                raise

        return call

    with (
        Nginx(tmp_path, tmp_path / "files") as nginx,
        Origin(slow_origin) as origin,
        Gateway(tmp_path, keys) as gateway,
    ):
        before = memory(gateway)
        downloads, uploads = gateway.route(nginx), gateway.route(origin)
        clients = [Client(gateway.port) for _ in range(2 * EACH_WAY)]
        threads = []
        for client in clients[:EACH_WAY]:
            client.ask(downloads, "/large")
            assert client.head()[0] == 200
            reader = SlowReader(client.file.read)
            readers.append(reader)
            threads.append(threading.Thread(target=noting(reader.run), args=(stop,)))
        for number, client in enumerate(clients[EACH_WAY:]):
            client.socket.settimeout(0.2)
            client.ask(uploads, method="PUT", Content_Length=str(SIZE))
            threads.append(threading.Thread(target=noting(upload), args=(number, client)))
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: (
                    errors
                    or (
                        len(readers) == 2 * EACH_WAY
                        and min(reader.received for reader in readers) >= READ
                    )
                ),
                "each reader has got its part",
                60,
            )
        finally:
            took = time.monotonic() - begun
            peaks = memory(gateway)
            streams = gateway.outer.metric("sockgw_streams")
            stop.set()
            for thread in threads:
                thread.join()
            for client in clients:
                client.close()
        assert not errors
        gateway.assert_idle()
    assert streams == 2 * EACH_WAY
    assert took > READ / RATE * 0.9, "they were not slow"
    assert max(peaks) < BOUND, f"before: {before}, at most: {peaks}"
    # What was not read could not be sent either, but for what fits into buffers on the way.
    assert max(sent) < 4 * READ + (16 << 20)


def memory(gateway: Gateway) -> tuple[int, int]:
    """Return the most that outer and inner layer have ever had resident, in bytes."""
    layers: tuple[Process, Process] = (gateway.outer, gateway.inner)
    return layers[0].memory()[1], layers[1].memory()[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is not mounted")
def test_one_client_that_does_not_read_at_all(tmp_path: Path, keys: Keys, nginx: Nginx) -> None:
    """Neither a large answer nor thousands of pipelined requests pile up."""
    with Gateway(tmp_path, keys) as gateway:
        host = gateway.route(nginx)
        before = memory(gateway)
        with Client(gateway.port) as idle, Client(gateway.port) as eager:
            idle.ask(host, "/large")
            eager.socket.settimeout(0.5)
            request = f"GET /large HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 1000
            sent = 0
            try:
                while sent < 200_000_000:
                    sent += eager.socket.send(request)
            except TimeoutError:
                pass  # as it should be
            assert sent < 50_000_000, "whoever does not read may not go on asking"
            assert gateway.outer.metric("sockgw_streams") == 2
            after = memory(gateway)
        gateway.assert_idle()
    for one, other in zip(before, after, strict=True):
        assert other - one < 30 << 20, f"before: {before}, after: {after}"
