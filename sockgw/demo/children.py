"""The demonstration's processes, and the ports that they get."""

import ctypes
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sockgw.endpoints import listen_error

__all__ = ["Child", "DemoError", "Port"]

_STOP_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL
_TAIL = 10  # lines of a log that tell why a process ended
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ATTEMPTS = 10  # to find a port that is free on both addresses

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class DemoError(Exception):
    """The demonstration cannot go on; the text is for who started it."""


class Child:
    """A process with a log file of its own.

    It has a session of its own too, so that Ctrl-C reaches only us and we end the processes in our
    order. Where we are killed, Linux ends them.
    """

    def __init__(self, name: str, directory: Path, arguments: Sequence[str]) -> None:
        """Start ``python -m`` with these arguments, in the directory."""
        self.name = name
        self.log = directory / f"{name.replace(' ', '-')}.log"
        command = [sys.executable, "-m", *arguments]
        parent = os.getpid()

        def die_with_parent() -> None:
            if _libc is not None:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it is dead already
                os._exit(1)

        with self.log.open("w") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command,
                cwd=directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def check(self) -> None:
        """Raise DemoError if the process has ended, with the end of its log."""
        status = self._process.poll()
        if status is None:
            return
        how = f"with status {status}" if status >= 0 else f"by signal {-status}"
        raise DemoError(f"the {self.name} ended {how}\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the log, indented, under its name."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL:]
        return "\n".join([f"  {self.log}:", *(f"    {line}" for line in lines)])

    def stop(self) -> None:
        """End the process; return when it is gone."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """Return ours without what would configure a layer, give it a proxy or a supervisor."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SOCKGW_", "LISTEN_"))
        and not name.lower().endswith("_proxy")
        and name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    }


@dataclass(frozen=True, slots=True)
class Port:
    """A port of this machine's own addresses, which strangers cannot reach."""

    number: int
    addresses: tuple[str, ...]  #: 127.0.0.1, and ::1 where there is IPv6

    @property
    def endpoints(self) -> list[str]:
        """The descriptions of where to listen."""
        return [
            f"tcp:{self.number}:interface={address.replace(':', chr(92) + ':')}"
            for address in self.addresses
        ]

    @classmethod
    def claim(cls, held: ExitStack, option: str, wanted: int | None, usual: int) -> "Port":
        """Find a port: the one that is wanted (0: any), else the usual one or any.

        On Linux nobody else gets it until ``held`` is closed: a socket that is bound without
        listening keeps others away, and not a server that allows reuse of the address, as ours do.
        Raises DemoError where the wanted one cannot be had.
        """
        try:
            if wanted == 0:
                return cls._any(held)
            return cls._hold(held, usual if wanted is None else wanted)
        except OSError as error:
            if wanted is not None:
                raise DemoError(listen_error(str(wanted), error, option)) from None
            port = cls._any(held)
            print(f"Port {usual} is taken: it is {port.number} instead.", flush=True)
            return port

    @classmethod
    def _any(cls, held: ExitStack) -> "Port":
        for _ in range(_ATTEMPTS):
            try:
                return cls._hold(held, 0)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise DemoError(f"no port can be had: {error.strerror}") from None
        raise DemoError("no free port was found")

    @classmethod
    def _hold(cls, held: ExitStack, number: int) -> "Port":
        addresses: list[str] = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                bound = socket.socket(family, socket.SOCK_STREAM)
                held.callback(bound.close)
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind((address, number))
            except OSError as error:
                if family is socket.AF_INET6 and error.errno in (
                    errno.EAFNOSUPPORT,
                    errno.EADDRNOTAVAIL,
                ):
                    continue
                raise
            number = bound.getsockname()[1]
            addresses.append(address)
            if sys.platform != "linux":
                bound.close()
        return cls(number, tuple(addresses))
