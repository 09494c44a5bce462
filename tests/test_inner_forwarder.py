"""The forwarder between a real tunnel and a real pool of origins' connections on strict fakes."""

import gc

import pytest
from originfakes import Bench
from tunnelpair import TunnelPair

from sockgw.http.client import Origin, OriginError
from sockgw.http.originexchange import OriginExchange
from sockgw.inner.allow import AllowList
from sockgw.inner.forwarder import Forwarder
from sockgw.protocol.errors import StreamCode
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import Destination
from sockgw.protocol.windows import WINDOW

TO = Destination("http", "origin.example", 8080)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SERVICES = {
    "wiki": Origin("https", "wiki.internal", 443),
    "db": Origin("http", "fd00::7", 5984),
}


class Caller:
    """The outer layer's end of a stream; insists on the promises that streams make."""

    def __init__(self):
        self.stream = None
        self.consume = True
        self.interim = []
        self.head = None
        self.chunks = []
        self.unconsumed = 0
        self.trailers = None
        self.code = None
        self.detail = ""
        self.drains = 0

    @property
    def body(self):
        return b"".join(self.chunks)

    def head_received(self, head):
        assert self.head is None
        if head.interim:
            self.interim.append(head)
        else:
            self.head = head

    def data_received(self, data):
        assert self.head is not None
        assert not self.over
        self.chunks.append(data)
        self.unconsumed += len(data)
        assert self.unconsumed <= self.stream.receiving.size
        if self.consume:
            self.take()

    def take(self):
        count, self.unconsumed = self.unconsumed, 0
        self.stream.consumed(count)

    @property
    def over(self):
        return self.trailers is not None or self.code is not None

    def ended(self, trailers):
        assert not self.over
        self.trailers = trailers

    def reset(self, code, detail):
        assert not self.over
        self.code, self.detail = code, detail

    def drained(self):
        self.drains += 1


class Inner:
    """A forwarder with origins behind it and a tunnel before it."""

    def __init__(self, allow=(), services=SERVICES, resume_window=0.0, raw=None, **limits):
        self.origins = Bench(**limits)
        self.forwarder = Forwarder(self.origins.pool, AllowList.parse(allow), services, raw)
        self.pair = TunnelPair(
            self.forwarder,
            clock=self.origins.clock,
            ping_interval=1e9,
            ping_timeout=1e9,
            resume_window=resume_window,
        )
        self.run()

    def run(self):
        self.pair.run()
        assert self.pair.ended == []

    def open(
        self,
        *headers,
        method=b"GET",
        target=b"/",
        to=TO,
        complete=True,
        consume=True,
        upgrade=b"",
    ):
        caller = Caller()
        caller.consume = consume
        head = RequestHead(method, target, list(headers), upgrade)
        caller.stream = self.pair.outer.open(head, to, caller, complete=complete)
        self.run()
        return caller

    def sent(self, index=-1):
        """Return what that origin's connection has been sent since the last time."""
        data = self.origins.transports[index].drain()
        self.run()
        return data

    def receive(self, data, index=-1):
        """That origin sends something."""
        self.origins.transports[index].receive(data)
        self.run()

    @property
    def transport(self):
        return self.origins.transport


@pytest.fixture
def inner():
    return Inner()


def lines(data):
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


# ---------------------------------------------------------------------- the way


def test_a_request_and_its_answer(inner):
    caller = inner.open((b"X-One", b"1"), target=b"/path?query")
    assert inner.origins.dialled == [Origin("http", "origin.example", 8080)]
    assert inner.sent() == (
        b"GET /path?query HTTP/1.1\r\nHost: origin.example:8080\r\nX-One: 1\r\n\r\n"
    )
    inner.receive(b"HTTP/1.1 201 Made\r\nX-Two: 2\r\nContent-Length: 5\r\n\r\nhello")
    assert caller.head == ResponseHead(201, b"Made", [(b"X-Two", b"2"), (b"Content-Length", b"5")])
    assert caller.body == b"hello"
    assert caller.trailers == []
    assert inner.pair.inner.session.streams == {}


