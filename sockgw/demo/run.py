"""``sockgw demo``: a whole gateway on this machine, of three real processes.

Everything is in one temporary directory and listens on this machine's own addresses. However it
ends, the processes end with it, and the directory goes.
"""

import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from sockgw import __version__, keys
from sockgw.demo.checks import Client, run_checks
from sockgw.demo.children import Child, DemoError, Port

__all__ = ["TARGETS", "main"]

_PORTS = {"app-port": 3000, "socket-port": 3001, "origin-port": 8000}
_LINE = "between the layers"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READY_TIMEOUT = 30.0  # seconds
_LOOK = 0.05  # seconds between two looks at whether something is ready
_WATCH = 0.2  # seconds between two looks at whether all processes live

TARGETS = """\
targets:
  localhost:
    protocol: http
    hostname: 127.0.0.1
    port: {port}
    policy: # whatever is not listed is forbidden, such as /secret
      /: [GET, HEAD]
      /echo: "*"
      /upload: [POST, PUT]
      /drip: [GET, HEAD]
      /events: [GET, HEAD]
      /chat: [GET]
      /cut: [POST]
      "^/download(/sha256)?$": [GET, HEAD]
    identifier: demo
"""

_HINTS = """
Try it:
  curl {url}/echo -d 'some text'
  curl -T FILE {url}/upload
  curl -N {url}/events
  curl '{url}/download?size=1000000000' | sha256sum
  curl '{url}/download/sha256?size=1000000000'
  curl -i {url}/secret
  curl -i -H 'Host: unknown.example' {url}/
  curl -X POST {url}/cut    # breaks the line between the layers for 4 s, amid all of these

In a browser:
  {url}/   twice: the two can chat
  {admin}/admin   any user name, password {password}
"""


class _Interrupted(Exception):
    """Somebody wants us to end."""


def main(options: Mapping[str, int | None]) -> int:
    """Run the demonstration; return the exit status.

    ``options`` has ``once``, and ``app-port``, ``socket-port`` and ``origin-port``: a number, 0 for
    any, or None for the usual one, or another if that is taken. 0: all went well, or it was ended
    from outside; 1: something failed.
    """
    once = bool(options["once"])
    with _signals() as interrupted, ExitStack() as stack:
        try:
            demo = _Demo(stack, options, interrupted)
            passed = run_checks(demo.client, interrupted)
            if once:
                if not passed:
                    print(*(child.tail() for child in demo.children), sep="\n", file=sys.stderr)
                return 0 if passed else 1
            demo.stay()
        except _Interrupted:
            print("\nEnding.", flush=True)
            return 1 if once else 0
        except (DemoError, OSError) as error:
            print(f"sockgw demo: {error}", file=sys.stderr)
            return 1


