"""Who performs a request: holding, asking another inner layer, passing one over."""

import pytest
from gatewaybench import Bench

from sockgw.outer.kept import MOST_PIECES, KeptBodies, KeptBody
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.windows import WINDOW

NO_WORK = (
    StreamCode.REFUSED,
    StreamCode.DNS_ERROR,
    StreamCode.CONNECTION_REFUSED,
    StreamCode.CONNECTION_TIMEOUT,
    StreamCode.UNREACHABLE,
    StreamCode.TLS_ERROR,
    StreamCode.NOT_ALLOWED,
    StreamCode.UNKNOWN_SERVICE,
)
PERHAPS_SOME_WORK = (
    StreamCode.NO_ERROR,
    StreamCode.CANCELLED,
    StreamCode.PROTOCOL_ERROR,
    StreamCode.FLOW_CONTROL_ERROR,
    StreamCode.INTERNAL_ERROR,
    StreamCode.ORIGIN_CLOSED,
    StreamCode.ORIGIN_MALFORMED,
    StreamCode.RESPONSE_TIMEOUT,
    StreamCode.IDLE_TIMEOUT,
    StreamCode.TOO_LARGE,
)
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
OTHERS = ("POST", "PATCH", "REPORT", "LOCK")


@pytest.fixture
def bench():
    return Bench(hold="5000")


@pytest.fixture
def inner(bench):
    return bench.inner()


@pytest.fixture
def client(bench):
    return bench.client()


def gone(bench, *names):
    """Inner layers were here until now."""
    for name in names or ("office",):
        bench.inner(name).lose()


def held(bench):
    return len(bench.gateway.dispatcher.held.relays)


def at_peace(bench):
    """Nothing is left of any request."""
    bench.run()
    dispatcher = bench.gateway.dispatcher
    assert not dispatcher.held.relays
    assert dispatcher.bodies.size == 0
    return True


# ---------------------------------------------------------------------- hold


def test_who_was_never_there_is_not_waited_for(bench, client):
    assert client.get().status == 502
    assert (bench.entry.tries, bench.entry.held) == (0, 0)


def test_who_has_just_started_waits_for_anybody():
    """Its inner layers are perhaps on their way from another process."""
    bench = Bench(hold="5000", uptime=4.0)
    client = bench.client().get()
    bench.inner().last.answer()
    bench.run()
    assert client.status == 200
    assert Bench(hold="5000", uptime=5.25).client().get().status == 502


def test_who_was_there_lately_is_waited_for(bench, client):
    gone(bench)
    client.get("/x", "a.example", "X-One: 1")
    assert held(bench) == 1
    bench.wait(3)
    assert client.written == b""
    inner = bench.inner()
    assert inner.last.head.target == b"/x"
    assert inner.last.values(b"x-one") == [b"1"]
    assert inner.last.complete
    inner.last.answer()
    bench.run()
    assert client.status == 200
    entry = bench.entry
    assert (entry.tries, entry.held, entry.duration) == (1, 3, 3)
    assert (entry.identifier, entry.outcome) == ("office", "")
    assert at_peace(bench)


def test_after_a_while_nobody_waits_any_more(bench, client):
    gone(bench)
    bench.wait(5)
    client.get()
    assert held(bench) == 1
    bench.wait(1)
    assert bench.client().get().status == 502
    assert client.written == b""


def test_the_hold_is_over(bench, client):
    gone(bench)
    client.get()
    bench.wait(4.75)
    assert client.written == b""
    bench.wait(0.75)
    assert client.status == 502
    assert client.values(b"proxy-status") == [b"sockgw; error=destination_unavailable"]
    entry = bench.entry
    assert (entry.tries, entry.identifier) == (0, "")
    assert 5 <= entry.held <= 5.5
    assert entry.outcome == "no inner layer for this target is connected"
    assert bench.gateway.failures[0].reason == entry.outcome
    assert bench.metrics._events["hold_expired"] == 1
    assert not client.closing
    assert at_peace(bench)
    bench.wait(1)
    assert bench.deadlines.watched <= {client.connection}


@pytest.mark.parametrize("hold", ["0", "1000"])
def test_it_is_as_long_as_it_was_set(hold):
    bench = Bench(hold=hold)
    gone(bench)
    client = bench.client().get()
    bench.wait(0.5)
    assert bool(client.written) is (hold == "0")
    bench.wait(1)
    assert client.status == 502


def test_a_target_may_have_its_own():
    targets = """targets:
      a.example: {hostname: x, hold: 20000}
      b.example: {hostname: x, hold: 0}
      c.example: {hostname: x}"""
    bench = Bench(hold="5000", targets=targets)
    gone(bench)
    a, b, c = (bench.client().get("/", f"{name}.example") for name in "abc")
    assert b.status == 502
    bench.wait(6)
    assert c.status == 502
    assert a.written == b""
    bench.wait(14.5)
    assert a.status == 502


def test_only_for_inner_layers_that_may_serve_the_target(bench, client):
    gone(bench, "office")
    assert client.get("/", "plant.example").status == 502
    gone(bench, "mill")
    other = bench.client().get("/", "plant.example")
    assert held(bench) == 1
    bench.inner("office")
    assert other.written == b""
    mill = bench.inner("mill")
    assert len(mill.streams) == 1


def test_first_come_first_served_and_only_as_many_as_fit(bench):
    gone(bench)
    clients = [bench.client().get(f"/{number}") for number in range(5)]
    inner = bench.inner(max_streams=2)
    assert [stream.head.target for stream in inner.streams] == [b"/0", b"/1"]
    assert held(bench) == 3
    for number in range(5):
        inner.streams[number].answer()
        bench.run()
        assert clients[number].status == 200
    assert [stream.head.target for stream in inner.streams] == [b"/%d" % n for n in range(5)]
    assert at_peace(bench)


def test_who_waits_for_another_inner_layer_stands_in_nobodys_way(bench):
    gone(bench, "office", "mill")
    first = bench.client().get("/", "plant.example")
    second = bench.client().get("/", "office.example")
    inner = bench.inner("office")
    assert len(inner.streams) == 1
    inner.last.answer()
    bench.run()
    assert (first.written, second.status) == (b"", 200)


def test_who_waits_behind_a_congested_carrier_is_served_when_it_flows():
    bench = Bench(limits={"max_header_size": 100_000}, hold="5000")
    gone(bench)
    clients = [bench.client() for _ in range(100)]
    for client in clients:
        client.connection.dataReceived(
            b"GET / HTTP/1.1\r\nHost: a.example\r\nX: %b\r\n\r\n" % (b"x" * 20_000)
        )
    bench.run()
    assert held(bench) == 100
    inner = bench.inner()
    assert 0 < len(inner.streams) < 100
    bench.wait(1)
    assert len(inner.streams) == 100
    assert held(bench) == 0


def test_full_is_not_gone(bench):
    inner = bench.inner(max_streams=1)
    bench.client().get()
    assert bench.client().get().status == 503
    gone(bench)
    assert bench.client().get().status == 503
    assert len(inner.streams) == 1


def test_the_hold_is_over_while_those_who_came_back_are_full(bench):
    gone(bench)
    first, second = bench.client().get(), bench.client().get()
    inner = bench.inner(max_streams=1)
    bench.wait(5.5)
    assert len(inner.streams) == 1
    assert second.status == 503
    assert second.values(b"retry-after") == [b"1"]
    assert first.written == b""


