"""An inner layer in a network of its own, behind a router that loses packets (as root).

The outer layer listens on 10.73.1.1. A namespace routes between there and 10.73.2.0/30, where
another one holds the inner layer and the origin. Packets are lost where the router forwards them:
what a host itself drops, its own TCP would hear of.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Self

from harness import LOOPBACK, Inner, Keys, Outer, Process, command, run
from load import Clients, Origin

__all__ = ["LossyLink"]

OUTSIDE, ROUTER_OUTSIDE = "10.73.1.1", "10.73.1.2"
INSIDE, ROUTER_INSIDE = "10.73.2.2", "10.73.2.1"


class LossyLink(contextlib.ExitStack):
    """The stand; ``loss`` is the part of packets that is lost each way."""

    def __init__(self, directory: Path, keys: Keys, loss: float) -> None:
        super().__init__()
        self._directory = directory
        self._keys = keys
        self._loss = loss
        self._router = f"sockgw-router-{os.getpid()}"
        self._inside = f"sockgw-inside-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _start(self) -> None:
        self._make_network()
        prefix = ("ip", "netns", "exec", self._inside)
        self.origin = self.enter_context(Origin(self._directory, prefix))
        self.outer = self.enter_context(
            Outer(
                self._directory,
                self._keys.certificate,
                *("--admin-port", LOOPBACK),
                socket=f"tcp:0:interface={OUTSIDE}",
            )
        )
        self.inner = self.enter_context(
            InnerInside(
                self._directory, self._keys, f"ws://{OUTSIDE}:{self.outer.socket_port}", prefix
            )
        )
        self.inner.log.wait("connected to the outer layer", patience=60)
        self.host = self.outer.route(self.origin)
        self.clients = self.enter_context(Clients(self._directory, self.outer.app_port))

    def _make_network(self) -> None:
        short = os.getpid() % 100_000  # names of interfaces have 15 characters at most
        for name in (self._router, self._inside):
            _ip(f"netns add {name}")
            self.callback(_ip, f"netns del {name}")
            _ip(f"-n {name} link set lo up")
        ends = [
            (
                f"sgo{short}",
                "",
                f"{OUTSIDE}/30",
                f"sgp{short}",
                self._router,
                f"{ROUTER_OUTSIDE}/30",
            ),
            (
                f"sgi{short}",
                self._inside,
                f"{INSIDE}/30",
                f"sgr{short}",
                self._router,
                f"{ROUTER_INSIDE}/30",
            ),
        ]
        for one, where, address, other, there, other_address in ends:
            _ip(f"link add {one} type veth peer name {other}")
            # With its namespace it would go as well, but some time later.
            self.callback(run, "ip", *(("-n", where) if where else ()), "link", "del", one)
            for name, space, own in ((one, where, address), (other, there, other_address)):
                if space:
                    _ip(f"link set {name} netns {space}")
                into = f"-n {space} " if space else ""
                # One segment a packet, as on a wire: else 64 KiB are lost at a time.
                _ip(f"{into}link set {name} up gso_max_segs 1")
                _ip(f"{into}addr add {own} dev {name}")
        _ip(f"route add 10.73.2.0/30 via {ROUTER_OUTSIDE}")
        _ip(f"-n {self._inside} route add default via {ROUTER_INSIDE}")
        self._in_router("sysctl", "-qw", "net.ipv4.ip_forward=1")
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(self._loss))
        self._in_router("iptables", "-A", "FORWARD", *chance, "-j", "DROP")

    def _in_router(self, *arguments: str) -> str:
        return _run("ip", "netns", "exec", self._router, *arguments)

    def dropped(self) -> int:
        """Return how many packets were lost."""
        rules = self._in_router("iptables", "-L", "FORWARD", "-vxn")
        return int(re.search(r"^\s*(\d+)\s+\d+\s+DROP", rules, re.MULTILINE)[1])  # type: ignore[index]


class InnerInside(Inner):
    """An inner layer, started with a command before it."""

    def __init__(self, directory: Path, keys: Keys, url: str, prefix: tuple[str, ...]) -> None:
        twistd = [*prefix, command("twistd"), "-n", "--pidfile=", "sockgw-inner"]
        Process.__init__(
            self,
            "inner",
            [*twistd, "--private-key", keys.private, "--outer-layer", url, "--insecure"],
            directory,
        )


def _ip(arguments: str) -> None:
    _run("ip", *arguments.split())


def _run(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout
