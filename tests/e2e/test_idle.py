"""What stands and does nothing takes little memory and no time: clients, streams, tunnels.

Memory is told by the slope between two sizes of a crowd, so that nothing counts that the processes
need anyway. The bounds are about twice what was measured; ``make bench ARGS=idle`` has the figures.
"""

import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Client
from harness import RESUME_SOON, Gateway, Keys, Outer, Process, wait_until
from origins import Nginx

TUNNELS = Path(__file__).parent.parent.parent / "bench" / "programs" / "tunnels.py"

# How many there are before the first look, and how many come then.
WARM = 100
MORE = 400
MORE_TUNNELS = 100

# KiB of resident memory for one more.
CLIENT = 16
STREAM = {"outer": 8, "inner": 12}  # beside its client's connection; with its origin's
TUNNEL = 50

SECONDS = 3.0  # for which all stand
# A layer looks at deadlines four times a second, for all of them together, and at files once.
WAKE_UPS = 20  # a second
CPU = 0.03  # seconds a second

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="/proc does not tell the time of processes"
)


class Layer:
    """What a layer has used."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._before = 0

    def resident(self) -> int:
        """Return the bytes of resident memory, once they are the same twice."""
        now = [-1]

        def settled() -> bool:
            now.append(self._process.memory()[0])
            time.sleep(0.1)  # the interval of looking, not a wait for something
            return now[-1] == now[-2]

        wait_until(settled, f"the memory of {self._process.name} has settled")
        return now[-1]

    def begin(self) -> None:
        """Memory counts from here on."""
        self._before = self.resident()

    def each(self, count: int) -> float:
        """Return the KiB that it has grown by since then, for each of so many."""
        return (self.resident() - self._before) / count / 1024

    def used(self) -> tuple[float, int]:
        """Return the seconds of CPU, and how often it has waited and gone on."""
        directory = Path(f"/proc/{self._process.pid}")
        seconds = int((directory / "schedstat").read_text().split()[0]) / 1e9
        found = re.search(
            r"^voluntary_ctxt_switches:\s+(\d+)", (directory / "status").read_text(), re.MULTILINE
        )
        assert found
        return seconds, int(found[1])


@contextlib.contextmanager
def tunnels(outer: Outer, keys: Keys, directory: Path, count: int) -> Iterator[None]:
    """Have so many more tunnels."""
    arguments = [sys.executable, "-P", TUNNELS, str(outer.socket_port), keys.private, str(count)]
    process = Process("tunnels", arguments, directory)
    try:
        process.log.wait(f"^{count} tunnels", patience=60)
        yield
    finally:
        process.kill()


def test_a_crowd_takes_little_memory_and_no_time(tmp_path: Path, keys: Keys, nginx: Nginx) -> None:
    crowd = Keys(tmp_path, "crowd")
    many = ("--max-tunnels-per-key", "1000", *RESUME_SOON)
    with (
        # Connections are taken by the system, and nobody ever reads what comes on them.
        socket.create_server(("127.0.0.1", 0), backlog=2 * MORE) as hanging,
        Gateway(tmp_path, keys, outer=["--public-key", crowd.certificate, *many]) as gateway,
        contextlib.ExitStack() as stack,
    ):
        outer, inner = layers = Layer(gateway.outer), Layer(gateway.inner)
        answered = gateway.route(nginx, identifier=keys.name)
        silent = gateway.outer.route(hanging.getsockname()[1], identifier=keys.name)
        clients: list[Client] = []

        def come(count: int) -> None:
            for _ in range(count):
                client = stack.enter_context(Client(gateway.port))
                assert client.request(answered, "/hello").status == 200
                clients.append(client)

        def streams_open() -> float:
            return gateway.outer.metric("sockgw_streams")

        def ask(some: list[Client], count: int) -> None:
            """Have clients ask, after which so many streams are open."""
            for client in some:
                client.ask(silent)
            wait_until(lambda: streams_open() == count, f"{count} streams are open")

        come(WARM)
        outer.begin()
        come(MORE)
        client = outer.each(MORE)

        ask(clients[:WARM], WARM)
        for layer in layers:
            layer.begin()
        ask(clients[WARM:], WARM + MORE)
        streams = {"outer": outer.each(MORE), "inner": inner.each(MORE)}

        before = [layer.used() for layer in layers]
        time.sleep(SECONDS)  # it is what does not happen meanwhile that is looked at
        after = [layer.used() for layer in layers]
        assert streams_open() == WARM + MORE

        stack.enter_context(tunnels(gateway.outer, crowd, tmp_path, 10))
        outer.begin()
        stack.enter_context(tunnels(gateway.outer, crowd, tmp_path, MORE_TUNNELS))
        tunnel = outer.each(MORE_TUNNELS)
    used = [
        ((later[0] - earlier[0]) / SECONDS, (later[1] - earlier[1]) / SECONDS)
        for earlier, later in zip(before, after, strict=True)
    ]
    print(f"KiB: a client {client:.1f}, a stream {streams}, a tunnel {tunnel:.1f}; used {used}")
    assert client < CLIENT
    assert all(streams[name] < most for name, most in STREAM.items()), streams
    assert tunnel < TUNNEL
    for seconds, wake_ups in used:
        assert seconds < CPU
        assert wake_ups < WAKE_UPS
