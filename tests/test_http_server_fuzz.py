"""The server side of HTTP under whatever comes: no exception, no state without an end."""

import itertools
import re

from http_clients import Server, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.http.patience import Awaited
from sockgw.protocol.heads import ResponseHead

METHODS = [b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT", b"BREW", b"PLAY", b""]
TARGETS = [b"/", b"/a?b", b"*", b"http://a/x", b"http://b/", b"/#", b"", b"//", b"a:80", b"\xff"]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.0", b"http/1.1", b""]
FIELDS = [
    b"Host: a",
    b"Host: a",  # twice: most requests should be taken
    b"host: b",
    b"Host:",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"content-length: 05 ",
    b"Content-Length: 5, 5",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:\tCHUNKED",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked",
    b" folded",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade",
    b"Connection: upgrade, close",
    b"Upgrade: h2c",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"Expect: x",
    b"A: " + b"x" * 300,
    b"A" * 300 + b": x",
    b"A: \0",
    b": x",
    b"A:\xe4",
]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"1;a=b\r\nh\r\n2\r\nel\r\n2\r\nlo\r\n0\r\nT: x\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nHost: b\r\n\r\n",
    b"ffffffffffffffffff\r\n",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]

lines = st.tuples(
    st.sampled_from([b"GET / HTTP/1.1", b"POST /x HTTP/1.1"])
    | st.tuples(st.sampled_from(METHODS), st.sampled_from(TARGETS), st.sampled_from(VERSIONS)).map(
        b" ".join
    ),
)


@st.composite
def messages(draw):
    """Requests, more or less; many with a Host, most with the right line ends."""
    (line,) = draw(lines)
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if draw(st.booleans()):
        fields.insert(0, b"Host: a")
    end = draw(st.sampled_from(ENDS)) if draw(st.integers(0, 4)) == 0 else b"\r\n"
    return b"\r\n".join([line, *fields]) + end + b"\r\n" + draw(st.sampled_from(BODIES))


@st.composite
def good_messages(draw):
    """Requests that are fine, with a framing each."""
    line = draw(
        st.sampled_from([b"GET /a HTTP/1.1", b"POST http://a/b HTTP/1.1", b"HEAD /c HTTP/1.0"])
    )
    fields = [b"Host: a", *draw(st.lists(st.sampled_from([b"B: c", b"D:"]), max_size=2))]
    if draw(st.booleans()):
        fields += [b"Connection: Upgrade, keep-alive", b"Upgrade: h2c"]
    elif draw(st.booleans()):
        fields.append(b"Connection: keep-alive")
    body = b"".join(draw(st.lists(st.sampled_from([b"x", b"yz", b"GET / HTTP/1.1\r\n\r\n"]))))
    kind = draw(st.integers(0, 2))
    if kind == 0:
        body = b""
    elif kind == 1 or line.endswith(b"1.0"):
        fields.append(b"Content-Length: %d" % len(body))
    else:
        fields.append(b"Transfer-Encoding: chunked")
        body = (b"%x;e\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\nT: u\r\n\r\n"
    return b"\r\n".join([*[line], *fields]) + b"\r\n\r\n" + body


def cut(data, cuts):
    """Return the pieces of ``data`` between these places."""
    places = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


def late_answer(exchange):
    """Most lengths of answers, by what was asked."""
    if len(exchange.head.headers) % 2:
        exchange.respond(ResponseHead(200, b"OK", [(b"Date", b"now")]))
        exchange.write(exchange.head.target)
        exchange.finish()
    else:
        answer(exchange, exchange.head.target)


def run(pieces):
    """Feed the pieces; return all that could be seen from outside and inside."""
    server = Server(max_header_size=4096)
    server.application.on_end = late_answer
    # Of a request for an upgrade no end is told before its answer.
    server.application.on_request = lambda exchange: exchange.head.upgrade and late_answer(exchange)
    for piece in pieces:
        if server.transport.lost:
            break
        server.feed(piece)
    told = []
    for handler in server.handlers:
        if handler.lost:
            continue  # a body that turns out bad; if it came at once nobody was told of it
        exchange = handler.exchange
        rest = [event for event in handler.events if event[0] not in ("body", "drained")]
        told.append((exchange.head, exchange.host, exchange.expects_continue, handler.body, rest))
    return server, (
        server.written,
        told,
        server.closing,
        [r[:2] for r in server.application.refusals],
    )


def check_ends(server):
    """The connection is closed, or waits for something, and ends if nothing comes."""
    connection, transport = server.connection, server.transport
    if not server.closing:
        assert connection._awaited in (Awaited.REQUEST, Awaited.HEAD, Awaited.BODY)
        assert connection.deadline is not None
        assert transport.reading
    for seconds in (301, 0, 0, 301, 0, 0, 1):  # a body that does not come; lingering after its 408
        server.clock.advance(seconds)
    assert transport.lost
    assert server.application.connections == 0
    assert server.clock.getDelayedCalls() == []
    for handler in server.handlers:
        assert handler.exchange.finished != handler.lost


cuts = st.lists(st.integers(0, 5000), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), cuts)
def test_junk(data, places):
    server, _ = run(cut(data, places))
    check_ends(server)