def test_a_connection_is_used_again(inner):
    for _ in range(3):
        caller = inner.open()
        inner.sent()
        inner.receive(OK)
        assert caller.body == b"ok"
    assert len(inner.origins.transports) == 1


def test_bodies_both_ways_with_trailers(inner):
    caller = inner.open((b"Content-Length", b"5"), method=b"POST", complete=False)
    caller.stream.write(b"he")
    inner.run()
    caller.stream.write(b"llo")
    caller.stream.end()
    inner.run()
    assert lines(inner.sent())[1] == b"hello"
    caller = inner.open(method=b"POST", complete=False)
    caller.stream.write(b"hello")
    caller.stream.end([(b"X-Sum", b"1")])
    inner.run()
    head, body = lines(inner.sent())
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    inner.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert caller.body == b"abc"
    inner.receive(b"0\r\nX-Sum: 2\r\nConnection: x\r\n\r\n")
    assert caller.trailers == [(b"X-Sum", b"2")]


def test_trailers_too_large_for_a_frame():
    inner = Inner(max_header_size=1_000_000)
    caller = inner.open()
    inner.sent()
    inner.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    inner.receive(b"X: " + b"x" * 131_072 + b"\r\n\r\n")
    assert caller.code is StreamCode.TOO_LARGE


def test_that_trailers_are_welcome_reaches_the_origin(inner):
    inner.open((b"TE", b"trailers"))
    head, _ = lines(inner.sent())
    assert head[2:] == [b"TE: trailers", b"Connection: TE"]


# ---------------------------------------------------------------------- upgrades


SWITCHING = b"HTTP/1.1 101 Switching\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nX: y\r\n\r\n"


def upgraded(inner, early=b""):
    caller = inner.open((b"Sec-WebSocket-Key", b"k"), complete=False, upgrade=b"websocket")
    head, _ = lines(inner.sent())
    assert head[1:] == [
        b"Host: origin.example:8080",
        b"Sec-WebSocket-Key: k",
        b"Upgrade: websocket",
        b"Connection: upgrade",
    ]
    inner.receive(SWITCHING + early)
    assert caller.head == ResponseHead(101, b"Switching", [(b"X", b"y")], upgrade=b"WebSocket")
    return caller


@pytest.mark.parametrize("early", [b"", b"early"])
def test_an_upgrade(inner, early):
    caller = upgraded(inner, early)
    assert inner.transport.kept_alive
    assert caller.body == early
    caller.stream.write(b"up")
    inner.run()
    assert inner.sent() == b"up"
    inner.receive(b"HTTP/1.1 200 OK\r\n\r\n")
    assert caller.body == early + b"HTTP/1.1 200 OK\r\n\r\n"
    inner.origins.turn(100_000)  # silence is no fault
    assert not caller.over


def test_the_origin_ends_first(inner):
    caller = upgraded(inner)
    inner.transport.half_close()
    inner.run()
    assert caller.trailers == []
    caller.stream.write(b"last words")
    inner.run()
    assert inner.sent() == b"last words"
    assert inner.transport.closing == ""
    caller.stream.end()
    inner.run()
    assert inner.transport.closing == "loseConnection"
    assert inner.pair.inner.session.streams == {}


def test_the_client_ends_first(inner):
    caller = upgraded(inner)
    caller.stream.write(b"all")
    caller.stream.end()
    inner.run()
    assert inner.sent() == b"all"
    assert inner.transport.half_closed
    inner.receive(b"last words")
    inner.transport.half_close()
    inner.run()
    assert caller.body == b"last words"
    assert caller.trailers == []
    assert inner.transport.closing == "loseConnection"


def test_an_end_waits_for_an_origin_that_does_not_read(inner):
    caller = upgraded(inner)
    caller.stream.write(b"x" * 100_000)
    caller.stream.end()
    inner.run()
    assert not inner.transport.half_closed
    assert inner.sent() == b"x" * 100_000
    assert inner.transport.half_closed


def test_an_upgraded_origin_that_breaks_off(inner):
    caller = upgraded(inner)
    inner.transport.reset()
    inner.run()
    assert caller.code is StreamCode.ORIGIN_CLOSED