def test_an_inner_layer_that_leaves_is_waited_for(bench, inner, client):
    client.get()
    inner.tunnel.session.go_away(TunnelCode.NO_ERROR)
    bench.run()
    other = bench.client().get()
    assert held(bench) == 1
    successor = bench.inner()
    successor.last.answer()
    bench.run()
    assert other.status == 200
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_no_more_wait_than_may():
    bench = Bench(hold="5000", max_held="2")
    gone(bench)
    clients = [bench.client().get() for _ in range(3)]
    assert held(bench) == 2
    assert clients[2].status == 503
    assert clients[2].values(b"retry-after") == [b"1"]
    assert clients[2].body == b"too many requests wait for an inner layer\n"
    assert bench.entry.status == 503
    clients[0].leave()
    clients.append(bench.client().get())
    assert held(bench) == 2
    inner = bench.inner()
    assert len(inner.streams) == 2


def test_a_client_that_leaves_meanwhile(bench, client):
    gone(bench)
    client.get()
    bench.wait(2)
    client.leave()
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.held, entry.tries) == (499, "client left", 2, 0)
    assert at_peace(bench)
    assert bench.inner().streams == []


def test_a_client_that_leaves_meanwhile_within_its_body(bench, client):
    gone(bench)
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nhello")
    assert held(bench) == 1
    client.leave()
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.bytes_in) == (499, "client left", 5)
    assert at_peace(bench)
    assert bench.inner().streams == []


def test_a_body_that_turns_bad_meanwhile(bench, client):
    gone(bench)
    client.send(
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz"
    )
    assert client.status == 400
    assert bench.entry.status == 400
    assert at_peace(bench)
    assert bench.inner().streams == []


def test_a_body_that_is_there_arrives_whole(bench, client):
    gone(bench)
    client.get("/", "a.example", method="POST", body=b"hello")
    inner = bench.inner()
    assert inner.last.body == b"hello"
    assert inner.last.trailers == []
    inner.last.answer()
    bench.run()
    assert (client.status, bench.entry.bytes_in) == (200, 5)
    assert at_peace(bench)


@pytest.mark.parametrize("size", [200_000, WINDOW + 300_000])
def test_a_large_body_is_not_read_while_it_waits(bench, client, size):
    gone(bench)
    data = bytes(range(256)) * (size // 256)
    size = len(data)
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % size)
    sent = 0
    while client.send(data[sent : sent + 30_000]):
        sent += 30_000
    assert 65_536 < sent <= 65_536 + 30_000
    assert bench.gateway.dispatcher.bodies.size == sent
    inner = bench.inner()
    assert bench.gateway.dispatcher.bodies.size == 0, "too much for another try"
    while sent < size:
        assert client.send(data[sent : sent + 30_000])
        sent += 30_000
    assert inner.last.body == data
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_all_bodies_together_are_bounded():
    bench = Bench(hold="5000", max_kept_bodies="100000")
    gone(bench)
    clients = [bench.client() for _ in range(5)]
    for client in clients:
        start_upload(client, 60_000, "POST")
        for _ in range(3):
            client.send(bytes(20_000))
    assert bench.gateway.dispatcher.bodies.size <= 100_000 + 5 * 20_000
    assert [client.transport.reading for client in clients].count(False) >= 3
    inner = bench.inner()
    for client, incoming in zip(clients, inner.streams, strict=True):
        while incoming.trailers is None:
            assert client.send(bytes(20_000)), "it is not read on"
        assert incoming.body == bytes(60_000)
    for incoming in inner.streams:
        incoming.answer()
    bench.run()
    assert [client.status for client in clients] == [200] * 5
    assert at_peace(bench)


def test_time_in_hold_is_not_the_origins():
    bench = Bench(hold="5000", timeout="2000")
    gone(bench)
    client = bench.client().get()
    bench.wait(4)
    inner = bench.inner()
    bench.wait(1.75)
    assert client.written == b""
    bench.wait(1)
    assert client.status == 504
    assert inner.last.code is StreamCode.RESPONSE_TIMEOUT


