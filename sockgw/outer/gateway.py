"""The gateway: what happens to each request that reaches the app port.

Host to target, path to policy; then a :class:`Relay` has it, and the dispatcher finds who performs
it. What ends here is answered from one table (:mod:`sockgw.outer.refusals`), and every request
leaves one line in the access log and one count in the metrics, however it ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sockgw.deadlines import Deadlines
from sockgw.http.application import NOBODY, ClientExchange, Connection, RequestHandler
from sockgw.http.forwarded import ClientView, Forwarding, is_protected, names_a_method, with_prefix
from sockgw.http.framing import HttpError
from sockgw.http.headers import end_to_end, lowered
from sockgw.http.networks import UNIX_PEER, canonical
from sockgw.http.rewriting import Prefixes, Rewriter
from sockgw.http.shapes import name_of, shapes
from sockgw.outer.accesslog import AccessLog
from sockgw.outer.challenges import PREFIX, Challenges
from sockgw.outer.config import OuterConfig
from sockgw.outer.crowd import Crowd
from sockgw.outer.dispatch import Dispatcher
from sockgw.outer.https import Https
from sockgw.outer.journal import Journal
from sockgw.outer.metrics import Metrics
from sockgw.outer.pathrouting import Paths
from sockgw.outer.paths import PathRefused, resolve
from sockgw.outer.policy import forbidden_reason
from sockgw.outer.proxyheader import proxy_header
from sockgw.outer.rawclient import RawClient
from sockgw.outer.refusals import BAD_HEAD, MISDIRECTED, NO_PATH, NO_TARGET, Refusal, answer
from sockgw.outer.registry import Affinity, Registry
from sockgw.outer.relay import Relay
from sockgw.outer.routes import Route, route_to
from sockgw.outer.targets import HTTP, Target, Targets
from sockgw.outer.udp import UDPClient
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["Gateway"]

_MAX_SERVICE_ORIGINS = 256  # rewriters of origins that inner layers name

_NO_CLIENT = Refusal(403, "the client's address is not allowed", "http_request_denied")
_DRAINING = Refusal(503, "this gateway is about to stop", "connection_limit_reached", 1)

# Host is written anew; Proxy becomes HTTP_PROXY in CGI, and with it a stranger's choice
# (CVE-2016-5385 and its kin).
_NOT_PASSED = frozenset((b"host", b"proxy"))


# Names repeat from request to request.
@lru_cache(maxsize=1024)
def _kept_back(name: bytes, trusted: bool, restricted: bool) -> bool:
    """Whether a client's field of that name, in lower case, does not pass.

    By whether the client is a trusted proxy, and whether there is a policy: that has judged the
    method of the request line, and no other.
    """
    return (
        name in _NOT_PASSED or is_protected(name, trusted) or (restricted and names_a_method(name))
    )


#: An origin as an inner layer tells it (None: it does not), and the route's prefixes.
_Service = tuple[tuple[str, str, int] | None, Prefixes | None]

_NO_HEAD = RequestHead(b"-", b"-", [])  # of a request that is none


class _Acquaintance:
    """What is known of a client's connection from the request before.

    The next one hardly ever names another host, and then nothing of this changes; unless the peer
    is a trusted proxy, whose connections carry requests of many clients.
    """

    __slots__ = ("affinity", "fields", "found", "host", "targets", "view")

    def __init__(self) -> None:
        self.affinity: Affinity = {}
        self.targets: Targets | None = None  # those in which the host was looked up; None: none was
        self.host = b""
        self.found: Target | Paths | None = None
        self.view: ClientView
        self.fields: Headers = []  #: what the origin is told of the client


def _legible(head: RequestHead) -> RequestHead:
    """Return the head; without its fields where one has a name too long to be looked at."""
    try:
        end_to_end(head.headers)
    except ValueError:
        return RequestHead(head.method, head.target, [])
    return head


class Gateway:
    """The application behind the app port; see :class:`sockgw.http.server.Application`."""

    def __init__(
        self,
        config: OuterConfig,
        clock: IReactorTime,
        deadlines: Deadlines,
        registry: Registry,
        forwarding: Forwarding,
        metrics: Metrics,
        access_log: AccessLog,
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._registry = registry
        self._forwarding = forwarding
        self._metrics = metrics
        self._journal = Journal(metrics, access_log, clock.seconds)
        self._timeout = config.timeout
        self._idle_timeout = config.idle_timeout
        self._tcp_idle_timeout = config.tcp_idle_timeout
        self._max_connections = config.max_connections
        self._routes: dict[str, Route] = {}
        self._targets = Targets()
        self._service_rewriters: dict[_Service, Rewriter] = {}
        # Unique in this process and, by its random part, among all others.
        self._id_prefix = os.urandom(6).hex().encode("ascii")
        self._ids = count(1)
        self._connections: Crowd[Connection] = Crowd()
        self._succeeded = 0  # of them, those whose place another one is about to take
        self._grace = 0.0  # seconds for a connection's last request, while draining
        self._last_call = 0.0  # when the time for them is over, by the clock
        self._broken_off: dict[Connection, Relay] = {}
        self.dispatcher = Dispatcher(config, clock, deadlines, registry, metrics)
        self._held = self.dispatcher.held
        self.seconds = clock.seconds
        self.remove_csps = config.remove_csps
        self.https = Https(config.redirect_https, config.hsts.encode("ascii"))
        webroot = config.acme_challenges
        self._challenges = Challenges(webroot) if webroot else None
        #: It is on its way out: no connection stays, and soon no request is taken.
        self.draining = False
        #: What went wrong lately, newest first.
        self.failures = self._journal.failures

    def use(self, targets: Targets) -> None:
        """From now on these targets are in force; requests under way are not touched."""
        self._routes = {target.name: route_to(target) for target in targets}
        self._targets = targets
        self.dispatcher.health.clear()

    @property
    def targets(self) -> Targets:
        """The targets in force."""
        return self._targets

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def unready(self) -> str:
        """Why no clients should be sent here; "" if they should."""
        if self.draining:
            return "draining"
        return "" if self._registry.ready else "no inner layer is connected"

    @property
    def busy(self) -> int:
        """How many clients have a request under way."""
        return sum(connection.busy for connection in self._connections)

    # ------------------------------------------------------------------ draining

    def drain(self, grace: float) -> None:
        """Let each connection end with the requests that it has, idle ones after ``grace`` seconds.

        Requests that come later are refused.
        """
        self.draining = True
        self._grace = grace
        # A connection's own deadline is met late by up to two ticks.
        self._last_call = self._deadlines.after(2 * grace)
        for connection in self._connections:
            connection.drain(grace)

    def emptied(self) -> Deferred[None]:
        """Return what fires once no client is connected. It may be cancelled."""
        return self._connections.emptied()

    # ------------------------------------------------------------------ the server's application

    def connected(self, connection: Connection) -> bool:
        if len(self._connections) - self._succeeded >= self._max_connections:
            return False
        self._connections.add(connection)
        if self.draining:
            connection.drain(self._grace)
        return True

    def succeeded(self, connection: Connection, begin: Callable[[], None]) -> None:
        """``begin`` connects another one, which takes the place of this one."""
        self._succeeded += 1
        try:
            begin()
        finally:
            self._succeeded -= 1
            self._connections.discard(connection)

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        relay = self._broken_off.pop(connection, None)
        if relay is not None:
            self.finished(relay, "client left")

    def request(self, exchange: ClientExchange) -> RequestHandler:
        head = exchange.head
        known = self._recognized(exchange)
        view = known.view
        request_id = view.request_id or b"%s%08x" % (self._id_prefix, next(self._ids))
        if self._challenges is not None and head.target.startswith(PREFIX):
            token = self._challenges.find(head.target)
            if token is not None and head.method in (b"GET", b"HEAD"):
                return self._plain(exchange, view, request_id, 200, token)
        found = known.found
        if found is None:
            return self._without_target(exchange, view, request_id)
        name = found.name
        if self.draining and self.seconds() >= self._last_call:
            return self._refuse(exchange, _DRAINING, view, request_id, name)
        elsewhere = self.https.redirect(head, view)
        if elsewhere is not None:
            return self._finally(exchange, view, request_id, elsewhere, b"", name)
        if found.protocol not in HTTP:  # its TLS is passed through, and must not end here
            return self._refuse(exchange, MISDIRECTED, view, request_id, name)
        request_target = head.target
        try:
            if isinstance(found, Target):
                target = found
                resolved = None if target.policy.unrestricted else resolve(request_target)
            else:
                on_path = found.match(request_target)
                if on_path is None:
                    return self._refuse(exchange, NO_PATH, view, request_id, name)
                target, resolved = on_path
                name = target.name
        except PathRefused as error:
            refusal = Refusal(400, str(error), "http_request_error")
            return self._refuse(exchange, refusal, view, request_id, name)
        if resolved is not None:
            path, request_target = resolved
            method = head.method.decode("ascii")
            if not target.policy.allows(method, path):
                host = target.service or target.hostname
                reason = forbidden_reason(method, target.protocol, host, target.port, path)
                refusal = Refusal(403, reason, "http_request_denied")
                return self._refuse(exchange, refusal, view, request_id, name)
        route = self._routes[name]
        try:
            headers = self._request_headers(head.headers, route, known, request_id)
        except ValueError:
            return self._refuse(exchange, BAD_HEAD, view, request_id, name)
        head = RequestHead(head.method, request_target, headers, head.upgrade)
        relay = Relay(self, exchange, head, route, view, known.affinity, request_id)
        self._deadlines.watch(relay)
        self.dispatcher.dispatch(relay)
        return relay

    def connect(self, exchange: RawClient, target: Target) -> RequestHandler:
        """A client of a target has come of which bytes alone are seen."""
        handler = self._connect(exchange, target)
        if target.proxy_protocol and isinstance(handler, Relay) and not handler.over:
            handler.body_received(proxy_header(target.proxy_protocol, exchange.transport))
        return handler

    def connect_udp(self, exchange: UDPClient, target: Target) -> RequestHandler:
        """A client of a UDP target has come."""
        return self._connect(exchange, target)

    def datagrams_dropped(self, count: int) -> None:
        """So many datagrams found no room."""
        self._metrics.datagrams_dropped(count)

    def _connect(self, exchange: RawClient | UDPClient, target: Target) -> RequestHandler:
        peer = exchange.peer_address
        view = ClientView(
            address=UNIX_PEER if peer in ("", "unix") else canonical(peer),
            proto=b"",
            host=b"",
            port=b"",
            trusted=False,
            peer=peer,
        )
        request_id = b"%s%08x" % (self._id_prefix, next(self._ids))
        if target.clients is not None and not target.clients.contains(peer):
            return self._refuse(exchange, _NO_CLIENT, view, request_id, target.name)
        head = RequestHead(b"CONNECT", b"", [])
        route = self._routes.get(target.name) or route_to(target)
        relay = Relay(self, exchange, head, route, view, {}, request_id)
        self._deadlines.watch(relay)
        self.dispatcher.dispatch(relay)
        return relay

    def refused(
        self, connection: Connection, error: HttpError, head: RequestHead | None
    ) -> tuple[ResponseHead, bytes]:
        refusal = Refusal(error.status, error.reason, "http_request_error")
        relay = self._broken_off.pop(connection, None)
        if relay is not None:
            relay.status = refusal.status
            self.finished(relay, refusal.reason)
            reply, body = answer(
                refusal, relay.exchange.head.headers, relay.request_id.decode("ascii")
            )
            self.https.mark(reply.headers, relay.view.proto)
            return reply, body
        request_id = f"{self._id_prefix.decode()}{next(self._ids):08x}"
        head = _NO_HEAD if head is None else _legible(head)
        reply, body = answer(refusal, head.headers, request_id)
        self.https.mark(reply.headers, b"https" if connection.secure else b"http")
        self._journal.refused(
            connection.peer_address,
            head,
            refusal,
            request_id,
            started=self.seconds(),
            bytes_out=0 if head.method == b"HEAD" else len(body),
            protocol=connection.protocol,
        )
        return reply, body

    # ------------------------------------------------------------------ for relays

    def response_deadline(self) -> float:
        """Return until when a response head must have come."""
        return self._deadlines.after(self._timeout)

    def idle_deadline(self) -> float:
        """Return until when another byte must have come."""
        return self._deadlines.after(self._idle_timeout)

    def silence_deadline(self) -> float | None:
        """Return until when another byte must have come of what is no exchange of HTTP any more."""
        timeout = self._tcp_idle_timeout
        return self._deadlines.after(timeout) if timeout else None

    def request_trailers(self, relay: Relay, trailers: Headers) -> Headers:
        """Return those of a request's trailers that may pass: no others than of its head."""
        try:
            return self._passed(trailers, relay.route.target, relay.view.trusted)
        except ValueError:
            return []  # a name too long to be looked at

    def rewriter(self, route: Route, origin: tuple[str, str, int] | None) -> Rewriter | None:
        """Return what rewrites the responses of a route; ``origin`` as the inner layer tells it.

        None where it tells nothing and paths stay as they are.
        """
        if route.rewriter is not None:
            return route.rewriter
        prefixes = route.prefixes
        if origin is None and prefixes is None:
            return None
        key = (origin, prefixes)
        rewriter = self._service_rewriters.get(key)
        if rewriter is None:
            if len(self._service_rewriters) >= _MAX_SERVICE_ORIGINS:
                self._service_rewriters.clear()
            protocol, hostname, port = origin or ("", "", 0)
            rewriter = Rewriter(protocol.encode(), hostname.encode(), port, prefixes)
            self._service_rewriters[key] = rewriter
        return rewriter

    def answer(
        self, exchange: ClientExchange, refusal: Refusal, request_id: bytes, view: ClientView
    ) -> None:
        """Answer in the gateway's own name."""
        head, body = answer(refusal, exchange.head.headers, request_id.decode("ascii"))
        self.https.mark(head.headers, view.proto)
        exchange.respond(head)
        exchange.write(body)
        exchange.finish()

    def broken_off(self, relay: Relay) -> None:
        """The server refuses a request within its body, before any answer.

        ``refused`` follows, or ``disconnected`` where the client is gone by then. That makes one
        entry in the log.
        """
        self._held.discard(relay)
        self._broken_off[relay.exchange.connection] = relay

    def failed(self, relay: Relay, reason: str) -> None:
        """A relay's answer is our own, or broken; ``finished`` follows."""
        self._journal.failed(relay, reason)

    def finished(self, relay: Relay, outcome: str) -> None:
        """A relay is over."""
        self._deadlines.discard(relay)
        if self._held.relays:
            # It may have been one of them; else its stream has made room for one.
            self._held.discard(relay)
            self._held.wake()
        self._journal.relayed(relay, outcome)

    # ------------------------------------------------------------------ inside

    def _recognized(self, exchange: ClientExchange) -> _Acquaintance:
        """Return what is known of who sends a request, with its target."""
        connection = exchange.connection
        host = exchange.host
        known: _Acquaintance | None = connection.notes  # type: ignore[assignment]
        if known is None:
            connection.notes = known = _Acquaintance()
        elif known.targets is self._targets and known.host == host:
            return known
        known.view = view = self._forwarding.client_of(
            connection.peer_address,
            connection.secure,
            connection.local_port,
            host,
            exchange.head.headers,
        )
        known.found = self._targets.match(view.host.decode("latin-1"))
        known.fields = self._forwarding.headers_for(view)
        known.host = host
        known.targets = None if view.trusted else self._targets
        return known

    def _request_headers(
        self, headers: Headers, route: Route, known: _Acquaintance, request_id: bytes
    ) -> Headers:
        target = route.target
        view = known.view
        result = self._passed(headers, target, view.trusted)
        if target.preserve_host and view.host:
            result.append((b"Host", view.host))
        if route.forwarded_prefix:
            result = with_prefix(result, route.forwarded_prefix)
        result += known.fields
        result.append((b"X-Request-ID", request_id))
        return result

    def _passed(self, headers: Headers, target: Target, trusted: bool) -> Headers:
        """Return the fields of a client that may pass. Raises ValueError for a bad name."""
        restricted = not target.policy.unrestricted
        return [
            field
            for field in shapes[tuple(map(name_of, headers))].end_to_end(headers)
            if not _kept_back(lowered[field[0]], trusted, restricted)
        ]

    def _without_target(
        self, exchange: ClientExchange, view: ClientView, request_id: bytes
    ) -> RequestHandler:
        path = exchange.head.target
        if path not in (b"/healthz", b"/readyz"):
            return self._refuse(exchange, NO_TARGET, view, request_id, "")
        problem = "" if path == b"/healthz" else self.unready
        status, body = (503, problem.encode() + b"\n") if problem else (200, b"ok\n")
        return self._plain(exchange, view, request_id, status, body)

    def _plain(
        self,
        exchange: ClientExchange,
        view: ClientView,
        request_id: bytes,
        status: int,
        body: bytes,
    ) -> RequestHandler:
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Content-Type-Options", b"nosniff"),
        ]
        head = ResponseHead(status, HTTPStatus(status).phrase.encode(), headers)
        return self._finally(exchange, view, request_id, head, body)

    def _finally(
        self,
        exchange: ClientExchange,
        view: ClientView,
        request_id: bytes,
        head: ResponseHead,
        body: bytes,
        target: str = "",
    ) -> RequestHandler:
        """Give an answer of our own that is no refusal, and record it."""
        self.https.mark(head.headers, view.proto)
        exchange.respond(head)
        exchange.write(body)
        exchange.finish()
        self._journal.answered(
            view.address,
            exchange.head,
            head.status,
            "",
            request_id,
            started=exchange.started,
            bytes_out=exchange.bytes_sent,
            target=target,
            protocol=exchange.protocol,
        )
        return NOBODY

    def _refuse(
        self,
        exchange: ClientExchange,
        refusal: Refusal,
        view: ClientView,
        request_id: bytes,
        target: str,
    ) -> RequestHandler:
        """Answer a request that goes nowhere; ``target`` is its name, if it has one."""
        self.answer(exchange, refusal, request_id, view)
        self._journal.refused(
            view.address,
            exchange.head,
            refusal,
            request_id.decode("ascii"),
            started=exchange.started,
            bytes_out=exchange.bytes_sent,
            target=target,
            protocol=exchange.protocol,
        )
        return NOBODY
