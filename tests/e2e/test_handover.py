"""An outer layer is replaced by another one under load, and no request is lost."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Inner, Keys, Outer, Process, listening_socket, wait_until

RATE = 1000  # requests a second
SECONDS = 6
SETTLED = 1.5  # seconds of load before anything happens

QUICK = ("--reconnect-delay", "50", "--max-reconnect-delay", "200")
HOST = "nginx.test"


class Load(Process):
    """The load generator; see load.py."""

    def __init__(self, directory: Path, port: int) -> None:
        script = Path(__file__).with_name("load.py")
        arguments = [str(port), HOST, str(RATE), str(SECONDS)]
        super().__init__("load", [sys.executable, script, *arguments], directory)

    def result(self) -> dict[str, Any]:
        """Wait for its end, and return what it has counted."""
        assert self.wait(SECONDS + 20) == 0, self.log.lines()
        result: dict[str, Any] = json.loads(self.log.lines()[-1])
        return result


@pytest.mark.parametrize("shared", ["reuse-port", "handed-over"])
def test_no_request_is_lost(tmp_path: Path, keys: Keys, nginx_port: int, shared: str) -> None:
    targets = {HOST: {"protocol": "http", "hostname": "127.0.0.1", "port": nginx_port}}
    with ExitStack() as stack:
        start: Callable[[str], Outer]
        if shared == "reuse-port":
            ports = ["0", "0"]

            def start(name: str) -> Outer:
                app, carriers = (f"tcp:{port}:interface=127.0.0.1" for port in ports)
                options: dict[str, Any] = {"app": app, "socket": carriers, "targets": targets}
                outer = Outer(tmp_path, keys.certificate, "--reuse-port", name=name, **options)
                ports[:] = [str(outer.app_port), str(outer.socket_port)]
                return outer
        else:
            handed = {name: stack.enter_context(listening_socket()) for name in ("app", "socket")}

            def start(name: str) -> Outer:
                options: dict[str, Any] = {
                    each: f"systemd:domain=INET:name={each}" for each in handed
                }
                options |= {"targets": targets, "handed": handed}
                return Outer(tmp_path, keys.certificate, name=name, **options)

        old = stack.enter_context(start("old"))
        stack.enter_context(Inner(tmp_path, keys.private, old.socket_port, *QUICK))
        old.wait_for_tunnels(1)
        load = stack.enter_context(Load(tmp_path, old.app_port))
        time.sleep(SETTLED)  # not in the hope of anything: this long it shall run undisturbed
        new = stack.enter_context(start("new"))
        assert (new.app_port, new.socket_port) == (old.app_port, old.socket_port)
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        result = load.result()
        assert not result["problems"], result
        assert result["good"] > 0.9 * RATE * SECONDS, result
        assert old.log.matching("drained")

        def served(outer: Outer) -> int:
            return len(outer.access.matching('"GET /hello .* 200 '))

        wait_until(lambda: served(old) + served(new) == result["good"], "all are in the logs")
        assert min(served(old), served(new)) > RATE