def test_an_upgraded_origin_that_closes_in_good_order(inner):
    """As over TLS: both halves at once."""
    caller = upgraded(inner)
    inner.transport.end()
    inner.run()
    assert caller.trailers == []


def test_a_client_that_is_lost_ends_an_upgraded_connection(inner):
    caller = upgraded(inner)
    caller.stream.reset(StreamCode.CANCELLED)
    inner.run()
    assert inner.transport.closing == "abortConnection"


def test_an_upgraded_connection_pauses_both_ways(inner):
    caller = upgraded(inner)
    caller.consume = False
    for _ in range(20):
        if inner.transport.reading:
            inner.receive(b"x" * 65_536)
    assert not inner.transport.reading
    caller.consume = True
    caller.take()
    inner.run()
    assert inner.transport.reading
    caller.stream.write(b"y" * 10 * WINDOW)
    inner.run()
    assert len(inner.transport.buffered) <= 2 * WINDOW
    received = b""
    while more := inner.sent():
        received += more
    assert received == b"y" * 10 * WINDOW


def test_a_refused_upgrade_is_an_ordinary_answer(inner):
    caller = inner.open(complete=False, upgrade=b"websocket")
    inner.sent()
    inner.receive(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    assert (caller.head.status, caller.body, caller.trailers) == (403, b"no", [])
    caller.stream.end()
    inner.run()
    inner.open()
    assert len(inner.origins.transports) == 1  # the connection serves the next


@pytest.mark.parametrize("asked", [b"", b"h2c", b"websocket/2"])
def test_an_upgrade_that_was_not_asked_for(inner, asked):
    caller = inner.open(complete=not asked, upgrade=asked)
    inner.sent()
    inner.receive(SWITCHING + b"\x81\x00")
    assert caller.code is StreamCode.ORIGIN_MALFORMED
    assert inner.transport.closing == "abortConnection"


def test_bytes_before_the_switch_are_an_error(inner):
    caller = inner.open(complete=False, upgrade=b"websocket")
    caller.stream.write(b"early")
    inner.run()
    assert caller.code is StreamCode.PROTOCOL_ERROR


# ---------------------------------------------------------------------- streams of bytes


class Raw:
    """Takes note of what is to be connected."""

    def __init__(self):
        self.calls = []

    def connect(self, origin, handler):
        self.calls.append((origin, handler))
        return self

    congested = False

    def write(self, data):
        self.calls.append(data)

    def finish(self, trailers=None):
        self.calls.append("end")

    def abort(self):
        self.calls.append("abort")


def test_streams_of_bytes():
    raw = Raw()
    inner = Inner(services={"db": Origin("tcp", "db.internal", 5432)}, raw={"tcp": raw})
    for to in (Destination("tcp", "db.internal", 5432), Destination("tcp", service="db")):
        caller = inner.open(to=to, complete=False)
        origin, handler = raw.calls.pop()
        assert origin == Origin("tcp", "db.internal", 5432)
        caller.stream.write(b"early")
        inner.run()
        handler.responded(ResponseHead(200, b"", []))
        handler.body_received(b"down")
        inner.run()
        assert caller.head.status == 200
        assert caller.body == b"down"
        handler.body_ended([])
        inner.run()
        assert caller.trailers == []
        caller.stream.write(b"more")
        caller.stream.end()
        inner.run()
        assert raw.calls == [b"early", b"more", "end"]
        raw.calls.clear()


@pytest.mark.parametrize(
    ("to", "code", "detail"),
    [
        (Destination("tcp", "evil.example", 22), StreamCode.NOT_ALLOWED, "evil.example:22 is not"),
        (Destination("tcp", service="wiki"), StreamCode.UNKNOWN_SERVICE, "is https, not tcp"),
        (Destination(service="db"), StreamCode.UNKNOWN_SERVICE, "is tcp, not http or https"),
        (Destination("udp", service="db"), StreamCode.UNKNOWN_SERVICE, "is tcp, not udp"),
        (Destination("udp", "dns.example", 53), StreamCode.REFUSED, "no streams of udp here"),
    ],
)
def test_a_service_is_of_one_kind(to, code, detail):
    services = {"db": Origin("tcp", "db.internal", 5432), "wiki": SERVICES["wiki"]}
    inner = Inner(allow=["dns.example"], services=services, raw={"tcp": Raw()})
    caller = inner.open(to=to, complete=False)
    assert caller.code is code
    assert detail in caller.detail


@pytest.mark.parametrize(
    ("method", "answer", "status"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304),
    ],
)
def test_answers_without_a_body(inner, method, answer, status):
    caller = inner.open(method=method)
    inner.sent()
    inner.receive(answer)
    assert caller.head.status == status
    assert caller.trailers == []
    assert caller.body == b""