def test_when_the_process_ends_nobody_is_left_waiting(bench, inner):
    asked = bench.client().get("/", "office.example")
    gone(bench, "mill")
    waiting = bench.client().get("/", "plant.example")
    bench.gateway.dispatcher.stop()
    assert waiting.status == 502
    inner.lose()
    assert asked.status == 502
    assert at_peace(bench)
    assert bench.client().get().status == 502


# ---------------------------------------------------------------------- suspended tunnels


def test_a_suspended_tunnel_is_waited_for_like_one_that_went(bench, client):
    inner = bench.inner(resume_window=30.0)
    inner.cut()
    assert client.get("/readyz", "127.0.0.1").status == 503
    client.take()
    client.get()
    assert held(bench) == 1
    bench.wait(2)
    inner.come_back()
    inner.last.answer()
    bench.run()
    assert client.status == 200
    assert bench.log.entries[-1].held == 2


def test_others_serve_while_one_is_suspended(bench, client):
    inner = bench.inner(resume_window=30.0)
    client.get()
    inner.last.answer()
    bench.run()
    client.take()
    other = bench.inner()
    inner.cut()
    client.get()
    other.last.answer()
    bench.run()
    assert client.status == 200


def test_the_origins_clock_stands_still_while_its_tunnel_is_suspended():
    bench = Bench(hold="5000", timeout="3000", idle_timeout="4000")
    inner = bench.inner(resume_window=30.0)
    waiting, reading = bench.client().get(), bench.client().get()
    inner.last.respond(200)
    bench.run()
    bench.wait(2)
    inner.cut()
    bench.wait(20)
    assert waiting.written == b""
    assert not reading.ended
    inner.come_back()
    bench.wait(0.75)
    assert waiting.written == b""
    bench.wait(1)
    assert waiting.status == 504
    assert not reading.ended
    bench.wait(1)
    assert reading.ended


def test_the_origins_clock_stood_still_also_if_the_tunnel_never_comes_back():
    bench = Bench(hold="5000", timeout="3000")
    asked = pair(bench, resume_window=20.0)
    client = bench.client().get()
    one, other = asked()
    bench.wait(2)
    one.cut()
    bench.wait(20)
    assert len(bench.registry) == 1
    bench.wait(0.75)
    assert client.written == b""
    other.last.answer()
    bench.run()
    assert client.status == 200
    assert bench.entry.held == 0


def test_a_client_that_leaves_a_suspended_tunnel(bench, client):
    inner = bench.inner(resume_window=30.0)
    client.get()
    inner.cut()
    client.leave()
    assert bench.entry.status == 499


# ---------------------------------------------------------------------- another inner layer


def pair(bench, **options):
    """Return a function that tells which of two inner layers has a request, and the other one."""
    inners = bench.inner(**options), bench.inner(**options)

    def asked():
        (one,) = [
            inner for inner in inners if inner.streams and inner.last.stream.id in live(inner)
        ]
        (other,) = [inner for inner in inners if inner is not one]
        return one, other

    def live(inner):
        return inner.tunnel.session.streams

    return asked


@pytest.mark.parametrize("code", NO_WORK)
@pytest.mark.parametrize("method", [*IDEMPOTENT, *OTHERS])
def test_where_no_work_was_done_another_one_is_asked(bench, client, code, method):
    asked = pair(bench)
    client.get("/x", "a.example", "X-One: 1", method=method, body=b"body")
    one, other = asked()
    one.last.stream.reset(code, "why")
    bench.run()
    assert other.last.head.target == b"/x"
    assert other.last.headers == one.last.headers
    assert other.last.body == b"body"
    assert other.last.trailers == []
    other.last.answer()
    bench.run()
    assert client.status == 200
    entry = bench.entry
    assert (entry.tries, entry.held, entry.outcome) == (2, 0, "")
    assert list(bench.gateway.failures) == []
    assert bench.metrics._events["retries"] == 1
    assert at_peace(bench)