@settings(max_examples=250, deadline=None)
@given(st.lists(messages(), max_size=4), cuts)
def test_doubtful_requests(parts, places):
    data = b"".join(parts)
    _, whole = run([data])
    server, pieces = run(cut(data, places))
    assert pieces == whole
    # Who is refused is so once, and nothing follows.
    statuses = server.statuses
    assert all(status == 200 for status in statuses[:-1])
    check_ends(server)


@settings(max_examples=150, deadline=None)
@given(st.lists(good_messages(), min_size=1, max_size=5), cuts)
def test_good_requests(parts, places):
    data = b"".join(parts)
    _, whole = run([data])
    server, pieces = run(cut(data, places))
    assert pieces == whole
    served = len(server.handlers)
    assert server.statuses == [200] * served
    # All of them, unless one of HTTP/1.0 ended the connection.
    ends = [
        i
        for i, part in enumerate(parts, 1)
        if b" HTTP/1.0\r\n" in part and b"keep-alive" not in part
    ]
    assert served == (ends[0] if ends else len(parts)), parts
    for handler, part in zip(server.handlers, parts, strict=False):
        wire = part.partition(b"\r\n\r\n")[2]
        body = handler.body
        if b"chunked" in part:
            body = (b"%x;e\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\nT: u\r\n\r\n"
        assert body == wire
    check_ends(server)


@settings(max_examples=150, deadline=None)
@given(good_messages(), st.binary(min_size=1, max_size=4), st.integers(0, 400), cuts)
def test_damaged_requests(message, noise, place, places):
    place %= len(message)
    data = message[:place] + noise + message[place + len(noise) :]
    _, whole = run([data])
    server, pieces = run(cut(data, places))
    assert pieces == whole
    check_ends(server)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(good_messages(), min_size=1, max_size=6),
    st.lists(st.integers(0, 9), min_size=1, max_size=200),
    st.randoms(use_true_random=False),
)
def test_any_order_of_events(parts, choices, random):
    """Clients send, read, and stop reading; the application answers when it likes."""
    server = Server(flushing=False)
    transport, connection = server.transport, server.connection
    data = b"".join(parts)
    for choice in choices:
        if transport.lost:
            break
        live = [h for h in server.handlers if not (h.exchange.finished or h.lost)]
        assert len(live) <= 1, "one after the other"
        exchange = live[0].exchange if live else None
        if choice <= 2 and data and transport.reading and not transport.fin:
            size = random.randrange(1, len(data) + 1)
            piece, data = data[:size], data[size:]
            connection.dataReceived(piece)
        elif choice == 3:
            transport.flush()
        elif choice == 4 and exchange is not None:
            exchange.pause_request()
        elif choice == 5 and exchange is not None:
            exchange.resume_request()
        elif choice == 6 and exchange is not None:
            if not exchange.response_started:
                exchange.respond(ResponseHead(200, b"OK", [(b"Date", b"now")]))
            exchange.write(b"x" * random.choice([1, 70_000]))
        elif choice == 7 and exchange is not None and exchange.response_started:
            exchange.finish()
        elif choice == 8:
            server.clock.advance(random.choice([0, 0.5, 3]))
        elif choice == 9 and random.random() < 0.1 and transport.reading and not transport.fin:
            transport.half_close_by_peer()
        if connection._waiting and not server.closing:
            assert not transport.reading, "who pipelines waits"
    sent = re.sub(rb"x{1000,}", b"", server.written)
    assert sent.count(b"HTTP/1.1 200 ") == sum(h.exchange.response_started for h in server.handlers)
    # However it stands: the end comes, and everybody hears of it.
    if not transport.lost:
        transport.close_by_peer()
    server.clock.advance(1)
    assert server.application.connections == 0
    for handler in server.handlers:
        assert handler.exchange.finished != handler.lost
