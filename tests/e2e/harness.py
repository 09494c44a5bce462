"""Real processes for tests: started on ports that the system chose, ended, and looked after.

Nothing here sleeps for a time that is hoped to be enough: :func:`wait_until` polls a condition
until a deadline. Whoever starts a process uses it as a context manager, which on leaving asserts
that it ended as it should and left nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pytest

__all__ = [
    "LOOPBACK",
    "RESUME_SOON",
    "Endpoint",
    "Gateway",
    "Inner",
    "Keys",
    "Log",
    "Outer",
    "Process",
    "closed_port",
    "command",
    "free_port",
    "listening_socket",
    "own_address",
    "require",
    "run",
    "wait_until",
]

PATIENCE = 10.0
"""Seconds after which what has not happened is taken to never happen."""

LOOPBACK = "tcp:0:interface=127.0.0.1:backlog=1024"
"""The endpoint of a port that is certainly free."""

RESUME_SOON = ("--resume-window", "500")
"""Options of an outer layer that soon gives up a tunnel whose inner layer was killed."""

_POLL = 0.005  # seconds
_BIN = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link
_FOREIGN = re.compile(r"SOCKGW_.*|(HTTPS?|ALL|NO)_PROXY|NOTIFY_SOCKET|WATCHDOG_.*", re.IGNORECASE)

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, patience: float = PATIENCE) -> _T:
    """Return the condition's value once that is true; fail with ``what`` after ``patience`` s."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:g} s: {what}")
        time.sleep(_POLL)


def require(tool: str) -> str:
    """Return the path of a program, or skip the test with its name."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def command(name: str) -> str:
    """Return the path of a command of the environment that the tests run in."""
    return str(_BIN / name)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would change how sockgw or curl behave."""
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


def run(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its status, output and errors."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment(env),
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    """Return a socket that listens on a free port."""
    return socket.create_server((host, 0), backlog=256)


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Give a port on which nobody listens, and nobody else will meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


class Endpoint(NamedTuple):
    """Where something listens."""

    host: str
    port: int


_own_addresses = count(random.SystemRandom().randrange(1 << 20) << 2)


def own_address() -> Endpoint:
    """Return an address of loopback that nobody else uses, with a port that is free.

    For servers that cannot be told to choose a port themselves: between this and their start nobody
    takes it, since whoever is given a port by the system gets it for another address.
    """
    number = next(_own_addresses) % (1 << 22)
    host = f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255 or 1}"
    with socket.socket() as held:
        held.bind((host, 0))
        return Endpoint(host, held.getsockname()[1])


def free_port() -> int:
    """Return a port that is free for TCP and UDP on all addresses, IPv6 and IPv4.

    The system gives none of these to who does not ask for it (net.ipv4.ip_local_port_range), so
    that it stays free until somebody listens there.
    """
    for number in random.SystemRandom().sample(range(10_000, 32_768), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                held = stack.enter_context(socket.socket(socket.AF_INET6, kind))
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                held.bind(("::", number))
            return number
    raise AssertionError("no port is free")


class Log:
    """A file that a process writes to, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def mark(self) -> int:
        """Return the present end, for :meth:`lines`."""
        return self.path.stat().st_size

    def lines(self, since: int = 0) -> list[str]:
        """Return the whole lines after a mark."""
        with open(self.path, "rb") as file:
            file.seek(since)
            text = file.read().decode("utf-8", "replace")
        return [line for line in text.split("\n")[:-1] if line]

    def matching(self, pattern: str, since: int = 0) -> list[str]:
        """Return the lines after a mark in which the regular expression is found."""
        return [line for line in self.lines(since) if re.search(pattern, line)]

    def wait(self, pattern: str, since: int = 0, patience: float = PATIENCE) -> str:
        """Wait for a line and return it."""
        what = f"/{pattern}/ in {self.path.name}"
        return wait_until(lambda: self.matching(pattern, since), what, patience)[0]


class Process:
    """A process of the system under test, with what it prints in a log."""

    running: list[Process] = []
    seen: list[Process] = []  #: those that have ended, too; for reports of failures
    #: The status with which it ends on SIGTERM.
    end = 0

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        directory: Path,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.log = Log(_unused(directory, name))
        with open(self.log.path, "wb") as output:
            self._process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=directory,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                **options,
            )
        self.pid = self._process.pid
        self._killed = False
        Process.running.append(self)
        Process.seen.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and not self._killed:
                self.stop()
        finally:
            self.kill()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end; return the exit status."""
        return self._process.wait(patience)

    def stop(self) -> None:
        """End it as a service manager would, and see that all is in order."""
        if self.status is None:
            self.signal(signal.SIGTERM)
        status = self.wait()
        assert status == self.end, f"{self.name} ended with status {status}"
        self.assert_nothing_left()
        tracebacks = self.log.matching("Traceback|Unhandled|Exception ignored")
        assert not tracebacks, f"{self.name} logged: {tracebacks[0]}"

    def assert_nothing_left(self) -> None:
        """Of an ended process: no child of it lives on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 0)
            raise AssertionError(f"{self.name} left processes behind")

    def kill(self) -> None:
        """End it by force, with its children, if it still runs."""
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self in Process.running:
            Process.running.remove(self)

    def memory(self) -> tuple[int, int]:
        """Return the resident memory in bytes, now and at its highest."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        now, peak = (
            int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]
            for key in ("VmRSS", "VmHWM")
        )
        return now, peak