@pytest.mark.parametrize("method", IDEMPOTENT)
@pytest.mark.parametrize("body", [None, b"body"])
def test_after_a_lost_tunnel_what_may_be_done_twice_is(bench, client, method, body):
    asked = pair(bench)
    client.get("/x", "a.example", method=method, body=body)
    one, other = asked()
    one.lose()
    assert other.last.head.method == method.encode()
    assert other.last.complete is (body is None)
    assert other.last.body == (body or b"")
    other.last.answer(b"")
    bench.run()
    assert client.status == 200
    assert (bench.entry.tries, bench.entry.outcome) == (2, "")
    assert at_peace(bench)


@pytest.mark.parametrize("method", OTHERS)
def test_after_a_lost_tunnel_nothing_else_is_done_twice(bench, client, method):
    asked = pair(bench)
    client.get("/x", "a.example", method=method)
    one, other = asked()
    one.lose()
    assert client.status == 502
    assert client.values(b"proxy-status") == [b"sockgw; error=connection_terminated"]
    assert other.streams == []
    assert (bench.entry.tries, bench.entry.outcome) == (1, "tunnel lost")
    assert at_peace(bench)


@pytest.mark.parametrize("code", PERHAPS_SOME_WORK)
def test_where_work_may_have_been_done_nobody_else_is_asked(bench, client, code):
    asked = pair(bench)
    client.get()
    one, other = asked()
    one.last.stream.reset(code)
    bench.run()
    assert client.status in (502, 504)
    assert other.streams == []
    assert bench.entry.tries == 1


@pytest.mark.parametrize("status", [100, 103, 200])
@pytest.mark.parametrize("code", [*NO_WORK, None])
def test_once_an_answer_has_begun_nobody_else_is_asked(bench, client, status, code):
    asked = pair(bench)
    client.get("/", "a.example", "Expect: 100-continue", "Content-Length: 4", method="PUT")
    one, other = asked()
    one.last.respond(status)
    bench.run()
    if code is None:
        one.lose()
    else:
        one.last.stream.reset(code)
    bench.run()
    assert other.streams == []
    if status == 200:
        assert client.ended
    else:
        assert b"HTTP/1.1 50" in client.written
    assert bench.entry.tries == 1
    assert at_peace(bench)


def test_an_interim_answer_that_the_client_does_not_get_is_one_too(bench, client):
    """Whoever says 100 has got something to an origin."""
    asked = pair(bench)
    client.get(method="PUT", body=b"body")
    one, other = asked()
    one.last.respond(100)
    bench.run()
    one.lose()
    assert client.status == 502
    assert other.streams == []


def test_each_is_asked_once(bench, client):
    inners = [bench.inner() for _ in range(2)]
    client.get()
    for _ in range(2):
        (stream,) = [
            inner.last
            for inner in inners
            if inner.streams
            and inner.last.code is None
            and inner.last.stream.id in inner.tunnel.session.streams
        ]
        stream.stream.reset(StreamCode.CONNECTION_REFUSED, "down")
        bench.run()
    assert [len(inner.streams) for inner in inners] == [1, 1]
    assert client.status == 502
    assert client.values(b"proxy-status") == [b"sockgw; error=connection_refused"]
    entry = bench.entry
    assert (entry.tries, entry.outcome) == (2, "connection refused")
    assert bench.gateway.failures[0].reason == "connection refused: down"


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_no_more_are_asked_than_may(tries):
    bench = Bench(max_tries=str(tries))
    inners = [bench.inner() for _ in range(5)]
    client = bench.client().get()
    for _ in range(tries):
        assert client.written == b""
        for inner in inners:
            for stream in list(inner.tunnel.session.streams.values()):
                stream.reset(StreamCode.REFUSED)
        bench.run()
    assert client.status == 503
    assert sum(len(inner.streams) for inner in inners) == tries
    assert bench.entry.tries == tries


