"""What is written down of each request: a line in the access log, a count, and lately failures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from sockgw.http.headers import get, lowered
from sockgw.outer.accesslog import AccessLog, Entry
from sockgw.outer.admin import Failure
from sockgw.outer.metrics import Metrics
from sockgw.outer.refusals import Refusal
from sockgw.protocol.heads import RequestHead

if TYPE_CHECKING:
    from sockgw.outer.relay import Relay

__all__ = ["Journal"]

_MAX_FAILURES = 100  # lines on the admin page


class Journal:
    """Keeps it for one gateway. ``seconds`` is the clock for durations."""

    def __init__(
        self, metrics: Metrics, access_log: AccessLog, seconds: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._seconds = seconds
        #: What went wrong lately, newest first.
        self.failures: deque[Failure] = deque(maxlen=_MAX_FAILURES)

    def relayed(self, relay: Relay, outcome: str) -> None:
        """A request is over that an inner layer was to perform."""
        exchange = relay.exchange
        now = self._seconds()
        if relay.held_since is not None:
            relay.waited += now - relay.held_since
        duration = now - exchange.started
        name = relay.route.target.name
        status = relay.status or 499  # nginx's number for a client that left before the answer
        self._metrics.request_done(
            name, status, duration, exchange.bytes_received, exchange.bytes_sent
        )
        if not self._access_log.wanted:
            return
        head = exchange.head
        referer = user_agent = b""
        for field, value in head.headers:
            key = lowered[field]
            if key == b"user-agent":
                user_agent = user_agent or value
            elif key == b"referer":
                referer = referer or value
        first_byte = relay.first_byte
        self._access_log.record(
            Entry(  # by position: names would cost more than all the rest
                time.time() - duration,
                relay.view.address,
                head.method,
                head.target,
                exchange.protocol,
                status,
                exchange.bytes_sent,
                exchange.bytes_received,
                referer,
                user_agent,
                name,
                relay.member.identifier if relay.tries else "",
                relay.request_id,
                duration,
                None if first_byte is None else first_byte - exchange.started,
                relay.tries,
                relay.waited,
                outcome,
            )
        )

    def failed(self, relay: Relay, reason: str) -> None:
        """A relay's answer is our own, or broken."""
        self._remember(
            relay.route.target.name,
            relay.member.identifier if relay.tries else "",
            relay.status,
            reason,
            relay.request_id.decode("ascii"),
        )

    def refused(
        self,
        address: str,
        head: RequestHead,
        refusal: Refusal,
        request_id: str,
        *,
        started: float,
        bytes_out: int,
        target: str = "",
        protocol: str,
    ) -> None:
        """A request went nowhere."""
        self.answered(
            address,
            head,
            refusal.status,
            refusal.reason,
            request_id.encode("ascii"),
            started=started,
            bytes_out=bytes_out,
            target=target,
            protocol=protocol,
        )
        if refusal.status >= 500:
            self._remember(target, "", refusal.status, refusal.reason, request_id)

    def answered(
        self,
        address: str,
        head: RequestHead,
        status: int,
        outcome: str,
        request_id: bytes,
        *,
        started: float,
        bytes_out: int,
        target: str = "",
        protocol: str,
    ) -> None:
        """A request got an answer of the gateway's own; no inner layer has seen it."""
        duration = self._seconds() - started
        self._metrics.request_done(target or "-", status, duration, 0, bytes_out)
        self._access_log.record(
            Entry(
                time=time.time() - duration,
                client=address,
                method=head.method,
                target=head.target,
                protocol=protocol,
                status=status,
                bytes_out=bytes_out,
                bytes_in=0,
                referer=get(head.headers, b"referer") or b"",
                user_agent=get(head.headers, b"user-agent") or b"",
                target_name=target,
                identifier="",
                request_id=request_id,
                duration=duration,
                first_byte=None,
                tries=0,
                held=0.0,
                outcome=outcome,
            )
        )

    def _remember(
        self, target: str, identifier: str, status: int, reason: str, request_id: str
    ) -> None:
        self.failures.appendleft(
            Failure(
                time=time.time(),
                target=target,
                identifier=identifier,
                status=status,
                reason=reason,
                request_id=request_id,
            )
        )