# ---------------------------------------------------------------------- destinations


def test_the_allow_list_judges_by_name_before_anything_is_dialled():
    inner = Inner(allow=["origin.example:8080", "*.wiki.example"])
    assert inner.open().code is None
    assert inner.open(to=Destination("https", "en.wiki.example", 443)).code is None
    dialled = len(inner.origins.dialled)
    for to in (
        Destination("http", "origin.example", 8081),
        Destination("http", "other.example", 8080),
        Destination("http", "wiki.example", 80),
        Destination("http", "origin.example.evil.example", 8080),
        Destination("http", "127.0.0.1", 8080),
    ):
        caller = inner.open(to=to)
        assert caller.code is StreamCode.NOT_ALLOWED
        assert caller.detail == f"{to.hostname}:{to.port} is not on the allow list"
    assert len(inner.origins.dialled) == dialled


def test_metadata_services_are_not_allowed_even_without_a_list(inner):
    caller = inner.open(to=Destination("http", "169.254.169.254", 80))
    assert caller.code is StreamCode.NOT_ALLOWED
    assert inner.origins.dialled == []


def test_the_same_connection_is_no_way_around(inner):
    """An origin that may be reached has been, and another name asks for the same address."""
    inner = Inner(allow=["origin.example:8080"])
    inner.open()
    inner.sent()
    inner.receive(OK)
    caller = inner.open(to=Destination("https", "origin.example", 8080))
    assert caller.code is None  # the list knows hosts and ports, and this is one
    assert len(inner.origins.dialled) == 2


@pytest.mark.parametrize("allow", [(), ("other.example",)])
def test_a_service_is_where_this_side_says(allow):
    inner = Inner(allow=allow)
    for name, host in (("wiki", b"wiki.internal"), ("db", b"[fd00::7]:5984")):
        caller = inner.open(to=Destination(service=name))
        assert inner.origins.dialled[-1] == SERVICES[name]
        assert b"Host: " + host in lines(inner.sent())[0]
        inner.receive(OK)
        origin = SERVICES[name]
        assert caller.head.origin == (origin.protocol, origin.hostname, origin.port)


def test_the_origin_is_told_for_services_only(inner):
    caller = inner.open()
    inner.sent()
    inner.receive(OK)
    assert caller.head.origin is None


@pytest.mark.parametrize("path", ["/run/app.sock", "/run/x/..//app.sock", "//run/app.sock"])
def test_a_socket_that_is_named_here(path):
    inner = Inner(allow=["unix:/run/app.sock"])
    caller = inner.open(to=Destination("http", "app.example", 80, socket=path))
    assert inner.origins.dialled == [Origin("http", "app.example", 80, "/run/app.sock")]
    assert b"Host: app.example" in inner.sent()
    inner.receive(OK)
    assert caller.head.origin is None


@pytest.mark.parametrize("allow", [[], ["*"], ["unix:/run/app.sock"], ["unix:/var/run/docker/*"]])
def test_a_socket_that_is_not(allow):
    inner = Inner(allow=allow)
    to = Destination("http", "localhost", 80, socket="/var/run/x/../docker.sock")
    caller = inner.open(to=to)
    assert caller.code is StreamCode.NOT_ALLOWED
    assert caller.detail == "unix:/var/run/docker.sock is not on the allow list"
    assert inner.origins.dialled == []