def test_only_those_that_may_serve_the_target_are_asked(bench, client):
    office, mill = bench.inner("office"), bench.inner("mill")
    client.get("/", "plant.example")
    mill.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert client.status == 503
    assert office.streams == []


def test_the_connection_stays_with_the_one_that_served_it(bench, client):
    asked = pair(bench)
    client.get()
    one, other = asked()
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    other.last.answer()
    bench.run()
    for _ in range(3):
        client.take()
        client.get()
        other.last.answer()
        bench.run()
        assert client.status == 200
    assert len(one.streams) == 1


def test_a_lost_tunnel_with_nobody_else_there_is_waited_for(bench, inner, client):
    client.get()
    bench.wait(1)
    inner.lose()
    assert held(bench) == 1
    bench.wait(2)
    back = bench.inner()
    back.last.answer()
    bench.run()
    assert client.status == 200
    assert (bench.entry.tries, bench.entry.held) == (2, 2)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refusal_of_who_then_goes_is_waited_for(bench, inner, client, method):
    """As our own session refuses what had not left this process when the tunnel ended."""
    client.get(method=method)
    inner.outer.session.go_away(TunnelCode.NO_ERROR)
    inner.outer.leaving = True
    inner.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert held(bench) == 1
    bench.inner().last.answer()
    bench.run()
    assert client.status == 200


def test_a_lost_tunnel_and_nobody_comes_back(bench, inner, client):
    client.get()
    inner.lose()
    bench.wait(5.5)
    assert client.status == 502
    assert client.values(b"proxy-status") == [b"sockgw; error=connection_terminated"]
    entry = bench.entry
    assert (entry.tries, entry.identifier, entry.outcome) == (1, "office", "tunnel lost")
    assert 5 <= entry.held <= 5.5


def test_a_lost_post_is_not_waited_for(bench, inner, client):
    client.get(method="POST")
    inner.lose()
    assert client.status == 502
    assert bench.entry.held == 0


def test_the_time_for_an_answer_is_for_all_tries_together():
    bench = Bench(hold="5000", timeout="4000")
    inner = bench.inner()
    client = bench.client().get()
    bench.wait(3)
    inner.lose()
    bench.wait(3)
    back = bench.inner()
    bench.wait(0.75)
    assert client.written == b""
    bench.wait(1)
    assert client.status == 504
    assert back.last.code is StreamCode.RESPONSE_TIMEOUT


def test_a_client_that_leaves_the_second_one(bench, client):
    asked = pair(bench)
    client.get()
    one, other = asked()
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    client.leave()
    assert other.last.code is StreamCode.CANCELLED
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.tries) == (499, "client left", 2)
    assert at_peace(bench)


def test_pipelined_requests_each_go_elsewhere(bench, client):
    asked = pair(bench)
    client.send(
        b"GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.example\r\n\r\n"
    )
    one, other = asked()
    one.lose()
    other.last.answer()
    bench.run()
    other.last.answer()
    bench.run()
    assert client.written.count(b"HTTP/1.1 200 ") == 2
    assert [entry.tries for entry in bench.log.entries] == [2, 1]


# ---------------------------------------------------------------------- bodies


def start_upload(client, size, method="PUT"):
    head = f"{method} / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {size}\r\n\r\n"
    client.send(head.encode())


def test_a_body_goes_on_elsewhere_where_it_was(bench, client):
    asked = pair(bench)
    data = bytes(range(256)) * 200
    start_upload(client, len(data))
    client.send(data[:20_000])
    one, other = asked()
    assert one.last.body == data[:20_000]
    one.lose()
    assert other.last.body == data[:20_000]
    client.send(data[20_000:])
    assert other.last.body == data
    assert other.last.trailers == []
    other.last.answer()
    bench.run()
    assert (client.status, bench.entry.bytes_in) == (200, len(data))
    assert at_peace(bench)