def _unused(directory: Path, name: str) -> Path:
    number = 1
    while (path := directory / f"{name}-{number}.log").exists():
        number += 1
    return path


class Keys:
    """A key pair of an inner layer, made by ``sockgw certificates``."""

    def __init__(self, directory: Path, name: str = "innerLayer", *options: str) -> None:
        self.name = name
        self.private = directory / f"{name}.key"
        self.certificate = directory / f"{name}.crt"
        made = run(
            command("sockgw"),
            "certificates",
            "--common-name",
            name,
            "--private-key",
            self.private,
            "--certificate",
            self.certificate,
            *options,
        )
        assert made.returncode == 0, made.stderr


# Descriptors 3 and on are the sockets, and LISTEN_PID is who shall have them (sd_listen_fds(3)).
_AS_SYSTEMD_DOES = """
import os, sys
numbers = [os.dup(int(number)) for number in sys.argv[1].split(",")]
high = [os.dup2(number, 100 + place) for place, number in enumerate(numbers)]
for place, number in enumerate(high):
    os.dup2(number, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Layer(Process):
    """An outer or inner layer under twistd."""

    def __init__(
        self,
        name: str,
        plugin: str,
        arguments: Sequence[str | Path],
        directory: Path,
        env: Mapping[str, str] | None,
        handed: Mapping[str, socket.socket] | None = None,
    ) -> None:
        twistd = [command("twistd"), "-n", "--pidfile=", plugin, *arguments]
        if not handed:
            super().__init__(name, twistd, directory, env)
            return
        numbers = [each.fileno() for each in handed.values()]
        env = {**(env or {}), "LISTEN_FDS": str(len(handed)), "LISTEN_FDNAMES": ":".join(handed)}
        launcher = [sys.executable, "-c", _AS_SYSTEMD_DOES, ",".join(map(str, numbers))]
        super().__init__(name, [*launcher, *twistd], directory, env, pass_fds=numbers)

    def stop(self) -> None:
        super().stop()
        assert self.log.matching("Server Shut Down"), f"{self.name} did not end in good order"


class Outer(Layer):
    """An outer layer, started by twistd, that listens on loopback ports of the system's choice.

    ``options`` are further ones, after which ``app_port`` and ``socket_port`` are where the
    endpoints given for them came to listen (None for UNIX sockets). ``handed`` are listening
    sockets by the names under which ``systemd:`` endpoints find them.
    """

    def __init__(
        self,
        directory: Path,
        public_key: Path | str,
        *options: str | Path,
        targets: Mapping[str, Any] | None = None,
        app: str = LOOPBACK,
        socket: str = LOOPBACK,
        env: Mapping[str, str] | None = None,
        handed: Mapping[str, Any] | None = None,
        name: str = "outer",
    ) -> None:
        self.targets = directory / f"{name}-targets.yaml"
        self.access = Log(directory / f"{name}-access.log")
        self.entries: dict[str, Any] = dict(targets or {})
        self._write_targets()
        arguments = [
            *("--public-key", public_key, "--targets", self.targets),
            *("--app-port", app, "--socket-port", socket),
            *("--access-log", self.access.path),
            *options,
        ]
        super().__init__(name, "sockgw-outer", arguments, directory, env, handed)
        try:
            wait_until(
                lambda: self.status is not None or self.log.matching("outer layer started"),
                f"{name} has started",
            )
            assert self.status is None, f"{name} did not start: {self.log.lines()}"
        except BaseException:
            self.kill()
            raise
        # Not those of targets, which say for which.
        listening = self.log.matching("listening on (?!.* for )")
        self.socket_port = _port(listening[0])
        self.admin_port = _port(listening[1]) if len(listening) > 2 else self.socket_port
        self.app_port = _port(listening[-1])

    def _write_targets(self) -> None:
        self.replace_targets(json.dumps({"targets": self.entries}))

    def replace_targets(self, text: str) -> None:
        """Replace the targets file's content, in one step."""
        new = self.targets.with_suffix(".new")
        new.write_text(text)
        new.replace(self.targets)

    def reload(self) -> int:
        """Send SIGHUP and wait until the targets were read; return the log's mark before that."""
        mark = self.log.mark()
        self.signal(signal.SIGHUP)
        self.log.wait("reloading", mark)
        self.log.wait(r" targets in | targets stay as they were", mark)
        return mark

    def route(self, destination: Any, host: str = "", **fields: Any) -> str:
        """Add a target, put it in force, and return its host name.

        ``destination`` is a port, or anything with a ``port``, on 127.0.0.1; the fields are those
        of the targets file, and win.
        """
        host = host or f"host{len(self.entries)}.test"
        port = getattr(destination, "port", destination)
        entry = {"protocol": "http", "hostname": "127.0.0.1", "port": port, **fields}
        if self.entries.get(host) == entry:
            return host
        self.entries[host] = entry
        mark = self.log.mark()  # first: the file is looked at every second besides
        self._write_targets()
        self.signal(signal.SIGHUP)
        self.log.wait(f"added: .*{re.escape(host)}|changed: .*{re.escape(host)}", mark)
        return host

    def publish(self, name: str, server: Any, protocol: str = "tcp", **fields: Any) -> Endpoint:
        """Give a TCP or UDP target a listener, put it in force, and return where that is.

        ``server`` has a ``host`` and a ``port``; the fields are those of the targets file, and win.
        """
        # No two targets have one listener, and a port that the system chooses is not known yet.
        address = own_address()
        listen = f"{protocol}:{address.port}:interface={address.host}"
        mark = self.log.mark()
        fields = {"protocol": protocol, "listen": listen, "hostname": server.host, **fields}
        self.route(server.port, name, **fields)
        said = self.log.wait(rf"listening on .* for {re.escape(name)}$", mark)
        found = re.search(r"listening on \w+://\[?([^/\]]+)\]?:(\d+)", said)
        assert found, said
        return Endpoint(found[1], int(found[2]))

    def metric(self, line: str) -> float:
        """Return a sample of /metrics, by what stands before its value; 0 where it is not there."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.admin_port))) as wire:
            wire.sendall(b"GET /metrics HTTP/1.0\r\nAccept: text/plain\r\n\r\n")
            with wire.makefile("rb") as file:
                text = file.read().decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    @staticmethod
    def unread(port: int) -> int:
        """Return how many bytes of datagrams wait in the system for who listens on a UDP port."""
        table = Path("/proc/net/udp").read_text().split("\n")[1:-1]
        rows = [line.split() for line in table]
        return sum(
            int(row[4].split(":")[1], 16) for row in rows if int(row[1].split(":")[1], 16) == port
        )

    def wait_for_tunnels(self, count: int, patience: float = PATIENCE) -> None:
        """Wait until so many inner layers are connected."""

        def connected() -> bool:
            up = len(self.log.matching(r"inner layer \S+ connected "))
            return up - len(self.log.matching(r"inner layer \S+ disconnected")) == count

        wait_until(connected, f"{count} inner layers are connected to {self.name}", patience)


def _port(line: str) -> int:
    found = re.search(r"listening on https?://\S*:(\d+)", line)
    return int(found[1]) if found else 0


class Inner(Layer):
    """An inner layer, started by twistd; ``outer`` is the port to dial, or a URL."""

    def __init__(
        self,
        directory: Path,
        private_key: Path | str,
        outer: int | str,
        *options: str | Path,
        env: Mapping[str, str] | None = None,
        name: str = "inner",
    ) -> None:
        url = f"ws://127.0.0.1:{outer}" if isinstance(outer, int) else outer
        arguments = ["--private-key", private_key, "--outer-layer", url, *options]
        super().__init__(name, "sockgw-inner", arguments, directory, env)

    def wait_connected(self, since: int = 0) -> None:
        """Wait until its tunnel is there."""
        self.log.wait("connected to the outer layer", since)


class Gateway:
    """An outer and an inner layer with a tunnel between them."""

    def __init__(
        self,
        directory: Path,
        keys: Keys,
        outer: Sequence[str | Path] = (),
        inner: Sequence[str | Path] = (),
    ) -> None:
        self.outer = Outer(directory, keys.certificate, *outer)
        try:
            self.inner = Inner(directory, keys.private, self.outer.socket_port, *inner)
        except BaseException:
            self.outer.kill()
            raise

    def __enter__(self) -> Self:
        try:
            self.inner.wait_connected()
            self.outer.wait_for_tunnels(1)
        except BaseException:
            self.inner.kill()
            self.outer.kill()
            raise
        return self

    def __exit__(self, *reason: Any) -> None:
        try:
            self.inner.__exit__(*reason)
        finally:
            self.outer.__exit__(*reason)

    @property
    def port(self) -> int:
        """The app port."""
        return self.outer.app_port

    def route(self, destination: Any, **fields: Any) -> str:
        """See :meth:`Outer.route`."""
        return self.outer.route(destination, **fields)

    def assert_idle(self) -> None:
        """Wait until no stream is open, and see that both processes live."""
        assert self.outer.status is None, "the outer layer has ended"
        assert self.inner.status is None, "the inner layer has ended"
        wait_until(lambda: self.outer.metric("sockgw_streams") == 0, "all streams are closed")