def test_a_service_on_a_socket():
    app = Origin("http", "localhost", 80, "/run/app.sock")
    inner = Inner(services={"app": app})
    caller = inner.open(to=Destination(service="app"))
    assert inner.origins.dialled == [app]
    assert b"Host: localhost" in inner.sent()
    inner.receive(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    assert caller.head.origin == ("http", "localhost", 80)
    assert caller.interim[0].origin == ("http", "localhost", 80)


def test_an_unknown_service(inner):
    caller = inner.open(to=Destination(service="mail"))
    assert caller.code is StreamCode.UNKNOWN_SERVICE
    assert caller.detail == "no service 'mail' here"
    assert inner.origins.dialled == []


@pytest.mark.parametrize(
    ("to", "host"),
    [
        (Destination("http", "a", 80), b"a"),
        (Destination("https", "a", 443), b"a"),
        (Destination("http", "a", 443), b"a:443"),
        (Destination("https", "a", 80), b"a:80"),
        (Destination("http", "fd00::1", 80), b"[fd00::1]"),
        (Destination("http", "fd00::1", 81), b"[fd00::1]:81"),
    ],
)
def test_the_host_of_the_origin(inner, to, host):
    for _ in range(2):
        inner.open(to=to)
        assert lines(inner.sent())[0][1] == b"Host: " + host


def test_a_given_host_is_kept(inner):
    inner.open((b"X", b"1"), (b"hOST", b"public.example"))
    assert lines(inner.sent())[0] == [b"GET / HTTP/1.1", b"X: 1", b"hOST: public.example"]


def test_decisions_about_any_number_of_destinations(inner, monkeypatch):
    monkeypatch.setattr("sockgw.inner.forwarder._MAX_ROUTES", 10)
    for number in range(1, 30):
        for _ in range(2):
            inner.open(to=Destination("http", "a.example", 80 + number))
            assert b"Host: a.example:%d" % (80 + number) in lines(inner.sent())[0]
            inner.receive(OK)
    assert len(inner.forwarder._routes) <= 10


# ---------------------------------------------------------------------- hostile outer layers


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET", b"/", [(b"Host", b"a"), (b"HOST", b"b")]),
        (b"GET", b"/", [(b"X Y", b"z")]),
        (b"GET", b"/", [(b"X\r\nY", b"z")]),
        (b"GET", b"/", [(b"", b"z")]),
        (b"GET", b"/", [(b"X", b"a\r\nHost: evil")]),
        (b"GET", b"/", [(b"X", b"a\nb")]),
        (b"GET", b"/", [(b"X", b"a\0b")]),
        (b"GET", b"/", [(b"Host", b"a\r\nX: y")]),
        (b"GET", b"/", [(b"Content-Length", b"5")]),
        (b"GET", b"/", [(b"Content-Length", b"0"), (b"content-length", b"0")]),
        (b"GET", b"/", [(b"Content-Length", b"+0")]),
        (b"GET", b"/ HTTP/1.1\r\nX: y", []),
        (b"GET", b"/\r\n", []),
        (b"GET", b"/a b", []),
        (b"GET", b"/\xff", []),
        (b"GET /", b"/", []),
        (b"G\r\nT", b"/", []),
        (b"CONNECT", b"a:1", []),
    ],
)
def test_what_cannot_be_sent_is_not(inner, method, target, headers):
    caller = inner.open(*headers, method=method, target=target)
    assert caller.code is StreamCode.PROTOCOL_ERROR
    assert inner.origins.dialled == []


@pytest.mark.parametrize(
    "hostname", ["ü.example", "a\r\nX: y", "a b", "a" * 1_000, "a/b", "a:80", "\0", "[::1]", "-"]
)
def test_odd_host_names_reach_no_origin(inner, hostname):
    """Whatever the dialler makes of them, they are no header, and the tunnel goes on."""
    inner.origins.dial_error = OriginError(StreamCode.DNS_ERROR, "no such name")
    caller = inner.open(to=Destination("http", hostname, 80))
    assert caller.code in (
        StreamCode.PROTOCOL_ERROR,
        StreamCode.DNS_ERROR,
        StreamCode.NOT_ALLOWED,
    )
    assert inner.origins.transports == []
    inner.origins.dial_error = None
    caller = inner.open()
    inner.sent()
    inner.receive(OK)
    assert caller.body == b"ok"


