"""A room: where one contestant runs, with a directory, ports and processes that end with it."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from bench.processes import PATIENCE, Failed, Process, Usage, end, environment, usage_of

__all__ = ["Address", "Room", "Route", "free_port"]


class Address(NamedTuple):
    """Where a server listens: always on loopback."""

    port: int
    host: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Route(NamedTuple):
    """How a client reaches an origin through a contestant."""

    address: Address
    host: str = "localhost"
    """The Host header to send."""

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"


_given: set[int] = set()


def free_port() -> int:
    """Return a port that is free, and that the system gives to nobody who does not ask for it."""
    for number in random.SystemRandom().sample(range(10_000, 32_768), 1000):
        if number in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as held:
            held.bind(("127.0.0.1", number))
            _given.add(number)
            return number
    raise Failed("no port is free")


class Room:
    """A directory, ports and processes. Use it as a context manager: leaving it ends all."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.directory = directory
        #: The processes by their role ("server", "client"), which is their name in the report.
        self.processes: dict[str, Process] = {}
        #: When the first process was started, of :func:`time.monotonic`.
        self.began: float | None = None
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            self._exits.close()
        finally:
            end(self.processes.values())
            shutil.rmtree(self.directory, ignore_errors=True)

    # -------------------------------------------------------------- for those who furnish it

    def port(self) -> int:
        """Return a free port."""
        return free_port()

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file of the room; return its path."""
        path = self.directory / name
        path.touch(mode)
        path.write_text(text)
        return path

    def call(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Run a command to its end, such as one that makes keys; return what it prints."""
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=self.directory,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            words = " ".join((done.stderr or done.stdout).split())[-400:]
            raise Failed(f"{Path(arguments[0]).name} failed ({done.returncode}): {words}")
        return done.stdout

    def start(
        self,
        role: str,
        arguments: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start a process that stays in the foreground; what it prints goes to ROLE.log."""
        if self.began is None:
            self.began = time.monotonic()
        process = Process(
            f"{self.name}, {role}",
            arguments,
            self.directory / f"{role}.log",
            cwd=cwd or self.directory,
            env=env,
        )
        self.processes[role] = process
        return process

    def wait_until(
        self, condition: Callable[[], object], what: str, patience: float = PATIENCE
    ) -> None:
        """Wait for a condition; raise :exc:`Failed` if it does not come, or a process ends."""
        deadline = time.monotonic() + patience
        while not condition():
            for process in self.processes.values():
                process.assert_running()
            if time.monotonic() > deadline:
                words = "; ".join(
                    f"{role}: {process.last_words()}" for role, process in self.processes.items()
                )
                raise Failed(f"{self.name}: not within {patience:g} s: {what} ({words})")
            time.sleep(0.002)

    def wait_listening(self, port: int, host: str = "127.0.0.1") -> None:
        """Wait until somebody listens on a port."""

        def listening() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                return True
            return False

        self.wait_until(listening, f"something listens on {host}:{port}")

    def wait_logged(self, role: str, words: str) -> None:
        """Wait until a process has printed some words."""
        log = self.processes[role].log
        self.wait_until(lambda: words in log.read_text("utf-8", "replace"), f"{role}: {words!r}")

    def stop(self, role: str) -> None:
        """End a process before the others."""
        end([self.processes.pop(role)])

    def at_exit(self, callback: Callable[[], object]) -> None:
        """Have something called on leaving, before the processes are ended."""
        self._exits.callback(callback)

    # -------------------------------------------------------------- for those who measure

    def usage(self) -> dict[str, Usage]:
        """Return what each process has used, by role."""
        return {role: usage_of(process.pid) for role, process in self.processes.items()}
