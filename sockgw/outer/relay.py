"""One request on its way: between a client's exchange and a stream of a tunnel.

Bytes go from one to the other as they come, in both directions, and each side is told to pause by
the other: the client while its upload waits for credit, the inner layer (by credit withheld) while
the client does not read. Nothing is held here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sockgw.http.forwarded import ClientView
from sockgw.http.headers import end_to_end
from sockgw.http.rewriting import Rewriter
from sockgw.http.server import Exchange
from sockgw.outer.refusals import Refusal, for_reset
from sockgw.outer.registry import Member
from sockgw.outer.routes import Route
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, ResponseHead
from sockgw.protocol.streams import Stream

__all__ = ["Owner", "Relay"]

_OWN = frozenset((b"x-request-id",))
_CONTINUE = 100

# Credit does not bound heads. 100, 102 and 103 come one to three times for a request; more would
# fill our memory for a client that does not read.
_MAX_INFORMED = 16


class Owner(Protocol):
    """What a relay needs from the gateway that made it."""

    remove_csps: bool
    seconds: Callable[[], float]

    def response_deadline(self) -> float:
        """Return until when a response head must have come."""

    def idle_deadline(self) -> float:
        """Return until when another byte must have come."""

    def rewriter(self, route: Route, origin: tuple[str, str, int] | None) -> Rewriter | None:
        """Return what rewrites the responses of a route."""

    def answer(self, exchange: Exchange, refusal: Refusal, request_id: bytes) -> None:
        """Answer in the gateway's own name."""

    def failed(self, relay: Relay, code: StreamCode, detail: str) -> None:
        """The stream was reset before the end of its answer; ``finished`` follows."""

    def finished(self, relay: Relay, outcome: str) -> None:
        """The relay is over; called once. ``outcome`` is empty if all went well."""

    def broken_off(self, relay: Relay) -> None:
        """In place of ``finished``: the request ended within its body, before any answer."""


class Relay:
    """Handles a client's request and the stream that carries it."""

    __slots__ = (
        "_gateway",
        "_informed",
        "_over",
        "_request_ended",
        "_unconsumed",
        "deadline",
        "exchange",
        "first_byte",
        "member",
        "request_id",
        "route",
        "status",
        "stream",
        "view",
    )

    stream: Stream

    def __init__(
        self,
        gateway: Owner,
        exchange: Exchange,
        route: Route,
        view: ClientView,
        member: Member,
        request_id: bytes,
    ) -> None:
        self._gateway = gateway
        self._unconsumed = 0
        self._informed = 0
        self._over = False
        self._request_ended = not exchange.body_expected
        self.exchange = exchange
        self.route = route
        self.view = view
        self.member = member
        self.request_id = request_id
        self.status = 0
        #: Seconds of the clock at which the response head came.
        self.first_byte: float | None = None
        self.deadline: float | None = gateway.response_deadline()

    # ------------------------------------------------------------------ from the client

    def body_received(self, data: bytes) -> None:
        stream = self.stream
        stream.write(data)
        if stream.congested:
            self.exchange.pause_request()
        self._progress()

    def body_ended(self, trailers: Headers) -> None:
        if not self._request_ended:
            self._request_ended = True
            self.stream.end()
        self.member.tunnel.hurry()

    def client_lost(self) -> None:
        self.stream.reset(StreamCode.CANCELLED)
        self.member.tunnel.hurry()
        if self.status or self.exchange.complete:
            self._finish("client left")
        elif not self._over:
            self._over = True
            self._gateway.broken_off(self)

    def response_drained(self) -> None:
        count, self._unconsumed = self._unconsumed, 0
        if count:
            self.deadline = self._gateway.idle_deadline()
            self.stream.consumed(count)
            self.member.tunnel.hurry()

    # ------------------------------------------------------------------ from the tunnel

    def head_received(self, head: ResponseHead) -> None:
        exchange = self.exchange
        if head.status < 200:
            self._inform(head)
            return
        try:
            headers = end_to_end(head.headers, _OWN)
            rewriter = self._gateway.rewriter(self.route, head.origin)
            if rewriter is not None:
                view = self.view
                headers = rewriter.rewrite(
                    headers, view.proto, view.authority(), self._gateway.remove_csps
                )
            headers.append((b"X-Request-ID", self.request_id))
            exchange.respond(ResponseHead(head.status, head.reason, headers))
        except ValueError:
            self._fail(StreamCode.ORIGIN_MALFORMED, "a head that cannot be written")
            return
        self.status = head.status
        self.first_byte = self._gateway.seconds()
        self.deadline = self._gateway.idle_deadline()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        exchange.write(data)
        if exchange.congested:
            self._unconsumed += len(data)
        else:
            self.stream.consumed(len(data))
        self.deadline = self._gateway.idle_deadline()

    def ended(self, trailers: Headers) -> None:
        if not self._request_ended:
            # The answer is complete, what is left of the request is wanted by nobody.
            self.stream.reset(StreamCode.NO_ERROR)
        complete = self.exchange.finish()
        self._finish("" if complete else "the answer is not as long as it said")

    def reset(self, code: StreamCode, detail: str) -> None:
        if self._over:
            return
        if self.status:
            self.exchange.abort()
        else:
            refusal = for_reset(code)
            self.status = refusal.status
            self._gateway.answer(self.exchange, refusal, self.request_id)
        self._gateway.failed(self, code, detail)
        self._finish(code.name.lower().replace("_", " "))

    def drained(self) -> None:
        self._progress()
        self.exchange.resume_request()

    # ------------------------------------------------------------------ from the clock

    def expired(self) -> None:
        if self.status:
            self._fail(StreamCode.IDLE_TIMEOUT, "no byte either way in time")
        else:
            self._fail(StreamCode.RESPONSE_TIMEOUT, "no answer in time")

    # ------------------------------------------------------------------ inside

    def _progress(self) -> None:
        """Some of the request has gone up."""
        if self.status:
            self.deadline = self._gateway.idle_deadline()
        else:
            self.deadline = self._gateway.response_deadline()

    def _finish(self, outcome: str) -> None:
        if not self._over:
            self._over = True
            self._gateway.finished(self, outcome)

    def _inform(self, head: ResponseHead) -> None:
        self._informed += 1
        if self._informed > _MAX_INFORMED:
            self._fail(StreamCode.ORIGIN_MALFORMED, "too many interim responses")
            return
        # 101 is not asked for; 100 only by who expects it (RFC 9110, section 15.2).
        if head.status == 101 or (head.status == _CONTINUE and not self.exchange.expects_continue):
            return
        try:
            self.exchange.inform(head.status, end_to_end(head.headers))
        except ValueError:
            self._fail(StreamCode.ORIGIN_MALFORMED, "an interim head that cannot be written")

    def _fail(self, code: StreamCode, detail: str) -> None:
        """End both sides by our own decision."""
        self.stream.reset(code, detail)
        self.reset(code, detail)