def test_more_body_than_announced(inner):
    caller = inner.open((b"Content-Length", b"3"), method=b"PUT", complete=False)
    inner.sent()
    caller.stream.write(b"GET / HTTP/1.1\r\n\r\n")
    inner.run()
    assert caller.code is StreamCode.PROTOCOL_ERROR
    assert inner.transport.closing == "abortConnection"


def test_less_body_than_announced(inner):
    caller = inner.open((b"Content-Length", b"3"), method=b"PUT", complete=False)
    caller.stream.write(b"x")
    caller.stream.end()
    inner.run()
    assert caller.code is StreamCode.PROTOCOL_ERROR
    assert inner.transport.closing == "abortConnection"


# ---------------------------------------------------------------------- headers


def test_what_ends_at_a_hop_does_not_reach_the_origin(inner):
    inner.open(
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"x"),
        (b"TE", b"gzip"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"websocket"),
        (b"X", b"kept"),
    )
    assert lines(inner.sent())[0] == [
        b"GET / HTTP/1.1",
        b"Host: origin.example:8080",
        b"X: kept",
    ]


def test_what_ends_at_a_hop_does_not_reach_the_outer_layer(inner):
    caller = inner.open()
    inner.sent()
    inner.receive(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        b"Upgrade: h2c\r\nTransfer-Encoding: chunked\r\nX: kept\r\nX: twice\r\n\r\n0\r\n\r\n"
    )
    assert caller.head.headers == [(b"X", b"kept"), (b"X", b"twice")]


def test_interim_responses_pass(inner):
    caller = inner.open((b"Expect", b"100-continue"), method=b"PUT", complete=False)
    assert b"Expect: 100-continue" in lines(inner.sent())[0]
    inner.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
    inner.receive(b"HTTP/1.1 103 Early Hints\r\nConnection: X\r\nX: 1\r\nLink: </a>\r\n\r\n")
    assert [head.status for head in caller.interim] == [100, 103]
    assert caller.interim[1].headers == [(b"Link", b"</a>")]
    caller.stream.write(b"body")
    caller.stream.end()
    inner.run()
    assert inner.sent().endswith(b"4\r\nbody\r\n0\r\n\r\n")
    inner.receive(OK)
    assert caller.body == b"ok"


# ---------------------------------------------------------------------- the end


def answered(inner):
    inner.open()
    inner.sent()
    inner.receive(OK)


def answered_early(inner):
    inner.open(method=b"PUT", complete=False)
    inner.receive(OK)


def broken_off(inner):
    inner.open().stream.reset(StreamCode.CANCELLED)
    inner.run()


def malformed(inner):
    inner.open()
    inner.receive(b"no HTTP")


def too_large(inner):
    inner.open()
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1_000) for n in range(140))
    inner.receive(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")


def ended_by_the_origin(inner):
    test_the_origin_ends_first(inner)


def exchanges():
    return {id(each) for each in gc.get_objects() if type(each) is OriginExchange}


def ended_by_the_client(inner):
    test_the_client_ends_first(inner)


@pytest.mark.parametrize(
    "way",
    [
        answered,
        answered_early,
        broken_off,
        malformed,
        too_large,
        ended_by_the_origin,
        ended_by_the_client,
    ],
)
def test_an_exchange_that_is_over_is_gone_without_the_garbage_collector(way):
    inner = Inner(max_header_size=1_000_000, max_header_count=1_000)
    before = exchanges()  # somebody else's
    gc.disable()
    try:
        way(inner)
        inner.origins.transports.clear()
        assert exchanges() <= before
    finally:
        gc.enable()


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "code",
    [
        StreamCode.DNS_ERROR,
        StreamCode.CONNECTION_REFUSED,
        StreamCode.CONNECTION_TIMEOUT,
        StreamCode.UNREACHABLE,
        StreamCode.TLS_ERROR,
        StreamCode.NOT_ALLOWED,
    ],
)
def test_what_went_wrong_is_passed_on(code):
    inner = Inner(dial_at_once=False)
    caller = inner.open()
    inner.origins.answer_dial(OriginError(code, "what exactly"))
    inner.run()
    assert (caller.code, caller.detail) == (code, "what exactly")


