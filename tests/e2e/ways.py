"""The ways on which the same thing must happen: straight, through the tunnel, and with cuts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from cable import Cable
from harness import Endpoint, Inner, Keys, Outer, wait_until

__all__ = ["WAYS", "Line", "Way"]

WAYS = ("direct", "tunnel", "cut")

_QUICK = ("--reconnect-delay", "20", "--max-reconnect-delay", "100")


class Line(ExitStack):
    """An outer and an inner layer, and a cable between them that can be cut."""

    def __init__(
        self,
        directory: Path,
        keys: Keys,
        outer: tuple[str, ...] = (),
        inner: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        with ExitStack() as stack:
            self.outer = stack.enter_context(Outer(directory, keys.certificate, *outer))
            self.cable = stack.enter_context(Cable(self.outer.socket_port, record=False))
            self.inner = stack.enter_context(
                Inner(directory, keys.private, self.cable.port, *_QUICK, *inner)
            )
            self.inner.wait_connected()
            self.outer.wait_for_tunnels(1)
            self.enter_context(stack.pop_all())

    def cut(self) -> None:
        """Cut the cable, and wait until the tunnel has gone on."""
        resumed = self.resumes
        self.cable.cut()
        wait_until(lambda: self.resumes > resumed, "the tunnel goes on")

    @property
    def resumes(self) -> float:
        """How often the tunnel has gone on."""
        return self.outer.metric("sockgw_resumes_total")

    @contextmanager
    def idle_after(self) -> Iterator[None]:
        """See that nothing stays behind."""
        yield
        assert self.outer.status is None
        assert self.inner.status is None
        wait_until(lambda: self.outer.metric("sockgw_streams") == 0, "all streams are closed")


_names = count()


class Way:
    """How clients get to a server."""

    def __init__(self, kind: str, line: Line) -> None:
        self.kind = kind
        self.line = line

    def to(self, server: Any, protocol: str = "tcp", **fields: Any) -> Endpoint:
        """Return where to connect to a server that has a ``host`` and a ``port``."""
        if self.kind == "direct":
            return Endpoint(server.host, server.port)
        return self.line.outer.publish(f"{protocol}{next(_names)}", server, protocol, **fields)

    def cut(self) -> None:
        """Cut the cable, where that is the way."""
        if self.kind == "cut":
            self.line.cut()

    @contextmanager
    def cut_every(self, size: int) -> Iterator[None]:
        """Cut the cable whenever so many bytes have passed, where that is the way."""
        if self.kind != "cut":
            yield
            return
        resumed, cable = self.line.resumes, self.line.cable
        cable.every = size
        try:
            yield
        finally:
            cable.every = None
        assert self.line.resumes > resumed, "there was no cut"
