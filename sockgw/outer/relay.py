"""One request on its way: between a client's exchange and a stream of a tunnel.

Bytes go from one to the other as they come, in both directions, and each side is told to pause by
the other: the client while its upload waits for credit, the inner layer (by credit withheld) while
the client does not read.

Until there is an inner layer to ask a relay is *held*, and once one has failed it may go on with
the stream of another: whom to ask, and whether to, is the dispatcher's to say. The request's body
is kept for that, within bounds, until the first byte of an answer. Held or not, no more of it is
read than that and what a stream takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sockgw.http.forwarded import ClientView
from sockgw.http.headers import end_to_end
from sockgw.http.rewriting import Rewriter
from sockgw.http.server import Exchange
from sockgw.outer.kept import KeptBody
from sockgw.outer.refusals import Refusal, for_reset
from sockgw.outer.registry import Affinity, Member
from sockgw.outer.routes import Route
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead
from sockgw.protocol.streams import Stream

if TYPE_CHECKING:
    from sockgw.outer.dispatch import Dispatcher

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
    dispatcher: Dispatcher

    def response_deadline(self) -> float:
        """Return until when a response head must have come."""

    def idle_deadline(self) -> float:
        """Return until when another byte must have come."""

    def rewriter(self, route: Route, origin: tuple[str, str, int] | None) -> Rewriter | None:
        """Return what rewrites the responses of a route."""

    def answer(self, exchange: Exchange, refusal: Refusal, request_id: bytes) -> None:
        """Answer in the gateway's own name."""

    def failed(self, relay: Relay, reason: str) -> None:
        """The answer is the gateway's own, or broken; ``finished`` follows."""

    def finished(self, relay: Relay, outcome: str) -> None:
        """The relay is over; called once. ``outcome`` is empty if all went well."""

    def broken_off(self, relay: Relay) -> None:
        """In place of ``finished``: the request ended within its body, before any answer."""