def test_a_dialler_that_raises(inner):
    inner.origins.dial_error = OriginError(StreamCode.DNS_ERROR, "at once")
    caller = inner.open()
    assert (caller.code, caller.detail) == (StreamCode.DNS_ERROR, "at once")


def test_an_origin_that_dies_before_its_answer(inner):
    caller = inner.open(method=b"POST")
    inner.sent()
    inner.transport.end()
    inner.run()
    assert caller.code is StreamCode.ORIGIN_CLOSED
    assert caller.head is None


def test_an_origin_that_dies_within_its_answer(inner):
    caller = inner.open()
    inner.sent()
    inner.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart")
    inner.transport.end()
    inner.run()
    assert caller.code is StreamCode.ORIGIN_CLOSED
    assert caller.body == b"part"


def test_an_origin_that_speaks_something_else(inner):
    caller = inner.open()
    inner.sent()
    inner.receive(b"SSH-2.0-OpenSSH_9.9\r\n")
    assert caller.code is StreamCode.ORIGIN_MALFORMED


def test_a_head_over_the_limit():
    inner = Inner(max_header_size=1_000)
    caller = inner.open()
    inner.sent()
    inner.receive(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2_000 + b"\r\n\r\n")
    assert caller.code is StreamCode.TOO_LARGE


