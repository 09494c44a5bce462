"""The web site of the socket port: the WebSocket's upgrade, health, metrics and the admin page.

twisted.web is convenient and trusts its clients: it lets a head drip in for ever, takes a request
without Host or with two, and stores bodies in files without a limit. So its channel gets to see
nothing but whole heads that this module has judged: received within a deadline and a size, parsed
by llhttp as strictly as on the app port, and of requests that this port serves, which are GET and
HEAD without a body.

::

    bytes ──▶ a head within deadline and size ──▶ judge() ──▶ twisted.web ──▶ root ──▶ page
                     └─ abort, 431                  └─ 4xx                     └─▶ WebSocket

Where the WebSocket takes the connection over, nothing of this stays behind but the count of
connections.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import httptools
from prometheus_client import CollectorRegistry, Metric
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from sockgw.outer.admin import AdminResource, AdminState, answer
from sockgw.outer.crowd import Crowd
from sockgw.outer.metrics import Metrics

__all__ = ["admin_root", "judge", "make_site", "socket_root"]

_log = Logger()

_MAX_HEAD = 16 * 1024  # bytes; twisted.web's own limit for a line
_MAX_HEADERS = 100
_REPORT_INTERVAL = 60  # seconds between two events about too many connections

# RFC 3986, section 3.2.2, and a port: no list, no user information, no spaces.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+;=%-]+)(?::[0-9]{0,5})?")


class _Head:
    """Collects what llhttp finds."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def judge(head: bytes) -> int:
    """Return 0 for a head that may pass, else the status that refuses it.

    ``head`` is everything from the method to the empty line.
    """
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # llhttp stops there, behind the head
    except httptools.HttpParserError:
        return 400
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        return 505
    if len(found.headers) > _MAX_HEADERS:
        return 431
    fields = dict(found.headers)
    # RFC 9112, sections 3.2 and 6.1. Load balancers check health in HTTP/1.0 without Host.
    hosts = [value for name, value in found.headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        return 400
    if hosts and not _HOST.fullmatch(hosts[0]):
        return 400
    if b"transfer-encoding" in fields:
        return 413 if version == "1.1" else 400
    if fields.get(b"content-length", b"").strip(b"0"):
        return 413
    if b"expect" in fields:
        return 417
    if parser.get_method() not in (b"GET", b"HEAD"):
        return 405
    if not found.target.startswith(b"/") or b"#" in found.target:
        return 400
    return 0


class _Channel(HTTPChannel):
    """A connection of the socket port."""

    site: "_Site"

    def connectionMade(self) -> None:
        # HTTPChannel.transport becomes None when a WebSocket takes it.
        self._wire = cast(Any, self.transport)
        self._received = b""
        self._busy = False  # twisted.web has a request that it has not answered
        self._advancing = False
        self._closing = False
        self._deadline: IDelayedCall | None = None
        super().connectionMade()
        self._arm()
        if not self.site.admit():
            self._closing = True
            self._wire.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._disarm()
        self._closing = True
        self.site.connections -= 1
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        if not self._closing:
            self._received += data
            self._advance()

    def _advance(self) -> None:
        """Hand whole heads to twisted.web, one after the other is answered."""
        if self._advancing:  # a request was answered within the loop below
            return
        self._advancing = True
        try:
            while not self._busy and not self._closing and (head := self._take_head()):
                if status := judge(head):
                    self._refuse(status)
                    return
                self._busy = True
                self._disarm()
                super().dataReceived(head)
                if self.transport is None:
                    self._handed_over()
        finally:
            self._advancing = False
        if self._busy and len(self._received) > _MAX_HEAD and not self._closing:
            self._abort()

    def _take_head(self) -> bytes:
        """Return the next head if it is there as a whole."""
        # RFC 9112, section 2.2: empty lines before a request are no error.
        received = self._received.lstrip(b"\r\n")
        end = received.find(b"\r\n\r\n", 0, _MAX_HEAD) + 4
        if end >= 4:
            self._received = received[end:]
            return received[:end]
        self._received = received
        if len(received) >= _MAX_HEAD:
            self._refuse(431)
        return b""

    def requestDone(self, request: Request) -> None:
        super().requestDone(request)
        self._busy = False
        if not self._closing:
            self._arm()
            self._advance()

    def _handed_over(self) -> None:
        """The WebSocket has the connection; see that it is counted until its end."""
        wire = self._wire
        self._closing = True
        # Of the TCP connection itself, also through wrappers such as TLS, which pass it on.
        owner: Any = wire.protocol
        site = self.site
        connection_lost: Callable[..., None] = owner.connectionLost
        site.carriers.add(self)

        def connectionLost(*reason: Failure) -> None:
            site.connections -= 1
            site.carriers.discard(self)
            connection_lost(*reason)

        owner.connectionLost = connectionLost
        if self._received:
            # RFC 6455, section 4.1: a client waits for the answer. These bytes would be lost.
            wire.abortConnection()

    def _refuse(self, status: int) -> None:
        phrase = HTTPStatus(status).phrase
        self._report(phrase)
        reason = phrase.encode("ascii")
        body = reason + b"\n"
        allow = b"Allow: GET, HEAD\r\n" if status == 405 else b""
        self._wire.write(
            b"HTTP/1.1 %d %b\r\n%bConnection: close\r\nContent-Type: text/plain\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, reason, allow, len(body), body)
        )
        self.loseConnection()

    def _report(self, reason: str) -> None:
        address = getattr(self._wire.getPeer(), "host", "-")
        _log.info("socket port: refused {address}: {reason}", address=address, reason=reason)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        headers.removeHeader(b"server")  # twisted.web names its version
        super().writeHeaders(version, code, reason, headers)

    def loseConnection(self) -> None:
        # A client that reads nothing must not keep the connection: the deadline runs on.
        self._closing = True
        self._received = b""
        self._arm()
        super().loseConnection()

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.site.reactor.callLater(self.site.head_timeout, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._received:
            self._report("no whole request in time")
        self._abort()

    def _abort(self) -> None:
        self._closing = True
        self._received = b""
        self._wire.abortConnection()


class _Request(Request):
    defaultContentType = b"text/plain; charset=utf-8"


class _Site(Site):
    """The factory; no sessions, no access log, no HTTP/2, no tracebacks."""

    protocol = _Channel  # type: ignore[assignment]
    requestFactory = _Request
    displayTracebacks = False
    noisy = False

    def __init__(
        self, resource: IResource, clock: IReactorTime, head_timeout: float, max_connections: int
    ) -> None:
        # The channel's own deadline replaces Site's timeout, which counts idle time only.
        super().__init__(resource, reactor=clock, timeout=None)
        self.head_timeout = head_timeout
        self.max_connections = max_connections
        self.connections = 0
        #: Those of the connections that have become WebSockets.
        self.carriers: Crowd[_Channel] = Crowd()
        self._reported = float("-inf")

    def admit(self) -> bool:
        """Count a connection, which has to be discounted at its end; return whether it may stay."""
        self.connections += 1
        if self.connections <= self.max_connections:
            return True
        now = self.reactor.seconds()
        if now - self._reported >= _REPORT_INTERVAL:
            self._reported = now
            _log.warn(
                "socket port: over its {limit} connections, closing new ones",
                limit=self.max_connections,
            )
        return False

    def startFactory(self) -> None:
        """Leave out the clock and the file of Site's access log."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: Any) -> None:
        """Keep no access log: this port's requests are not those of clients."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]


def make_site(
    resource: IResource, clock: IReactorTime, *, head_timeout: float, max_connections: int
) -> _Site:
    """Return the factory for a port.

    ``head_timeout`` (seconds) is for a whole head, from the connection or the last answer on, and
    for a client to take the last answer; ``max_connections`` includes those that have become
    WebSockets. ``carriers`` of the site are those.
    """
    return _Site(resource, clock, head_timeout, max_connections)


def socket_root(
    websocket: IResource,
    unready: Callable[[], str],
    metrics: Metrics | None,
    admin_password: str,
    state: AdminState,
    clock: IReactorTime,
) -> Resource:
    """Return the root of the socket port.

    ``websocket`` takes upgrades on ``/``; ``unready()`` says why ``/readyz`` is not, "" if it is.
    ``/metrics`` and ``/admin`` are there unless ``metrics`` is None, because they have a listener
    of their own; ``/admin`` needs a password, too.
    """
    paths: dict[bytes, Resource] = {
        b"/healthz": _Health(lambda: ""),
        b"/readyz": _Health(unready),
    }
    if metrics is not None:
        paths.update(_inspection(metrics, admin_password, state, clock))
    return _Root(websocket, paths)


def admin_root(
    metrics: Metrics, admin_password: str, state: AdminState, clock: IReactorTime
) -> Resource:
    """Return the root of a listener that is for ``/metrics`` and ``/admin`` alone."""
    return _Root(None, _inspection(metrics, admin_password, state, clock))


def _inspection(
    metrics: Metrics, password: str, state: AdminState, clock: IReactorTime
) -> dict[bytes, Resource]:
    return {
        b"/metrics": _MetricsPage(metrics.registry),
        b"/admin": AdminResource(password, state, clock),
    }


class _Root(Resource):
    """Serves exact paths, and on ``/`` the WebSocket's upgrade."""

    isLeaf = True

    def __init__(self, websocket: IResource | None, paths: Mapping[bytes, Resource]) -> None:
        super().__init__()
        self._websocket: Any = websocket
        self._paths: Mapping[bytes, Any] = paths

    def render(self, request: Any) -> Any:
        resource = self._paths.get(request.path)
        if resource is not None:
            return resource.render(request)
        if self._websocket is None or request.path != b"/":
            return answer(request, 404, "Not Found\n")
        if request.method == b"GET" and _asks_for_websocket(request):
            return self._websocket.render(request)
        request.setHeader(b"Upgrade", b"websocket")
        request.setHeader(b"Connection", b"upgrade")
        return answer(request, 426, "Upgrade Required\n")


def _asks_for_websocket(request: Request) -> bool:
    values = request.requestHeaders.getRawHeaders(b"upgrade", [])
    return any(
        protocol.strip().lower() == b"websocket"
        for value in values
        for protocol in value.split(b",")
    )


class _Health(Resource):
    isLeaf = True

    def __init__(self, problem: Callable[[], str]) -> None:
        super().__init__()
        self._problem = problem

    def render(self, request: Any) -> bytes:
        if problem := self._problem():
            return answer(request, 503, problem + "\n")
        return answer(request, 200, "ok\n")


class _Snapshot:
    """Metrics as they were at a moment."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class _MetricsPage(Resource):
    """prometheus_client's resource, over what was collected in the reactor's thread.

    That resource runs in a thread of its own, where reading what the reactor changes would fail now
    and then; formatting a snapshot there is safe, and spares the reactor the larger part.
    """

    isLeaf = True

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render(self, request: Any) -> Any:
        # Imports the reactor.
        from prometheus_client.twisted import MetricsResource

        if request.method == b"HEAD":
            return answer(request, 200, "")
        snapshot = CollectorRegistry(auto_describe=True)
        snapshot.register(_Snapshot(list(self._registry.collect())))
        resource: Any = MetricsResource(snapshot)
        return resource.render(request)
