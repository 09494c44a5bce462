"""One request on its way: between a client's exchange and a stream of a tunnel.

Bytes go from one to the other as they come, in both directions, and each side is told to pause by
the other: the client while its upload waits for credit, the inner layer (by credit withheld) while
the client does not read.

Until there is an inner layer to ask a relay is *held*, and once one has failed it may go on with
the stream of another: whom to ask, and whether to, is the dispatcher's to say. The request's body
is kept for that, within bounds, until the first byte of an answer. Held or not, no more of it is
read than that and what a stream takes.

An answer may *switch* the exchange: the 101 that a client asked for, or that a connection to a TCP
origin is there. From then on it is two directions of bytes, each of which ends for itself, and
silence is no fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sockgw.http.application import ClientExchange
from sockgw.http.forwarded import ClientView
from sockgw.http.headers import end_to_end, lower, upgrades_to
from sockgw.http.rewriting import Rewriter, concerns
from sockgw.http.shapes import name_of, shapes
from sockgw.outer.https import Https
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

_CONTINUE = 100

# Credit does not bound heads. 100, 102 and 103 come one to three times for a request; more would
# fill our memory for a client that does not read.
_MAX_INFORMED = 16


def _unlimited() -> None:
    """Return no deadline."""


class Owner(Protocol):
    """What a relay needs from the gateway that made it."""

    remove_csps: bool
    https: Https
    seconds: Callable[[], float]
    dispatcher: Dispatcher

    def response_deadline(self) -> float:
        """Return until when a response head must have come."""

    def idle_deadline(self) -> float:
        """Return until when another byte must have come."""

    def silence_deadline(self) -> float | None:
        """Return until when another byte must have come of what is no exchange of HTTP any more."""

    def request_trailers(self, relay: Relay, trailers: Headers) -> Headers:
        """Return those of a request's trailers that may pass."""

    def rewriter(self, route: Route, origin: tuple[str, str, int] | None) -> Rewriter | None:
        """Return what rewrites the responses of a route."""

    def answer(
        self, exchange: ClientExchange, refusal: Refusal, request_id: bytes, view: ClientView
    ) -> None:
        """Answer in the gateway's own name."""

    def failed(self, relay: Relay, reason: str) -> None:
        """The answer is the gateway's own, or broken; ``finished`` follows."""

    def finished(self, relay: Relay, outcome: str) -> None:
        """The relay is over; called once. ``outcome`` is empty if all went well."""

    def broken_off(self, relay: Relay) -> None:
        """In place of ``finished``: the server refuses the request within its body."""