class _Demo:
    """The three processes; the constructor returns when requests can be sent."""

    def __init__(
        self,
        stack: ExitStack,
        options: Mapping[str, int | None],
        interrupted: Callable[[], None],
    ) -> None:
        """``stack`` ends what is begun here. Raises DemoError, and what ``interrupted`` raises."""
        self._stack = stack
        self._interrupted = interrupted
        self.children: list[Child] = []
        print(f"sockgw {__version__}: a gateway on this machine", flush=True)
        with ExitStack() as held:
            app, sockets, origin = (
                Port.claim(held, option, options[option], usual) for option, usual in _PORTS.items()
            )
            line = Port.claim(held, _LINE, 0, 0)
            self._directory = Path(stack.enter_context(TemporaryDirectory(prefix="sockgw-demo-")))
            self._url = f"http://localhost:{app.number}"
            self._admin = f"http://localhost:{sockets.number}"
            self._password = secrets.token_urlsafe(12)
            self.client = Client(app.number)
            self._start(app, sockets, origin, line)

    def _start(self, app: Port, sockets: Port, origin: Port, line: Port) -> None:
        directory = self._directory
        print(f"\nIn {directory}, which is removed at the end:")
        fingerprint = keys.generate(
            directory / "demo.key", directory / "demo.crt", common_name="demo"
        )
        _tell("demo.key, demo.crt", fingerprint)
        (directory / "targets.yaml").write_text(TARGETS.format(port=origin.number))
        _tell("targets.yaml", f"localhost leads to http://127.0.0.1:{origin.number}")
        password_file = directory / "admin.password"
        password_file.write_text(self._password + "\n")

        self._child(
            "origin",
            "sockgw.demo.origin",
            *("--line", f"{line.endpoints[0]}={sockets.number}"),
            *origin.endpoints,
        )
        self._child(
            "outer layer",
            *("sockgw", "outer-layer", "--public-key", "demo.crt", "--targets", "targets.yaml"),
            *_repeated("--app-port", app.endpoints),
            *_repeated("--socket-port", sockets.endpoints),
            *("--admin-password-file", password_file.name),
            *("--drain-timeout", "1000"),  # Ctrl-C means now
        )
        self._direct = Client(origin.number)
        self._await(self._direct, "/", "the origin does not answer")
        gate = Client(sockets.number)
        self._await(gate, "/healthz", "the outer layer does not answer")
        _tell("origin", f"http://localhost:{origin.number}", self.children[0])
        _tell("outer layer", f"{self._url} for clients", self.children[1])

        self._child(
            "inner layer",
            *("sockgw", "inner-layer", "--private-key", "demo.key"),
            *("--outer-layer", f"ws://127.0.0.1:{line.number}"),
            *("--allow", f"127.0.0.1:{origin.number}"),
            *("--drain-timeout", "1000"),
        )
        self._await(gate, "/readyz", "the inner layer has no tunnel to the outer layer")
        _tell("inner layer", f"dialled ws://127.0.0.1:{line.number}", self.children[2])
        _tell("the line", f"from there to port {sockets.number}; can be cut to see what happens")
        print("\nThrough the tunnel:", flush=True)

    def stay(self) -> NoReturn:
        """Tell what can be tried, and return never. Raises as the constructor does."""
        print(_HINTS.format(url=self._url, admin=self._admin, password=self._password))
        asked = _in_front()
        keys = "Enter cuts the line for some seconds, Ctrl-C" if asked else "Ctrl-C"
        print(f"Logs: {self._directory}/*.log\n{keys} ends it.", flush=True)
        while True:
            self._check()
            if not asked or not _in_front():
                time.sleep(_WATCH)
            elif select.select([sys.stdin], [], [], _WATCH)[0]:
                if sys.stdin.readline():
                    self._cut()
                else:
                    asked = False

    def _cut(self) -> None:
        with self._direct.open("POST", "/cut") as response:
            print(response.read().decode(), end="", flush=True)

    def _child(self, name: str, *arguments: str) -> None:
        child = Child(name, self._directory, arguments)
        self._stack.callback(child.stop)
        self.children.append(child)

    def _check(self) -> None:
        self._interrupted()
        for child in self.children:
            child.check()

    def _await(self, client: Client, path: str, otherwise: str) -> None:
        """Wait until a GET is answered with 200."""
        deadline = time.monotonic() + _READY_TIMEOUT
        while True:
            self._check()
            if client.status(path) == 200:
                return
            if time.monotonic() > deadline:
                tails = (child.tail() for child in self.children)
                raise DemoError(
                    "\n".join([f"{otherwise}, after {_READY_TIMEOUT:.0f} s of waiting", *tails])
                )
            time.sleep(_LOOK)


def _in_front() -> bool:
    """Return whether somebody types, and for us: who reads in the background is stopped."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def _tell(what: str, note: str, child: Child | None = None) -> None:
    process = f"  (process {child.pid})" if child else ""
    print(f"  {what:<18}  {note}{process}", flush=True)


def _repeated(option: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield option
        yield value


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Yield what raises _Interrupted as soon as a signal has asked us to end.

    A handler that raised by itself could do so anywhere: between the start of a process and the
    note of it, or in a finalizer, where the exception is lost.
    """
    caught: list[int] = []
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    if previous[signal.SIGHUP] == signal.SIG_IGN:  # nohup
        del previous[signal.SIGHUP]
    for number in previous:
        signal.signal(number, lambda number, frame: caught.append(number))

    def check() -> None:
        if caught:
            raise _Interrupted

    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
