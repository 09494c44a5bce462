"""What a contestant is: a way for clients to origins, of one or more programs on this machine.

To add one, write a class such as those in ``bench/peers/`` and list it in its ``PEERS``::

    class Example(Contestant):
        name = "example"
        encrypts = True
        carries = "its own frames over TLS"
        needs = ("example",)

        def launch(self, room, origins):
            control = room.port()
            room.start("server", [self.program("example"), "server", "--port", str(control)])
            room.wait_listening(control)
            ports = {name: room.port() for name in origins}
            forwards = [f"{ports[name]}:{origin}" for name, origin in origins.items()]
            room.start("client", [self.program("example"), "client", str(control), *forwards])
            return {name: Route(Address(port)) for name, port in ports.items()}

Rules, so that the comparison is fair: programs run as their documentation says, with encryption
between the two halves if that is their default; logs of single requests are off; compression is
off; limits that the load would meet (connections, pools) are raised where there are options. What
was set, and why, stands in the class's docstring.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from bench.processes import Failed, environment
from bench.room import Address, Room, Route

__all__ = ["Address", "Contestant", "Failed", "Programs", "Room", "Route"]


class Programs:
    """Where programs are: given by option (``NAME=PATH``), else on PATH, else in sbin."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given = dict(given or {})

    def find(self, name: str) -> str | None:
        """Return the absolute path of a program or directory; None if there is none."""
        if name in self.given:
            path = os.path.abspath(self.given[name])
            return path if os.path.exists(path) else None
        return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")

    def why_missing(self, name: str) -> str:
        """Say where a program was looked for."""
        if name in self.given:
            return f"{name}: {self.given[name]} does not exist"
        return f"{name} is not on PATH, and no --program {name}=PATH was given"


class Contestant(ABC):
    """A way for clients to origins. One object is launched any number of times, in own rooms."""

    #: What it is called in tables and on the command line.
    name: str
    #: Whether what goes between its two halves is encrypted, as it is run here.
    encrypts: bool = False
    #: What goes between its two halves, as it is run here, for the report.
    carries: str = ""
    #: The programs without which it cannot run.
    needs: tuple[str, ...] = ()

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def missing(self) -> str | None:
        """Say why it cannot run here; None if it can."""
        lacking = [name for name in self.needs if self.programs.find(name) is None]
        return "; ".join(map(self.programs.why_missing, lacking)) or None

    def program(self, name: str) -> str:
        """Return the path of a program that :meth:`missing` has not missed."""
        path = self.programs.find(name)
        if path is None:
            raise Failed(self.programs.why_missing(name))
        return path

    def versions(self) -> dict[str, str]:
        """Return the version of each program, as it tells it."""
        return {name: version_of(self.program(name)) for name in self.needs}

    @abstractmethod
    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        """Start the processes; return how to reach each of the origins through them.

        Origins are HTTP servers on addresses of their own, by name: "web" (nginx), "sink" (takes
        uploads) and "echo" (WebSockets). All are reached through the same processes. Need not wait
        until requests are answered: the caller does. Files that are wanted beforehand, such as
        keys, are made before the first :meth:`Room.start`, from which on time counts.
        """

    def attended(self, room: Room) -> contextlib.AbstractContextManager[None]:
        """Return what has to go on while it is measured, such as the scraping of its metrics."""
        return contextlib.nullcontext()


def version_of(program: str | Path, option: str = "--version", wanted: str = "") -> str:
    """Return the first line that a program prints about its version.

    Or what follows ``wanted``, of the first line that begins with it.
    """
    try:
        done = subprocess.run(
            [str(program), option],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    lines = [
        line.strip().removeprefix(wanted).strip()
        for line in done.stdout.splitlines()
        if line.strip().startswith(wanted) and line.strip() != wanted
    ]
    return lines[0] if lines else "unknown"
