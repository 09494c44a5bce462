"""What an application sees of its clients, whatever carries their requests.

A server of some protocol makes *connections* and, for each request, an *exchange*; it asks the
*application* for a *handler* and calls that with what comes of the request, while the handler (or
whoever it works for) calls the exchange. HTTP/1.1 has one exchange at a time on a connection, other
protocols many; a client of a plain TCP port is both in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sockgw.http.framing import HttpError
from sockgw.protocol.heads import Headers, RequestHead, ResponseHead

__all__ = ["NOBODY", "Application", "ClientExchange", "Connection", "RequestHandler"]


class Connection(Protocol):
    """A client's connection."""

    #: Free for the application.
    notes: object | None

    @property
    def peer_address(self) -> str:
        """The client's address as text, "" for none (UNIX sockets); mapped IPv4 as IPv4."""

    @property
    def local_port(self) -> int:
        """The port that the client has connected to."""

    @property
    def secure(self) -> bool:
        """Whether the client speaks TLS with us."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""

    @property
    def protocol(self) -> str:
        """As the access log has it, for a request of which nothing more is known."""

    def drain(self, grace: float) -> None:
        """Close after the requests that have come, and those of the next ``grace`` seconds."""


class ClientExchange(Protocol):
    """One request and its response.

    Calls come in the order ``inform``\\*, ``respond``, ``write``\\*, ``finish``; ``abort`` at any
    time. Once it is over, by either side, all calls do nothing.

    A response of 101 to a request that asks for an upgrade switches the exchange: from then on
    bytes go as they are, and each direction ends for itself.
    """

    #: The request; its target is in origin-form.
    head: RequestHead
    #: The authority that the request is for; b"" where none is named.
    host: bytes
    #: The client waits for a 100 before it sends the body (RFC 9110, section 10.1.1).
    expects_continue: bool
    #: False: the request has no body.
    body_expected: bool
    #: When the head was complete, by the application's clock for durations.
    started: float
    #: Bytes of the request's body so far.
    bytes_received: int
    #: Bytes of the response's body so far.
    bytes_sent: int
    #: The request has arrived whole.
    complete: bool

    @property
    def connection(self) -> Connection:
        """The client's connection."""

    @property
    def protocol(self) -> str:
        """As the access log has it: HTTP/1.1, HTTP/2.0, TCP, ..."""

    @property
    def congested(self) -> bool:
        """The client takes no more: stop writing soon; ``response_drained`` follows."""

    @property
    def refused(self) -> bool:
        """The request has turned out malformed: :meth:`Application.refused` follows."""

    def pause_request(self) -> None:
        """Read no more of the request's body for now."""

    def resume_request(self) -> None:
        """Go on reading."""

    def inform(self, status: int, headers: Headers) -> None:
        """Send an interim response (1xx), where the client's protocol knows them.

        Raises ValueError, and sends nothing, where it is no interim response, or 101.
        """

    def respond(self, head: ResponseHead) -> None:
        """Send the response's head and settle how its body is framed.

        Raises ValueError, and sends nothing, where the head cannot be written.
        """

    def write(self, data: bytes) -> None:
        """Send a piece of the response's body.

        More than its Content-Length makes it a broken message: the client is cut off, of which
        ``client_lost`` tells.
        """

    def finish(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> bool:
        """End the response; return whether it is complete.

        A body shorter than its Content-Length is a broken message: as :meth:`abort`. Raises
        ValueError, and sends nothing, where the trailers cannot be written.
        """

    def abort(self) -> None:
        """Give up: what the client has got must look broken to it, never complete."""

    def drop(self) -> None:
        """Cut the client off, with all that it has not read yet; also after the end."""


class RequestHandler(Protocol):
    """What an application makes for each request; called in this order."""

    def body_received(self, data: bytes) -> None:
        """A piece of the request's body; up to one read of the socket may follow a pause."""

    def body_ended(self, trailers: Headers) -> None:
        """The request is complete; called once, for one without a body after ``request()``.

        For one that asks for an upgrade only once the client has closed its half of an upgraded
        connection.
        """

    def client_lost(self) -> None:
        """The response can no longer be finished, mostly since the client left: last call."""

    def client_left(self) -> None:
        """The client has closed an upgraded connection in good order: last call.

        What it has sent is complete; nothing more reaches it.
        """

    def response_drained(self) -> None:
        """The client has taken everything, after ``exchange.congested`` was true.

        Where that was so at the end of the response, it is called once more after it, when the
        client has taken the rest or is gone.
        """


class _Nobody:
    """Handles a request that nobody waits for: before ``request()``, and once it has its answer."""

    def body_received(self, data: bytes) -> None:
        pass

    def body_ended(self, trailers: Headers) -> None:
        pass

    def client_lost(self) -> None:
        pass

    def client_left(self) -> None:
        pass

    def response_drained(self) -> None:
        pass


NOBODY = _Nobody()


class Application(Protocol):
    """Whom a server asks."""

    def connected(self, connection: Connection) -> bool:
        """A client came. False: one too many, it is cut off and ``disconnected`` not called."""

    def disconnected(self, connection: Connection) -> None:
        """A client has gone."""

    def succeeded(self, connection: Connection, begin: Callable[[], None]) -> None:
        """``begin`` connects another one, which takes the place of this one.

        Whatever the limit, it has a place, and nobody believes meanwhile that all have gone.
        """

    def request(self, exchange: ClientExchange) -> RequestHandler:
        """A request's head has arrived and is sane. It may be answered within this call."""

    def refused(
        self, connection: Connection, error: HttpError, head: RequestHead | None
    ) -> tuple[ResponseHead, bytes]:
        """Return the answer to a request that the server refuses; the connection then closes."""