@pytest.mark.parametrize("status", [b"200 OK", b"103 Early Hints"])
def test_a_head_over_what_a_frame_holds(status):
    """Whatever limit is configured."""
    inner = Inner(max_header_size=1_000_000, max_header_count=1_000)
    caller = inner.open()
    inner.sent()
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1_000) for n in range(140))
    inner.receive(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")
    assert caller.code is StreamCode.TOO_LARGE
    assert inner.transport.closing == "abortConnection"
    caller = inner.open()
    inner.sent()
    inner.receive(OK)
    assert caller.body == b"ok"


def test_a_silent_origin():
    inner = Inner(idle_timeout=5.0)
    caller = inner.open()
    inner.sent()
    inner.origins.turn(6)
    inner.run()
    assert caller.code is StreamCode.IDLE_TIMEOUT


def test_an_origin_is_not_to_blame_for_the_silence_of_a_suspended_tunnel():
    inner = Inner(idle_timeout=5.0, resume_window=30.0)
    caller = inner.open(method=b"PUT", complete=False)
    caller.stream.write(b"one")
    inner.run()
    assert b"one" in inner.sent()
    inner.pair.cut()
    inner.origins.turn(12)
    assert not inner.transport.closing
    inner.pair.reconnect()
    caller.stream.write(b"two")
    caller.stream.end()
    inner.run()
    assert b"two" in inner.sent()
    inner.origins.turn(6)
    inner.run()
    assert caller.code is StreamCode.IDLE_TIMEOUT, "now it is silent"


# ---------------------------------------------------------------------- ends


def test_a_reset_aborts_the_origins_request(inner):
    caller = inner.open()
    inner.sent()
    inner.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart")
    caller.stream.reset(StreamCode.CANCELLED)
    inner.run()
    assert inner.transport.closing == "abortConnection"


def test_a_reset_while_dialling_stops_it():
    inner = Inner(dial_at_once=False)
    caller = inner.open()
    caller.stream.reset(StreamCode.CANCELLED)
    inner.run()
    assert inner.origins.cancelled == 1


def test_a_lost_tunnel_aborts_everything():
    inner = Inner()
    for _ in range(3):
        inner.open()
    inner.pair.inner.closed("broken", False)
    assert [t.closing for t in inner.origins.transports] == ["abortConnection"] * 3


def test_an_early_answer_is_whole_and_the_rest_is_let_go(inner):
    caller = inner.open((b"Content-Length", b"1000000"), method=b"PUT", complete=False)
    caller.stream.write(b"x" * 1_000)
    inner.run()
    inner.sent()
    inner.receive(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
    assert (caller.head.status, caller.body, caller.trailers) == (413, b"long", [])
    assert inner.transport.closing == "abortConnection"
    # The upload goes on until the outer layer has understood.
    caller.stream.write(b"x" * 100_000)
    inner.run()
    caller.stream.reset(StreamCode.NO_ERROR)
    inner.run()
    assert inner.pair.inner.session.streams == {}


def test_no_credit_for_what_nobody_wants(inner):
    caller = inner.open((b"Content-Length", b"1000000"), method=b"PUT", complete=False)
    inner.sent()
    inner.receive(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    caller.stream.write(b"x" * 900_000)
    inner.run()
    assert caller.stream.queued == 900_000 - WINDOW


# ---------------------------------------------------------------------- flow control


def test_an_origin_that_does_not_read_gets_a_window_and_no_more(inner):
    size = 2_000_000
    caller = inner.open((b"Content-Length", b"%d" % size), method=b"PUT", complete=False)
    data = bytes(range(256)) * (size // 256)
    data += bytes(size - len(data))
    caller.stream.write(data)
    caller.stream.end()
    inner.run()
    buffered = len(inner.transport.buffered)
    assert WINDOW <= buffered <= WINDOW + 70_000 + 200
    received = b""
    while len(received) < size:
        inner.origins.turn(0.1)  # a reader that takes longer than the link gets no larger window
        piece = inner.sent()
        assert len(piece) <= WINDOW + 70_000 + 200
        received += piece
        if piece.startswith(b"PUT"):
            received = lines(received)[1]
        assert piece
    assert received == data
    inner.receive(OK)
    assert caller.body == b"ok"


def test_an_upload_waits_while_it_is_dialled():
    inner = Inner(dial_at_once=False)
    caller = inner.open(method=b"PUT", complete=False)
    caller.stream.write(b"x" * 1_000_000)
    caller.stream.end()
    inner.run()
    assert caller.stream.queued == 1_000_000 - WINDOW
    inner.origins.answer_dial()
    inner.run()
    received = b""
    while not received.endswith(b"\r\n0\r\n\r\n"):
        piece = inner.sent()
        assert piece
        received += piece
    assert received.count(b"x") >= 1_000_000


def test_a_caller_that_does_not_read_pauses_the_origin(inner):
    caller = inner.open(consume=False)
    inner.sent()
    size = 2_000_000
    inner.receive(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    sent = 0
    while inner.transport.reading:
        assert sent < WINDOW + 200_000
        inner.receive(b"x" * 50_000)
        sent += 50_000
    assert len(caller.body) == WINDOW
    inner.transport.decrypted(b"x" * 50_000)  # TLS had it already
    sent += 50_000
    # No timeout runs meanwhile: it is not the origin that is silent.
    inner.origins.turn(400)
    assert caller.code is None
    while sent < size:
        while not inner.transport.reading:
            before = len(caller.body)
            caller.take()
            inner.run()
            assert len(caller.body) > before
        piece = min(50_000, size - sent)
        inner.receive(b"x" * piece)
        sent += piece
    while caller.unconsumed:
        caller.take()
        inner.run()
    assert len(caller.body) == size
    assert caller.trailers == []
    # And the connection, read again, serves the next.
    assert inner.transport.reading
    caller = inner.open()
    inner.sent()
    inner.receive(OK)
    assert caller.body == b"ok"
    assert len(inner.origins.transports) == 1


def test_a_slow_caller_does_not_stop_another(inner):
    slow, quick = inner.open(consume=False), inner.open()
    for index in range(2):
        inner.sent(index)
        inner.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n", index)
    for _ in range(12):
        for index in range(2):
            if inner.origins.transports[index].reading:
                inner.receive(b"x" * 50_000, index)
    assert len(slow.body) == WINDOW
    assert len(quick.body) == 600_000
    assert quick.trailers == []