def test_a_body_that_is_kept_no_more_goes_nowhere_else(bench, client):
    asked = pair(bench)
    start_upload(client, 70_000)
    client.send(bytes(40_000))
    client.send(bytes(25_536))
    assert bench.gateway.dispatcher.bodies.size == 65_536
    client.send(b"x")
    assert bench.gateway.dispatcher.bodies.size == 0
    one, other = asked()
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert client.status == 503
    assert other.streams == []
    assert bench.entry.tries == 1


@pytest.mark.parametrize(("option", "value"), [("kept_body", "0"), ("max_kept_bodies", "3")])
def test_how_much_is_kept_can_be_set(option, value):
    bench = Bench(**{option: value})
    asked = pair(bench)
    client = bench.client().get(method="PUT", body=b"body")
    one, other = asked()
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert client.status == 503
    # What has no body needs no keeping.
    again = bench.client().get()
    one, other = asked()
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    other.last.answer()
    bench.run()
    assert again.status == 200
    assert at_peace(bench)


def test_nothing_is_kept_once_the_answer_begins(bench, inner, client):
    start_upload(client, 100)
    client.send(b"x" * 50)
    assert bench.gateway.dispatcher.bodies.size == 50
    inner.last.respond(200)
    bench.run()
    assert bench.gateway.dispatcher.bodies.size == 0
    client.send(b"x" * 50)
    assert bench.gateway.dispatcher.bodies.size == 0
    assert inner.last.body == b"x" * 100


@pytest.mark.parametrize("together", [30_000, 130_000])
def test_a_client_that_was_paused_for_one_goes_on_for_another(together):
    bench = Bench(kept_body="1000000")
    inners = bench.inner(), bench.inner()
    for inner in inners:
        inner.consume = False
    client = bench.client()
    data = bytes(range(256)) * 2_400
    start_upload(client, len(data))
    sent = 0
    while client.send(data[sent : sent + together]):
        sent += together
    assert not client.transport.reading
    (one,) = [inner for inner in inners if inner.streams]
    (other,) = [inner for inner in inners if inner is not one]
    other.consume = True
    one.lose()
    assert client.transport.reading
    while sent < len(data):
        assert client.send(data[sent : sent + together])
        sent += together
    assert other.last.body == data
    assert other.last.trailers == []
    other.last.answer()
    bench.run()
    assert client.status == 200
    assert at_peace(bench)


def test_a_client_is_paused_by_who_does_not_take_what_another_one_took():
    bench = Bench(kept_body="1000000")
    inners = bench.inner(), bench.inner()
    client = bench.client()
    start_upload(client, 600_000)
    for _ in range(10):
        assert client.send(bytes(31_000))
    (one,) = [inner for inner in inners if inner.streams]
    (other,) = [inner for inner in inners if inner is not one]
    other.consume = False
    one.lose()
    assert len(other.last.body) == WINDOW
    assert not client.transport.reading
    other.last.consume = True
    other.last.take()
    bench.run()
    assert client.transport.reading


def test_a_fault_of_ours_on_the_way_to_another_one_leaves_nothing(bench, client, monkeypatch):
    asked = pair(bench)
    client.get(method="PUT", body=b"body")
    one, other = asked()

    def fail(body):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(KeptBody, "within", property(fail))
        one.last.stream.reset(StreamCode.REFUSED)
        bench.run()
    assert client.status == 502
    assert other.last.code is StreamCode.INTERNAL_ERROR
    assert bench.entry.outcome == "internal error"
    assert at_peace(bench)


@pytest.mark.parametrize("method", ["choose", "within"])
def test_a_fault_of_ours_after_the_wait_ends_one_request_only(bench, monkeypatch, method):
    gone(bench)
    bad = bench.client().get(method="PUT", body=b"body")
    good = bench.client().get()
    faults = []

    def fail(*arguments):
        monkeypatch.undo()
        faults.append(None)
        raise RuntimeError("a bug")

    if method == "choose":
        monkeypatch.setattr(bench.registry, method, fail)
    else:
        monkeypatch.setattr(KeptBody, method, property(fail))
    inner = bench.inner()
    assert faults
    inner.last.answer()
    bench.run()
    assert (bad.status, good.status) == (502, 200)
    assert at_peace(bench)


