"""Helpers of the tests that run as processes of their own, and obey over a socket.

Commands and answers are JSON, one a line. An answer bears its command's number: commands may
overlap. A helper ends when the socket does, so none outlives the tests.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import PATIENCE, Process

__all__ = ["Child", "Relay"]


class Child(Process):
    """A script beside this file, run by this Python; ``prefix`` is a command to run it with."""

    def __init__(self, name: str, directory: Path, prefix: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            script = Path(__file__).with_name(f"{name}.py")
            super().__init__(
                name,
                [*prefix, sys.executable, script, str(theirs.fileno())],
                directory,
                pass_fds=(theirs.fileno(),),
            )
        self._socket = ours
        self._received = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}

    def start(self, command: str, **arguments: Any) -> int:
        """Send a command; return the number for :meth:`result`."""
        self._number += 1
        line = {"number": self._number, "command": command, **arguments}
        self._socket.sendall(json.dumps(line).encode() + b"\n")
        return self._number

    def result(self, number: int, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for a command's answer; what goes wrong over there is raised here."""
        deadline = time.monotonic() + patience
        while number not in self._answers:
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name} does not answer within {patience:g} s"
            self._receive(left)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{self.name}: {answer['error']}"
        return answer

    def answered(self, number: int) -> bool:
        """Return whether :meth:`result` would not have to wait."""
        self._receive(0)
        return number in self._answers

    def _receive(self, patience: float) -> None:
        if not select.select([self._socket], [], [], patience)[0]:
            return
        data = self._socket.recv(1 << 20)
        assert data, f"{self.name} has ended: {self.log.lines()}"
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._answers[answer["number"]] = answer

    def ask(self, command: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return self.result(self.start(command, **arguments), patience)

    def stop(self) -> None:
        """End it by ending the socket."""
        self._socket.close()
        status = self.wait()
        assert status == 0, f"{self.name} ended with status {status}: {self.log.lines()}"

    def kill(self) -> None:
        self._socket.close()
        super().kill()


class Relay(Child):
    """The relay of relay.py; ``target`` is the port that it leads to.

    ``settings`` and what :meth:`set` takes: ``rate`` (bit/s; 0: none), ``delay`` (seconds, one
    way), ``hold`` (bytes), all for one ``direction`` ("up", "down") or for both; ``buffers`` (bytes
    that the kernel may keep in each of the relay's sockets).
    """

    def __init__(self, directory: Path, target: int, **settings: Any) -> None:
        super().__init__("relay", directory)
        self.port: int = self.ask("port")["port"]
        self.set(target=target, **settings)

    def set(self, **settings: Any) -> None:
        """Change settings, also of connections that are there (but for ``buffers``)."""
        self.ask("set", **settings)

    def fail(self, action: str, direction: str = "") -> float:
        """Let a fault happen now; return when it did, as time.monotonic() counts."""
        return self.ask("fail", action=action, direction=direction)["at"]

    def arm(self, on: str, count: int, action: str, direction: str = "") -> int:
        """Let a fault happen after exactly ``count`` more bytes in a direction; see Child.result.

        The answer has ``fired``, and where that is true ``at`` as of :meth:`fail`.
        """
        return self.start("arm", on=on, bytes=count, action=action, direction=direction)

    def stats(self) -> dict[str, Any]:
        """Return what it has counted."""
        return self.ask("stats")
