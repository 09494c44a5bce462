"""Unix sockets of origins: which may be dialled, and how each failure is told."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inner_reactor import Reactor
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from sockgw.http.client import Origin, OriginError
from sockgw.inner.allow import AllowList, socket_path
from sockgw.inner.dial import Dialler
from sockgw.inner.unixsocket import UnixEndpoint
from sockgw.protocol.errors import StreamCode

DOCKER = "/var/run/docker.sock"


@pytest.mark.parametrize(
    ("entry", "path", "permitted"),
    [
        ("unix:/run/app.sock", "/run/app.sock", True),
        ("unix:/run/app.sock", "/run/app.sock2", False),
        ("unix:/run/app.sock", "/run", False),
        ("unix:/run/app.sock", "/run/app.sock/x", False),
        ("unix:/run//x/../app.sock", "/run/app.sock", True),
        ("unix:///run/app.sock", "/run/app.sock", True),
        ("unix:/run/apps/*", "/run/apps/a.sock", True),
        ("unix:/run/apps/*", "/run/apps/sub/a.sock", False),
        ("unix:/run/apps/*", "/run/apps", False),
        ("unix:/run/apps/*", "/run/a.sock", False),
        ("unix:/run/apps/*", "/run/apps2/a.sock", False),
        ("unix:/*", "/a.sock", True),
        ("unix:/*", "/run/a.sock", False),
        ("*", DOCKER, False),
        ("*:80", DOCKER, False),
        ("localhost", DOCKER, False),
        ("0.0.0.0/0", DOCKER, False),
    ],
)
def test_entries(entry: str, path: str, permitted: bool) -> None:
    assert AllowList.parse([entry]).permits_socket(path) is permitted


def test_without_a_list_no_socket_is_allowed() -> None:
    for allow in (AllowList(), AllowList.parse([])):
        assert not allow.permits_socket(DOCKER)
        assert allow.permits("a", "10.0.0.7", 80)


def test_services_sockets_make_no_list() -> None:
    allow = AllowList.parse([], ["/run/app.sock"])
    assert allow.permits_socket("/run/app.sock")
    assert not allow.permits_socket(DOCKER)
    assert not allow.listed
    assert allow.permits("a", "10.0.0.7", 80)


def test_a_list_of_sockets_allows_no_host() -> None:
    allow = AllowList.parse(["unix:/run/app.sock"])
    assert allow.listed
    assert not allow.permits_name("a", 80)
    assert not allow.permits("a", "10.0.0.7", 80)


@pytest.mark.parametrize(
    "entry",
    [
        "unix:",
        "unix:app.sock",
        "unix:./app.sock",
        "unix:*",
        "unix:/run/",
        "unix:/",
        "unix:/run/a*",
        "unix:/run/*/a.sock",
        "unix:/run/*/*",
        "unix:/run/*/../a",
        "unix:/run/a\0b",
        "unix:/run/a\nb",
        "unix:/" + "a" * 107,
    ],
)
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match=r"unix:"):
        AllowList.parse([entry])


@given(st.text("/.ab*", min_size=1, max_size=12))
def test_no_spelling_leads_elsewhere(text: str) -> None:
    """What is compared is what the system opens, links aside."""
    path = "/" + text
    normal = socket_path(path)
    assert normal == os.path.abspath(path.lstrip("/").join(("/", "")))
    assert socket_path(normal) == normal
    allow = AllowList.parse(["unix:/a/*", "unix:/b"])
    assert allow.permits_socket(normal) == (
        normal == "/b" or (os.path.dirname(normal) == "/a" and normal != "/a")
    )


class _Echo(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


CLIENTS = Factory.forProtocol(_Echo)


class Dialling(TestCase):
    """Against the sockets of a real system."""

    def setUp(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.addCleanup(self._directory.cleanup)
        self.directory = Path(self._directory.name)
        self.sockets: list[socket.socket] = []

    def tearDown(self) -> None:
        for each in self.sockets:
            each.close()

    def bound(self, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        each = socket.socket(socket.AF_UNIX, kind)
        self.sockets.append(each)
        each.bind(str(self.directory / name))
        return each

    def dial(self, path: str, timeout: float = 10.0, *allow: str) -> Any:
        entries = allow or (f"unix:{self.directory}/*",)
        dialler = Dialler(reactor, AllowList.parse(entries), [], timeout)
        return dialler.endpoint(Origin("http", "localhost", 80, path)).connect(CLIENTS)

    async def told(self, name: str, timeout: float = 10.0) -> tuple[StreamCode, str]:
        path = str(self.directory / name)
        error = await self.assertFailure(self.dial(path, timeout), OriginError)
        assert error.detail.startswith(path)
        return error.code, error.detail.removeprefix(path)

    async def test_it_connects(self) -> None:
        self.bound("app").listen()
        protocol = await self.dial(str(self.directory / "app"))
        assert protocol.transport.protocol is protocol  # with no layer between

    async def test_failures(self) -> None:
        (self.directory / "file").touch()
        self.bound("closed").close()
        self.bound("datagram", socket.SOCK_DGRAM)
        refused = StreamCode.CONNECTION_REFUSED, " refused the connection"
        assert await self.told("file") == refused
        assert await self.told("closed") == refused
        gone = StreamCode.UNREACHABLE, ": no such file or directory"
        assert await self.told("missing") == gone
        wrong = StreamCode.UNREACHABLE, ": protocol wrong type for socket"
        assert await self.told("datagram") == wrong

    async def test_no_permission(self) -> None:
        if os.geteuid() == 0:
            # Root may open what it likes: another user has to ask.
            os.chmod(self.directory, 0o755)
        self.bound("app").listen()
        os.chmod(self.directory / "app", 0)
        nobody = 65534
        if os.geteuid() == 0:
            os.seteuid(nobody)
            self.addCleanup(os.seteuid, 0)
        assert await self.told("app") == (StreamCode.UNREACHABLE, ": permission denied")

    async def test_a_full_queue_is_waited_for(self) -> None:
        server = self.bound("app")
        server.listen(0)
        path = str(self.directory / "app")
        first = socket.socket(socket.AF_UNIX)
        self.sockets.append(first)
        first.connect(path)
        connecting = self.dial(path)
        reactor.callLater(0.02, lambda: self.sockets.append(server.accept()[0]))  # type: ignore[attr-defined]
        await connecting

    async def test_but_not_for_ever(self) -> None:
        self.bound("app").listen(0)
        first = socket.socket(socket.AF_UNIX)
        self.sockets.append(first)
        first.connect(str(self.directory / "app"))
        assert await self.told("app", timeout=0.05) == (
            StreamCode.CONNECTION_TIMEOUT,
            " could not be connected in time",
        )

    async def test_only_what_is_allowed(self) -> None:
        self.bound("app").listen()
        path = str(self.directory / "app")
        for allow in (("*",), (f"unix:{path}2",), (f"unix:{self.directory.parent}/*",)):
            error = await self.assertFailure(self.dial(path, 10.0, *allow), OriginError)
            assert error.code is StreamCode.NOT_ALLOWED
            assert error.detail == f"unix:{path} is not on the inner layer's allow list"
        await self.dial(path, 10.0, f"unix:{path}")


def test_cancelled_while_connecting() -> None:
    memory = Reactor([])
    connecting = UnixEndpoint(memory, "/run/app.sock", 10.0).connect(CLIENTS)
    errors: list[Any] = []
    connecting.addErrback(errors.append)
    connecting.cancel()
    assert errors[0].check(CancelledError)
    assert isinstance(memory, Clock)
    assert memory.getDelayedCalls() == []