def test_a_client_that_was_paused_stays_so_while_it_waits():
    bench = Bench(kept_body="1000000", hold="5000")
    inner = bench.inner()
    inner.consume = False
    client = bench.client()
    start_upload(client, 600_000)
    while client.send(bytes(30_000)):
        pass
    inner.lose()
    assert held(bench) == 1
    assert not client.transport.reading
    back = bench.inner()
    while back.last.trailers is None:
        assert client.send(bytes(min(30_000, 600_000 - len(back.last.body))))
    assert back.last.body == bytes(600_000)


def test_an_empty_chunked_body(bench, client):
    asked = pair(bench)
    client.send(b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    one, other = asked()
    one.lose()
    assert not other.last.complete
    assert other.last.trailers == []
    other.last.answer()
    bench.run()
    assert client.status == 200


# ---------------------------------------------------------------------- passing over


def fail_until_ejected(bench, one):
    """Requests whose first try is ``one``'s fail there."""
    for _ in range(20):
        if one.member in bench.gateway.dispatcher.health.passed_over("a.example"):
            return
        client = bench.client().get()
        for inner in (one, *bench.inners):
            for stream in inner.streams:
                if stream.stream.id in inner.tunnel.session.streams:
                    if inner is one:
                        stream.stream.reset(StreamCode.CONNECTION_REFUSED)
                        bench.run()
                    else:
                        stream.answer()
        bench.run()
        assert client.status == 200
    raise AssertionError("it is not ejected")


def test_who_fails_where_others_do_not_is_passed_over_for_a_while(bench):
    one, other = bench.inner(), bench.inner()
    faithful = bench.client()
    while not one.streams:
        faithful = bench.client().get()
        (one if one.streams else other).last.answer()
        bench.run()
    faithful.take()
    fail_until_ejected(bench, one)
    assert bench.metrics._events["ejections"] == 1
    count = len(one.streams)
    for client in (faithful, *(bench.client() for _ in range(5))):
        client.get()
        other.last.answer()
        bench.run()
        assert client.status == 200
    assert len(one.streams) == count
    # Other targets are served by both.
    for _ in range(2):
        bench.client().get("/", "office.example")
    assert len(one.streams) == count + 1
    one.last.answer()
    other.last.answer()
    # Its time is over; with its first success it is as before.
    bench.wait(10.25)
    while len(one.streams) == count + 1:
        bench.client().get()
    one.last.answer()
    bench.run()
    assert not bench.gateway.dispatcher.health.failing


def test_who_is_passed_over_serves_where_there_is_nobody_else(bench):
    one, other = bench.inner(), bench.inner()
    fail_until_ejected(bench, one)
    other.lose()
    client = bench.client().get()
    one.last.answer()
    bench.run()
    assert client.status == 200


def test_new_targets_begin_anew(bench):
    one, _ = bench.inner(), bench.inner()
    fail_until_ejected(bench, one)
    bench.gateway.use(parse_targets("targets: {a.example: {hostname: other}}", "t"))
    assert not bench.gateway.dispatcher.health.failing


def test_who_goes_leaves_nothing(bench):
    one, _ = bench.inner(), bench.inner()
    fail_until_ejected(bench, one)
    one.lose()
    assert not bench.gateway.dispatcher.health.failing


def test_a_body_of_very_many_pieces_is_not_kept():
    """By its bytes it might be; but each piece is an object."""
    bodies = KeptBodies(65_536, 1 << 26)
    body = KeptBody(bodies)
    assert all(body.add(b"ab") for _ in range(MOST_PIECES))
    assert not body.add(b"ab")
    body.release()
    assert bodies.size == 0