class Relay:
    """Handles a client's request and the streams that carry it, one after the other.

    ``member`` and ``stream`` are there once an inner layer was asked, so when ``tries`` is not 0.
    """

    __slots__ = (
        "_gateway",
        "_informed",
        "_kept",
        "_over",
        "_request_ended",
        "_time_left",
        "_unconsumed",
        "affinity",
        "deadline",
        "exchange",
        "failure",
        "first_byte",
        "head",
        "held_since",
        "member",
        "repeatable",
        "request_id",
        "route",
        "status",
        "stream",
        "tried",
        "tries",
        "view",
        "waited",
    )

    member: Member
    stream: Stream

    def __init__(
        self,
        gateway: Owner,
        exchange: Exchange,
        head: RequestHead,
        route: Route,
        view: ClientView,
        affinity: Affinity,
        request_id: bytes,
    ) -> None:
        """``head`` is the request's as an inner layer gets it."""
        self._gateway = gateway
        self._unconsumed = 0
        self._informed = 0
        self._over = False
        self._request_ended = not exchange.body_expected
        self._kept: KeptBody | None = None
        self._time_left = 0.0  # of the response deadline, while it is held
        self.exchange = exchange
        self.head = head
        self.route = route
        self.view = view
        self.affinity = affinity
        self.request_id = request_id
        self.status = 0
        #: Seconds of the clock at which the response head came.
        self.first_byte: float | None = None
        self.deadline: float | None = gateway.response_deadline()
        #: Whether all of the request is still here, and nothing of an answer has come.
        self.repeatable = True
        #: How many inner layers were asked; those of them that failed; and how the last one did.
        self.tries = 0
        self.tried: tuple[Member, ...] = ()
        self.failure: tuple[StreamCode, str] | None = None
        #: Since when it waits for an inner layer, in seconds of the clock; None: one is asked.
        self.held_since: float | None = None
        #: Seconds for which it has waited before that.
        self.waited = 0.0

    # ------------------------------------------------------------------ from the dispatcher

    def hold(self, deadline: float) -> None:
        """Wait for an inner layer until the deadline at most."""
        now = self._gateway.seconds()
        self.held_since = now
        if self.deadline is not None:
            self._time_left = self.deadline - now
        self.deadline = deadline

    def carry(self, member: Member, stream: Stream) -> None:
        """This stream carries the request from now on."""
        self.member = member
        self.stream = stream
        self.tries += 1
        held_since = self.held_since
        if held_since is not None:
            now = self._gateway.seconds()
            self.waited += now - held_since
            self.held_since = None
            self.deadline = now + self._time_left
        elif self.tries == 1:
            return
        kept = self._kept
        if kept is not None:
            for data in kept.chunks:
                stream.write(data)
            if not kept.within:
                self._let_go()
        if self._request_ended and self.exchange.body_expected:
            stream.end()
        # The stream before this one, or the wait, may have paused it. Last: more of the body may
        # come from within.
        if stream.congested:
            self.exchange.pause_request()
        else:
            self.exchange.resume_request()

    def postpone(self, seconds: float) -> None:
        """For so long nothing could come."""
        if self.deadline is not None:
            self.deadline += seconds

    def refuse(self, refusal: Refusal) -> None:
        """Answer in the gateway's own name."""
        self.status = refusal.status
        self._gateway.answer(self.exchange, refusal, self.request_id)
        if refusal.status >= 500:
            self._gateway.failed(self, refusal.reason)
        self._finish(refusal.reason)

    def give_up(self, code: StreamCode, detail: str) -> None:
        """No inner layer will answer, or not to the end."""
        answered = self.status
        if not answered:
            refusal = for_reset(code)
            self.status = refusal.status
            self._gateway.answer(self.exchange, refusal, self.request_id)
        reason = code.name.lower().replace("_", " ")
        self._gateway.failed(self, f"{reason}: {detail}" if detail else reason)
        self._finish(reason)
        if answered and code is StreamCode.OVERLOADED:
            # What it has not read yet is the memory that is needed.
            self.exchange.connection.drop()
        elif answered:
            self.exchange.abort()

    def fail(self) -> None:
        """End it for a fault of ours."""
        if self.tries:
            self.stream.reset(StreamCode.INTERNAL_ERROR)
        if not self._over:
            self.give_up(StreamCode.INTERNAL_ERROR, "the handler failed")

    # ------------------------------------------------------------------ from the client

    def body_received(self, data: bytes) -> None:
        if self.held_since is not None:
            if not self._keep(data):
                self.exchange.pause_request()
            return
        if self.repeatable and not self._keep(data):
            self._let_go()
        stream = self.stream
        stream.write(data)
        if stream.congested:
            self.exchange.pause_request()
        self._progress()

    def body_ended(self, trailers: Headers) -> None:
        ended, self._request_ended = self._request_ended, True
        if self.held_since is None:
            if not ended:
                self.stream.end()
            self.member.tunnel.hurry()

    def client_lost(self) -> None:
        if self.held_since is None:
            self.stream.reset(StreamCode.CANCELLED)
            self.member.tunnel.hurry()
        self._let_go()
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
        self.repeatable = False
        if self._kept is not None:
            self._let_go()
        exchange = self.exchange
        if head.status < 200:
            self._inform(head)
            return
        health = self._gateway.dispatcher.health
        if health.failing:
            health.reached(self.route.target.name, self.member)
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
        if not complete:
            self.response_drained()  # nobody else will tell
        self._finish("" if complete else "the answer is not as long as it said")

    def reset(self, code: StreamCode, detail: str) -> None:
        if self._over:
            if code is StreamCode.OVERLOADED:
                self.exchange.connection.drop()
            return
        # Of a handler that failed in between it could be the stream before.
        self.stream.reset(code)
        if not self.status:
            self.failure = code, detail
            if self._gateway.dispatcher.again(self, code):
                return
        self.give_up(code, detail)

    def drained(self) -> None:
        self._progress()
        self.exchange.resume_request()

    # ------------------------------------------------------------------ from the clock

    def expired(self) -> None:
        if self._over:
            return
        if self.held_since is not None:
            self._gateway.dispatcher.expired(self)
        elif self.member.tunnel.suspended:
            return  # its clock stands still: see postpone
        elif self.status:
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
            if self._kept is not None:
                self._let_go()
            self._gateway.finished(self, outcome)

    def _keep(self, data: bytes) -> bool:
        """Keep a piece of the body; return whether it may be kept on."""
        kept = self._kept
        if kept is None:
            self._kept = kept = KeptBody(self._gateway.dispatcher.bodies)
        return kept.add(data)

    def _let_go(self) -> None:
        """No other inner layer will be asked."""
        self.repeatable = False
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.release()

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