class Relay:
    """Handles a client's request and the streams that carry it, one after the other.

    ``member`` and ``stream`` are there once an inner layer was asked, so when ``tries`` is not 0.
    """

    __slots__ = (
        "_answer_ended",
        "_gateway",
        "_informed",
        "_kept",
        "_left",
        "_over",
        "_patience",
        "_request_ended",
        "_switched",
        "_time_left",
        "_trailers",
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
        "whole",
    )

    member: Member
    stream: Stream

    def __init__(
        self,
        gateway: Owner,
        exchange: ClientExchange,
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
        #: The request is its head alone: nothing follows.
        self.whole = not (exchange.body_expected or head.upgrade)
        self._request_ended = self.whole
        self._answer_ended = False
        self._trailers: Headers = []  # of the request
        self._switched = False
        self._left = False  # the client of what is switched, in good order
        self._patience: Callable[[], float | None] = gateway.response_deadline
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

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

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
        if self._request_ended and not self.whole:
            stream.end(self._trailers)
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
        self._gateway.answer(self.exchange, refusal, self.request_id, self.view)
        if refusal.status >= 500:
            self._gateway.failed(self, refusal.reason)
        self._finish(refusal.reason)

    def give_up(self, code: StreamCode, detail: str) -> None:
        """No inner layer will answer, or not to the end."""
        answered = self.status
        if not answered:
            refusal = for_reset(code)
            self.status = refusal.status
            self._gateway.answer(self.exchange, refusal, self.request_id, self.view)
        reason = code.name.lower().replace("_", " ")
        self._gateway.failed(self, f"{reason}: {detail}" if detail else reason)
        self._finish(reason)
        if answered and code is StreamCode.OVERLOADED:
            # What it has not read yet is the memory that is needed.
            self.exchange.drop()
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
        if trailers:
            self._trailers = self._gateway.request_trailers(self, trailers)
        if self.held_since is None and not ended:
            self.stream.end(self._trailers)
        if self._answer_ended:
            self._finish("")

    def client_lost(self) -> None:
        if self.held_since is None:
            self.stream.reset(StreamCode.CANCELLED)
        self._let_go()
        if self.status or not self.exchange.refused:
            self._finish("client left")
        elif not self._over:
            self._over = True
            self._gateway.broken_off(self)

    def client_left(self) -> None:
        self._left = True
        self.body_ended([])
        # To whom it says nothing more, and does not end, it would be left for ever.
        self._patience = self._gateway.idle_deadline
        self.deadline = self._patience()

    def response_drained(self) -> None:
        count, self._unconsumed = self._unconsumed, 0
        if count:
            self.deadline = self._patience()
            self.stream.consumed(count)

    # ------------------------------------------------------------------ from the tunnel

    def head_received(self, head: ResponseHead) -> None:
        self.repeatable = False
        if self._kept is not None:
            self._let_go()
        exchange = self.exchange
        if head.interim:
            self._inform(head)
            return
        gateway = self._gateway
        health = gateway.dispatcher.health
        if health.failing:
            health.reached(self.route.target.name, self.member)
        try:
            shape = shapes[tuple(map(name_of, head.headers))]
            headers = shape.end_to_end(head.headers)
            if b"x-request-id" in shape.keys:  # which is our own
                headers = [field for field in headers if lower(field[0]) != b"x-request-id"]
            if concerns(shape.keys, gateway.remove_csps):
                headers = self._rewritten(head, headers)
            headers = [*headers, (b"X-Request-ID", self.request_id)]
            gateway.https.mark(headers, self.view.proto)
            if head.status == 101 and not upgrades_to(head.upgrade, self.head.upgrade):
                raise ValueError("an upgrade that was not asked for")
            exchange.respond(ResponseHead(head.status, head.reason, headers, None, head.upgrade))
        except ValueError:
            self._fail(StreamCode.ORIGIN_MALFORMED, "a head that cannot be written")
            return
        self.status = head.status
        self.first_byte = self._gateway.seconds()
        to = self.route.destination
        if head.status == 101 or to.raw:
            self._switched = True
            # Both ends of UDP look after silence themselves.
            udp = to.protocol == "udp"
            self._patience = _unlimited if udp else self._gateway.silence_deadline
        else:
            self._patience = self._gateway.idle_deadline
            if self.head.upgrade:  # refused: it was a request without a body
                self._request_ended = True
                self.stream.end()
        self.deadline = self._patience()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        exchange.write(data)
        if self._left:
            self.stream.reset(StreamCode.CANCELLED, "the client has left")
            self._finish("client left")
            return
        if exchange.congested:
            self._unconsumed += len(data)
        else:
            self.stream.consumed(len(data))
        self.deadline = self._patience()

    def ended(self, trailers: Headers) -> None:
        if self._switched and not self._request_ended:
            self._answer_ended = True
            self.exchange.finish()
            return
        if not self._request_ended:
            # The answer is complete, what is left of the request is wanted by nobody.
            self.stream.reset(StreamCode.NO_ERROR)
        complete = self._finish_answer(trailers)
        if not complete:
            self.response_drained()  # nobody else will tell
        complete = complete or self._switched
        self._finish("" if complete else "the answer is not as long as it said")

    def reset(self, code: StreamCode, detail: str) -> None:
        if self._over:
            if code is StreamCode.OVERLOADED:
                self.exchange.drop()
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
        self.deadline = self._patience()

    def _finish_answer(self, trailers: Headers) -> bool:
        if trailers:
            try:
                return self.exchange.finish(trailers)
            except ValueError:
                pass  # the body is whole, and what cannot be written goes without saying
        return self.exchange.finish()

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
        # 100 is only for who expects it (RFC 9110, section 15.2).
        if head.status == _CONTINUE and not self.exchange.expects_continue:
            return
        try:
            self.exchange.inform(head.status, self._rewritten(head, end_to_end(head.headers)))
        except ValueError:
            self._fail(StreamCode.ORIGIN_MALFORMED, "an interim head that cannot be written")

    def _rewritten(self, head: ResponseHead, headers: Headers) -> Headers:
        """Return the fields of an answer as the client should see them."""
        gateway = self._gateway
        rewriter = gateway.rewriter(self.route, head.origin)
        if rewriter is None:
            return headers
        view = self.view
        return rewriter.rewrite(headers, view.proto, view.authority(), gateway.remove_csps)

    def _fail(self, code: StreamCode, detail: str) -> None:
        """End both sides by our own decision."""
        self.stream.reset(code, detail)
        self.reset(code, detail)
