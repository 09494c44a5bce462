"""The gateway and its relays, between clients and inner layers that a test scripts."""

import json
import random
import re

import pytest
from gatewaybench import Bench
from twisted.logger import LogLevel, globalLogPublisher

from sockgw.outer.relay import Relay
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import FIN, MAX_MESSAGE, FrameType, encode
from sockgw.protocol.heads import ResponseHead
from sockgw.protocol.payloads import encode_goaway, encode_reset, encode_response, u64
from sockgw.protocol.windows import WINDOW


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def inner(bench):
    return bench.inner()


@pytest.fixture
def client(bench):
    return bench.client()


# ---------------------------------------------------------------------- routing


def test_a_request_reaches_the_inner_layer_and_its_answer_the_client(bench, inner, client):
    client.get("/path?query=1", "a.example", "X-One: 1")
    assert inner.last.head.method == b"GET"
    assert inner.last.head.target == b"/path?query=1"
    assert (inner.last.to.protocol, inner.last.to.hostname, inner.last.to.port) == (
        "http",
        "origin.internal",
        8080,
    )
    assert inner.last.complete
    inner.last.answer(b"hello", headers=[(b"X-Two", b"2")])
    bench.run()
    assert client.status == 200
    assert client.values(b"x-two") == [b"2"]
    assert client.body == b"hello"
    entry = bench.entry
    assert (entry.method, entry.target, entry.status) == (b"GET", b"/path?query=1", 200)
    assert (entry.bytes_in, entry.bytes_out, entry.outcome) == (0, 5, "")
    assert (entry.target_name, entry.identifier) == ("a.example", "office")
    assert entry.client == "192.0.2.7"
    assert entry.request_id == client.values(b"x-request-id")[0]


@pytest.mark.parametrize("host", ["A.Example", "a.example:3000", "a.example.", "a.EXAMPLE.:80"])
def test_hosts_compare_without_case_and_port(bench, inner, client, host):
    client.get("/", host)
    assert inner.last.to.port == 8080
    assert inner.last.values(b"x-forwarded-host") == [host.encode()]


@pytest.mark.parametrize(
    ("host", "to"),
    [
        ("secure.example", ("https", "origin.internal", 443, "")),
        ("v6.example", ("http", "fd00::7", 81, "")),
        ("service.example", ("", "", 0, "wiki")),
    ],
)
def test_each_target_leads_to_its_origin_or_service(bench, inner, client, host, to):
    client.get("/", host)
    last = inner.last.to
    assert (last.protocol, last.hostname, last.port, last.service) == to


def test_an_unknown_host_is_not_found(bench, inner, client):
    client.get("/", "b.example")
    assert client.status == 404
    assert client.values(b"proxy-status") == [b"sockgw; error=destination_not_found"]
    assert client.body == b"no target has this host name\n"
    assert inner.streams == []
    entry = bench.entry
    assert (entry.target_name, entry.identifier, entry.first_byte) == ("", "", None)
    assert entry.bytes_out == len(client.body)
    assert list(bench.gateway.failures) == []


SEALED = """
targets:
  a.example: {hostname: origin.internal}
  sealed.example: {hostname: origin.internal, protocol: tls}
  "*.sealed.example": {service: vault, protocol: tls}
"""


@pytest.mark.parametrize("host", ["sealed.example", "SEALED.example.:443", "x.sealed.example"])
@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_a_host_whose_tls_is_passed_through_has_no_http(bench, inner, client, host, path):
    bench.gateway.use(parse_targets(SEALED, "t"))
    client.get(path, host)
    assert client.status == 421
    assert client.values(b"proxy-status") == [b"sockgw; error=destination_not_found"]
    assert client.body == b"this host is reached by a TLS connection of its own\n"
    assert inner.streams == []
    assert bench.entry.target_name == ("*.sealed.example" if host[0] == "x" else "sealed.example")
    client.take()
    client.get("/", "a.example")
    inner.last.answer()


def test_such_a_host_is_redirected_to_https_as_others_are():
    bench = Bench(targets=SEALED, redirect_https="yes")
    client = bench.client().get("/x", "sealed.example")
    assert client.status == 301
    assert client.values(b"location") == [b"https://sealed.example/x"]


def test_one_connection_takes_the_place_of_another(inner):
    bench = Bench(max_connections="2")
    first, second = bench.client(), bench.client()
    assert bench.client().transport.aborted
    taken = []
    bench.gateway.succeeded(first.connection, lambda: taken.append(bench.client()))
    assert not taken[0].transport.aborted
    assert bench.gateway.connections == 2
    assert bench.client().transport.aborted
    second.leave()
    assert bench.gateway.connections == 1


def test_no_host_at_all_is_not_found(bench, inner, client):
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.status == 404
    assert bench.entry.protocol == "HTTP/1.0"


def test_targets_may_change_while_a_request_is_under_way(bench, inner, client):
    client.get()
    bench.gateway.use(parse_targets("targets: {b.example: {hostname: other}}", "t"))
    inner.last.answer(b"late")
    bench.run()
    assert client.body == b"late"
    client.take()
    assert client.get("/", "a.example").status == 404
    client.take()
    client.get("/", "b.example")
    assert inner.last.to.hostname == "other"


# ---------------------------------------------------------------------- policy


def test_policy_forbids(bench, inner, client):
    client.get("/secret", "strict.example")
    assert client.status == 403
    assert client.body == (
        b"Forbidden: GET https://origin.internal:443/secret is not allowed by policy.\n"
    )
    assert inner.streams == []
    assert bench.entry.target_name == "strict.example"


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/public", b"/public"),
        ("GET", "/a/../public?x=/../y", b"/public?x=/../y"),
        ("GET", "/%70ublic", b"/public"),
        ("DELETE", "//api//x", b"/api/x"),
    ],
)
def test_policy_judges_the_path_that_is_sent(bench, inner, client, method, path, sent):
    client.get(path, "strict.example", method=method)
    assert inner.last.head.target == sent


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/public", 403),
        ("GET", "/public/", 403),
        ("GET", "/api/../secret", 403),
        ("GET", "/api/%2e%2e/secret", 403),
        ("GET", "/api/..%2fsecret", 400),
        ("GET", "/api/%00", 400),
        ("GET", "/api/..;/secret", 400),
    ],
)
def test_no_way_around_the_policy(bench, inner, client, method, path, status):
    client.get(path, "strict.example", method=method)
    assert client.status == status
    assert inner.streams == []
    assert bench.entry.status == status


@pytest.mark.parametrize(("host", "passes"), [("strict.example", False), ("a.example", True)])
def test_no_header_names_another_method_than_the_policy_judged(bench, inner, host, passes):
    for name in ("X-HTTP-Method-Override", "x_http_method_override", "X-Method-Override"):
        bench.client().get("/public", host, f"{name}: DELETE", method="POST")
        assert (inner.last.values(name.encode()) == [b"DELETE"]) is passes


def test_without_a_policy_the_bytes_pass_untouched(bench, inner, client):
    client.get("//a/../b%2fc", "a.example")
    assert inner.last.head.target == b"//a/../b%2fc"


# ---------------------------------------------------------------------- inner layers


def test_without_an_inner_layer(bench, client):
    client.get()
    assert client.status == 502
    assert client.values(b"proxy-status") == [b"sockgw; error=destination_unavailable"]
    assert bench.entry.status == 502
    assert bench.gateway.failures[0].reason == bench.entry.outcome


def test_only_a_permitted_inner_layer_serves(bench, client):
    office, mill = bench.inner("office"), bench.inner("mill")
    client.get("/", "plant.example")
    assert office.streams == []
    assert len(mill.streams) == 1
    mill.lose()
    client = bench.client()
    client.get("/", "plant.example")
    assert client.status == 502
    assert office.streams == []


def test_at_the_limit_of_streams(bench, client):
    inner = bench.inner(max_streams=1)
    client.get()
    other = bench.client().get()
    assert other.status == 503
    assert other.values(b"retry-after") == [b"1"]
    assert bench.entry.status == 503
    inner.last.answer()
    bench.run()
    assert client.status == 200
    other.take()
    other.get()
    assert len(inner.streams) == 2


def test_refused_by_the_inner_layer(bench, inner, client):
    client.get()
    inner.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert client.status == 503
    assert client.values(b"retry-after") == [b"1"]


def test_an_inner_layer_that_leaves_gets_nothing_more(bench, inner, client):
    client.get()
    inner.tunnel.session.go_away(TunnelCode.NO_ERROR)
    bench.run()
    other = bench.client().get()
    assert other.status == 502
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_a_connection_stays_with_its_inner_layer(bench):
    inners = [bench.inner() for _ in range(3)]
    clients = [bench.client() for _ in range(3)]
    for number, client in enumerate(clients):
        for _ in range(3):
            client.get()
            inners[number].last.answer()
            bench.run()
            assert client.status == 200
    assert [len(inner.streams) for inner in inners] == [3, 3, 3]
    # And moves on when that one has gone.
    inners[0].lose()
    for client in clients:
        client.get()
    assert len(inners[1].streams) + len(inners[2].streams) == 9
    assert len(inners[0].streams) == 3


def test_what_stays_with_an_inner_layer_is_the_target_too(bench, client):
    bench.inner("office")
    mill = bench.inner("mill")
    office = bench.inners[0]
    for host, inner in (("office.example", office), ("plant.example", mill)) * 2:
        client.get("/", host)
        inner.last.answer()
        bench.run()
    assert len(office.streams) == len(mill.streams) == 2


def test_the_limit_of_connections():
    bench = Bench(max_connections="2")
    clients = [bench.client() for _ in range(2)]
    assert bench.gateway.connections == 2
    third = bench.client()
    assert third.transport.aborted
    clients[0].leave()
    assert bench.gateway.connections == 1
    assert not bench.client().transport.aborted


# ---------------------------------------------------------------------- health


@pytest.mark.parametrize("host", ["b.example", "127.0.0.1"])
def test_health_where_no_target_is(bench, client, host):
    assert client.get("/healthz", host).status == 200
    client.take()
    assert client.get("/readyz", host).status == 503
    client.take()
    bench.inner()
    assert client.get("/readyz", host).status == 200
    assert client.body == b"ok\n"
    client.take()
    assert client.get("/readyz", host, method="HEAD").body == b""
    assert [entry.status for entry in bench.log.entries] == [200, 503, 200, 200]
    assert not bench.gateway.failures


def test_health_is_the_targets_own_where_there_is_one(bench, inner, client):
    client.get("/healthz", "a.example")
    assert inner.last.head.target == b"/healthz"


# ---------------------------------------------------------------------- request headers


def test_what_ends_at_a_hop_or_is_ours_does_not_pass():
    bench = Bench(limits={"max_header_count": 100})
    inner, client = bench.inner(), bench.client()
    client.get(
        "/",
        "a.example",
        "Connection: close, X-Hop",
        "X-Hop: 1",
        "x-hop: 2",
        "Keep-Alive: 5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "TE: gzip",
        "Proxy: http://evil.example/",
        "X-Forwarded-For: 6.6.6.6",
        "X_Forwarded_For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Anything: x",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "X-Request-ID: mine",
        "Content_Length: 7",
        "Accept: a",
        "accept: b",
        "Authorization: Basic eDp5",
        "Cookie: a=b",
    )
    assert inner.last.headers[:4] == [
        (b"Accept", b"a"),
        (b"accept", b"b"),
        (b"Authorization", b"Basic eDp5"),
        (b"Cookie", b"a=b"),
    ]
    ours = dict(inner.last.headers[4:])
    request_id = ours.pop(b"X-Request-ID")
    assert re.fullmatch(rb"[0-9a-f]{20}", request_id)
    assert ours == {
        b"X-Forwarded-For": b"192.0.2.7",
        b"X-Forwarded-Port": b"80",
        b"X-Forwarded-Proto": b"http",
        b"X-Real-IP": b"192.0.2.7",
        b"X-Forwarded-Host": b"a.example",
        b"Forwarded": b"for=192.0.2.7;proto=http;host=a.example",
    }


def test_what_a_trusted_proxy_says_passes():
    bench = Bench(trust_proxy="192.0.2.0/24")
    inner = bench.inner()
    bench.client().get(
        "/",
        "internal.example",
        "X-Forwarded-Host: secure.example",
        "X-Forwarded-For: 198.51.100.9",
        "X-Forwarded-Proto: https",
        "X-Request-ID: from-the-proxy",
    )
    assert inner.last.to.protocol == "https"
    assert inner.last.values(b"x-forwarded-for") == [b"198.51.100.9, 192.0.2.7"]
    assert inner.last.values(b"x-real-ip") == [b"198.51.100.9"]
    assert inner.last.values(b"x-forwarded-host") == [b"secure.example"]
    assert inner.last.values(b"x-request-id") == [b"from-the-proxy"]
    inner.last.answer()
    bench.run()
    assert bench.entry.client == "198.51.100.9"
    assert bench.entry.request_id == b"from-the-proxy"


def test_a_bad_request_id_of_a_trusted_proxy_is_replaced():
    bench = Bench(trust_proxy="192.0.2.0/24")
    inner = bench.inner()
    bench.client().get("/", "a.example", 'X-Request-ID: "quoted" and long')
    assert re.fullmatch(rb"[0-9a-f]{20}", inner.last.values(b"x-request-id")[0])


def test_request_ids_differ(bench, inner, client):
    client.get()
    bench.client().get()
    one, other = inner.streams
    assert one.values(b"x-request-id") != other.values(b"x-request-id")


def test_the_host_is_the_origins_own_unless_kept(bench, inner, client):
    client.get("/", "a.example")
    assert inner.last.values(b"host") == []
    other = bench.client()
    other.get("/", "kept.example:8443")
    assert inner.last.values(b"host") == [b"kept.example:8443"]


def test_a_host_that_nobody_named_is_not_kept():
    bench = Bench(targets="targets: {'*': {hostname: o, preserve-host: true}}")
    inner = bench.inner()
    bench.client().send(b"GET / HTTP/1.0\r\n\r\n")
    assert inner.last.values(b"host") == []


def test_a_head_that_no_frame_holds_is_refused():
    bench = Bench(limits={"max_header_size": 1_000_000, "max_header_count": 2_000})
    inner = bench.inner()
    client = bench.client()
    client.get("/", "a.example", *[f"X-{n}: {'x' * 1000}" for n in range(140)])
    assert client.status == 400
    assert inner.streams == []
    assert bench.entry.status == 400
    # The tunnel goes on.
    other = bench.client().get()
    inner.last.answer()
    bench.run()
    assert other.status == 200


def test_many_large_heads_of_one_turn_all_arrive():
    bench = Bench(limits={"max_header_size": 100_000})
    inner = bench.inner()
    clients = [bench.client() for _ in range(15)]
    for client in clients:
        head = f"GET / HTTP/1.1\r\nHost: a.example\r\nX: {'x' * 60_000}\r\n\r\n".encode()
        client.connection.dataReceived(head)
    sizes = []
    send = inner.outer_carrier.send
    inner.outer_carrier.send = lambda message: (sizes.append(len(message)), send(message))
    bench.run()
    assert len(inner.streams) == 15
    assert max(sizes) <= MAX_MESSAGE
    for incoming in inner.streams:
        incoming.answer()
    bench.run()
    assert [client.status for client in clients] == [200] * 15


# ---------------------------------------------------------------------- response headers


def test_a_response_loses_what_ends_at_a_hop_and_gets_our_request_id(bench, inner, client):
    client.get()
    inner.last.respond(
        200,
        [
            (b"Server", b"origin"),
            (b"Connection", b"close, X-Hop"),
            (b"X-Hop", b"1"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Upgrade", b"h2c"),
            (b"Proxy-Authenticate", b"Basic"),
            (b"X-Request-ID", b"the origin's"),
            (b"x-request-id", b"again"),
            (b"Content-Length", b"2"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
        ],
        reason=b"Fine",
    )
    inner.last.stream.write(b"ok")
    inner.last.stream.end()
    bench.run()
    status, headers = client.head
    assert status == 200
    assert client.line == b"HTTP/1.1 200 Fine"
    names = sorted(name for name, _ in headers)
    assert names == [
        b"content-length",
        b"date",
        b"server",
        b"set-cookie",
        b"set-cookie",
        b"x-request-id",
    ]
    assert client.values(b"x-request-id") == inner.last.values(b"x-request-id")
    assert not client.closing


def test_the_origins_name_is_rewritten_to_the_public_one(bench, inner, client):
    client.get("/", "a.example:3000")
    inner.last.respond(
        302,
        [
            (b"Location", b"http://origin.internal:8080/next"),
            (b"Content-Location", b"//origin.internal:8080/x"),
            (b"Link", b"<http://origin.internal:8080/y>; rel=next"),
            (b"Refresh", b"5; url=http://origin.internal:8080/z"),
            (b"Set-Cookie", b"a=b; Domain=origin.internal; Path=/"),
            (b"X-Other", b"http://origin.internal:8080/"),
        ],
        end=True,
    )
    bench.run()
    assert client.values(b"location") == [b"http://a.example:3000/next"]
    assert client.values(b"content-location") == [b"//a.example:3000/x"]
    assert client.values(b"link") == [b"<http://a.example:3000/y>; rel=next"]
    assert client.values(b"refresh") == [b"5; url=http://a.example:3000/z"]
    assert client.values(b"set-cookie") == [b"a=b; Domain=a.example; Path=/"]
    assert client.values(b"x-other") == [b"http://origin.internal:8080/"]


def test_only_a_services_origin_is_the_inner_layers_to_tell(bench, inner, client):
    location = [(b"Location", b"https://wiki.internal/page"), (b"Content-Length", b"0")]
    for host, expected in (
        ("service.example", b"http://service.example/page"),
        ("a.example", b"https://wiki.internal/page"),
    ):
        client.get("/", host)
        inner.last.respond(302, location, end=True, origin=("https", "wiki.internal", 443))
        bench.run()
        assert client.values(b"location") == [expected]
        client.take()
    client.get("/", "service.example")
    inner.last.respond(302, location, end=True)
    bench.run()
    assert client.values(b"location") == [b"https://wiki.internal/page"]


def test_an_inner_layer_may_name_any_number_of_origins(bench, inner, client):
    for number in range(600):
        client.get("/", "service.example")
        name = f"o{number}.internal"
        location = f"http://{name}/x".encode()
        inner.last.respond(
            302,
            [(b"Location", location), (b"Content-Length", b"0")],
            end=True,
            origin=("http", name, 80),
        )
        bench.run()
        assert client.values(b"location") == [b"http://service.example/x"]
        client.take()
    assert len(bench.gateway._service_rewriters) <= 256


@pytest.mark.parametrize("origin", ["", "ü.example", "a" * 1_000, "[::1]", "a\r\nb", "(", "%"])
def test_odd_origins_of_services_do_no_harm(bench, inner, client, origin):
    client.get("/", "service.example")
    inner.last.respond(302, [(b"Location", b"http://x/")], origin=("http", origin, 80))
    bench.run()
    if origin:
        assert client.values(b"location") == [b"http://x/"]
    else:
        assert client.status == 502  # not a host name: the stream is in error


def test_content_security_policies_go_if_so_configured():
    field = [(b"Content-Security-Policy", b"default-src 'none'"), (b"Content-Length", b"0")]
    for flag, kept in (("no", 1), ("yes", 0)):
        bench = Bench(remove_csps=flag)
        inner, client = bench.inner(), bench.client()
        client.get()
        inner.last.respond(200, field, end=True)
        bench.run()
        assert len(client.values(b"content-security-policy")) == kept


# ---------------------------------------------------------------------- refusals


def test_refusals_are_json_for_who_accepts_that(bench, client):
    client.get("/", "b.example", "Accept: application/json")
    problem = json.loads(client.body)
    assert problem["status"] == 404
    assert problem["request_id"].encode() == client.values(b"x-request-id")[0]
    assert client.values(b"content-type") == [b"application/problem+json"]


def test_a_refusal_of_the_server_is_logged_with_what_is_known(bench, inner, client):
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\nUser-Agent: odd\r\n\r\n")
    assert client.status == 400
    entry = bench.entry
    assert (entry.status, entry.target, entry.user_agent) == (400, b"/x", b"odd")
    assert client.values(b"x-request-id") == [entry.request_id]


def test_a_refusal_before_any_head(bench, client):
    client.send(b"\x16\x03\x01 junk\r\n\r\n")
    assert client.status == 400
    assert (bench.entry.method, bench.entry.target) == (b"-", b"-")


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 256], ids=["longer than any name", "the longest name"]
)
def test_long_header_names_are_refused_or_pass(bench, inner, client, name):
    client.get("/", "a.example", f"{name}: value")
    if inner.streams:
        inner.last.answer()
        bench.run()
    assert client.status in (200, 400, 431)
    assert bench.entry.status == client.status


@pytest.mark.parametrize("host", ["b.example", "a.example"])
def test_long_header_names_are_no_trouble_for_refusals(bench, client, host):
    client.get("/", host, f"{'x' * 300}: value", "Accept: application/json")
    assert client.status in (400, 404, 431, 502)
    assert len(bench.log.entries) == 1


# ---------------------------------------------------------------------- bodies


def test_a_body_goes_up_and_comes_down(bench, inner, client):
    client.get("/", "a.example", method="POST", body=b"up" * 1000)
    assert inner.last.body == b"up" * 1000
    assert inner.last.trailers == []
    assert not inner.last.complete
    assert inner.last.values(b"content-length") == [b"2000"]
    inner.last.respond(201)
    inner.last.stream.write(b"down")
    inner.last.stream.end()
    bench.run()
    assert client.status == 201
    assert client.body == b"4\r\ndown\r\n0\r\n\r\n"
    assert (bench.entry.bytes_in, bench.entry.bytes_out) == (2000, 4)


def test_trailers_pass_both_ways(bench, inner, client):
    client.send(
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n"
        b"Trailer: X-Sum\r\n\r\n1\r\na\r\n0\r\n"
        b"X-Sum: 1\r\nX-Forwarded-For: 6.6.6.6\r\nHost: b\r\n\r\n"
    )
    assert inner.last.trailers == [(b"X-Sum", b"1")]
    assert inner.last.values(b"trailer") == [b"X-Sum"]
    inner.last.respond(200)
    inner.last.stream.write(b"down")
    inner.last.stream.end([(b"X-Sum", b"2"), (b"Set-Cookie", b"a=b")])
    bench.run()
    assert client.body == b"4\r\ndown\r\n0\r\nX-Sum: 2\r\n\r\n"
    assert bench.entry.outcome == ""


def test_trailers_that_cannot_be_written_do_not_spoil_the_answer(bench, inner, client):
    client.get()
    inner.last.respond(200)
    inner.last.stream.end([(b"X Sum", b"2")])
    bench.run()
    assert client.body == b"0\r\n\r\n"


def test_request_trailers_are_kept_for_another_inner_layer(bench):
    first, second = bench.inner(), bench.inner()
    client = bench.client()
    client.send(
        b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    one, other = (first, second) if first.streams else (second, first)
    one.last.stream.reset(StreamCode.REFUSED)
    bench.run()
    assert other.last.trailers == [(b"X-Sum", b"1")]


# ---------------------------------------------------------------------- upgrades


def ask(client, host="a.example", path="/chat", early=b""):
    client.send(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nSec-WebSocket-Key: k\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n".encode()
        + early
    )


def switch(bench, inner, upgrade=b"websocket"):
    inner.last.respond(101, [(b"Sec-WebSocket-Accept", b"a")], upgrade=upgrade)
    bench.run()


def test_an_upgrade_and_both_ends(bench, inner, client):
    ask(client, early=b"early")
    assert inner.last.head.upgrade == b"websocket"
    assert inner.last.values(b"sec-websocket-key") == [b"k"]
    assert inner.last.values(b"upgrade") == []
    assert not inner.last.complete
    assert inner.last.body == b""  # not before the 101
    switch(bench, inner)
    assert client.status == 101
    assert client.values(b"upgrade") == [b"websocket"]
    assert client.values(b"sec-websocket-accept") == [b"a"]
    assert inner.last.body == b"early"
    client.send(b"up")
    inner.last.stream.write(b"down")
    bench.run()
    assert inner.last.body == b"earlyup"
    assert client.body == b"down"
    bench.wait(100_000)
    assert bench.log.entries == []  # silence is no fault
    client.transport.half_close_by_peer()
    bench.run()
    assert inner.last.trailers == []
    inner.last.stream.write(b"last")
    inner.last.stream.end()
    bench.run()
    assert client.body == b"downlast"
    assert client.ended
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.bytes_in, entry.bytes_out) == (101, "", 7, 8)


def test_the_origin_of_an_upgrade_ends_first(bench, inner, client):
    ask(client)
    switch(bench, inner)
    inner.last.stream.end()
    bench.run()
    assert client.transport.write_closed
    client.send(b"last")
    assert inner.last.body == b"last"
    assert bench.log.entries == []
    client.transport.half_close_by_peer()
    bench.run()
    assert inner.last.trailers == []
    assert bench.entry.outcome == ""
    assert client.ended


def test_a_refused_upgrade_and_the_next_request(bench, inner, client):
    ask(client, early=b"GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
    (first,) = inner.streams
    first.answer(b"no", 403)
    bench.run()
    assert first.trailers == []  # what it may be waiting for
    assert first.stream.closed
    assert inner.last.head.target == b"/next"
    inner.last.answer(b"yes")
    bench.run()
    assert client.body.endswith(b"yes")
    assert [entry.status for entry in bench.log.entries] == [403, 200]


def test_a_policy_judges_an_upgrade(bench, inner, client):
    ask(client, "strict.example", "/private")
    assert client.status == 403
    assert inner.streams == []


@pytest.mark.parametrize("upgrade", [b"", b"h2c", b"websocket, x"])
def test_no_other_protocol_than_was_asked_for(bench, inner, client, upgrade):
    ask(client)
    switch(bench, inner, upgrade)
    assert client.status == 502
    assert inner.last.code is StreamCode.ORIGIN_MALFORMED


def test_a_101_that_nobody_asked_for(bench, inner, client):
    client.get()
    switch(bench, inner)
    assert client.status == 502
    assert inner.last.code is StreamCode.ORIGIN_MALFORMED


def test_an_upgrade_is_asked_for_again_elsewhere(bench):
    first, second = bench.inner(), bench.inner()
    client = bench.client()
    ask(client, early=b"early")
    one, other = (first, second) if first.streams else (second, first)
    one.last.stream.reset(StreamCode.CONNECTION_REFUSED)
    bench.run()
    switch(bench, other)
    assert other.last.body == b"early"


def test_a_client_that_closes_an_upgraded_connection(bench, inner, client):
    ask(client)
    switch(bench, inner)
    client.connection.dataReceived(b"bye")
    client.leave()
    assert inner.last.body == b"bye"
    assert inner.last.trailers == []
    assert inner.last.code is None
    inner.last.stream.write(b"still there?")
    bench.run()
    assert inner.last.code is StreamCode.CANCELLED
    assert bench.entry.outcome == "client left"


def test_an_origin_that_does_not_notice_that_its_client_has_closed(bench, inner, client):
    ask(client)
    switch(bench, inner)
    client.leave()
    assert bench.log.entries == []
    bench.wait(301)
    assert inner.last.code is StreamCode.IDLE_TIMEOUT
    assert len(bench.log.entries) == 1


def test_a_lost_tunnel_breaks_an_upgraded_connection(bench, inner, client):
    ask(client)
    switch(bench, inner)
    inner.lose()
    bench.run()
    assert client.transport.aborted


def test_a_body_goes_up_as_it_comes(bench, inner, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not inner.last.complete
    client.send(b"3\r\nabc\r\n")
    assert inner.last.body == b"abc"
    client.send(b"2\r\nde\r\n0\r\n\r\n")
    assert inner.last.body == b"abcde"
    assert inner.last.trailers == []
    assert inner.last.values(b"transfer-encoding") == []


@pytest.mark.parametrize(
    ("method", "status", "headers"),
    [
        ("HEAD", 200, [(b"Content-Length", b"1000")]),
        ("GET", 204, []),
        ("GET", 304, [(b"ETag", b'"x"')]),
    ],
)
def test_answers_without_a_body(bench, inner, client, method, status, headers):
    client.get("/", "a.example", method=method)
    inner.last.respond(status, headers, end=True)
    bench.run()
    assert client.status == status
    assert client.body == b""
    for name, value in headers:
        assert client.values(name) == [value]
    assert not client.closing
    assert bench.entry.outcome == ""


def test_requests_follow_each_other_on_a_connection(bench, inner, client):
    one = b"GET /%d HTTP/1.1\r\nHost: a.example\r\n\r\n"
    client.send(b"".join(one % n for n in range(5)))
    for number in range(5):
        # In order, one at a time.
        assert len(inner.streams) == number + 1
        assert inner.last.head.target == b"/%d" % number
        inner.last.answer(b"%d" % number)
        bench.run()
    assert [body[-1:] for body in client.written.split(b"HTTP/1.1 200")[1:]] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]
    assert [entry.target for entry in bench.log.entries] == [b"/%d" % n for n in range(5)]
    assert bench.counts == {("a.example", 200): 5}


# ---------------------------------------------------------------------- interim responses


def test_interim_responses_pass_if_the_client_may_get_them(bench, inner, client):
    client.get("/", "a.example", "Expect: 100-continue", method="POST", body=b"")
    inner.last.respond(103, [(b"Link", b"</x>"), (b"Connection", b"x"), (b"X-Request-ID", b"y")])
    inner.last.answer()
    bench.run()
    assert client.written.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n")
    assert b"\r\n\r\nHTTP/1.1 200 " in client.written


def test_100_only_for_who_expects_it(bench, inner):
    for expects in (True, False):
        client = bench.client()
        expect = b"Expect: 100-continue\r\n" if expects else b""
        client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\n%bContent-Length: 3\r\n\r\n" % expect)
        assert client.written == b""
        inner.last.respond(100)
        bench.run()
        assert client.written == (b"HTTP/1.1 100 Continue\r\n\r\n" if expects else b"")
        client.take()
        client.send(b"abc")
        inner.last.answer()
        bench.run()
        assert client.status == 200


def test_http_1_0_gets_no_interim_responses(bench, inner, client):
    client.send(b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n")
    inner.last.respond(103, [(b"Link", b"</x>")])
    inner.last.answer()
    bench.run()
    assert client.written.count(b"HTTP/1.1 ") == 1
    assert client.status == 200


def test_endless_interim_responses_are_an_error(bench, inner):
    client = bench.client(flushing=False)
    client.get()
    for _ in range(100):
        if inner.last.code is None:
            inner.last.respond(103, [(b"X", b"x" * 100_000)])
            bench.run()
    assert len(client.written) < 3_000_000
    assert inner.last.code is StreamCode.ORIGIN_MALFORMED
    assert bench.entry.status == 502


# ---------------------------------------------------------------------- ends


def test_an_early_answer_resets_the_upload_without_blame(bench, inner, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\npart")
    inner.last.answer(b"no thanks", 413)
    bench.run()
    assert client.status == 413
    assert client.body == b"no thanks"
    assert inner.last.code is StreamCode.NO_ERROR
    assert client.closing
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.bytes_in) == (413, "", 4)
    assert inner.outer.session.streams == inner.tunnel.session.streams == {}


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (StreamCode.DNS_ERROR, 502, b"dns_error"),
        (StreamCode.CONNECTION_REFUSED, 502, b"connection_refused"),
        (StreamCode.CONNECTION_TIMEOUT, 504, b"connection_timeout"),
        (StreamCode.NOT_ALLOWED, 502, b"destination_ip_prohibited"),
        (StreamCode.ORIGIN_CLOSED, 502, b"http_response_incomplete"),
        (StreamCode.NO_ERROR, 502, b"proxy_internal_error"),
        (StreamCode.CANCELLED, 502, b"proxy_internal_error"),
    ],
)
def test_a_reset_before_the_head_is_a_whole_answer(bench, inner, client, code, status, error):
    client.get()
    inner.last.stream.reset(code, "10.0.0.1:8080 says no")
    bench.run()
    assert client.status == status
    assert client.values(b"proxy-status") == [b"sockgw; error=" + error]
    assert b"10.0.0.1" not in client.written
    assert not client.closing
    entry = bench.entry
    assert entry.outcome == code.name.lower().replace("_", " ")
    failure = bench.gateway.failures[0]
    assert failure.reason == f"{entry.outcome}: 10.0.0.1:8080 says no"
    assert failure.request_id.encode() == entry.request_id
    assert (failure.status, failure.target, failure.identifier) == (status, "a.example", "office")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_reset_after_the_head_never_looks_complete(bench, inner, client, framing):
    version = b"1.0" if framing == "close" else b"1.1"
    client.send(b"GET / HTTP/%b\r\nHost: a.example\r\n\r\n" % version)
    inner.last.respond(200, [(b"Content-Length", b"100")] if framing == "length" else [])
    inner.last.stream.write(b"part")
    bench.run()
    inner.last.stream.reset(StreamCode.ORIGIN_CLOSED, "mid-body")
    bench.run()
    assert client.status == 200
    assert b"part" in client.body
    assert b"0\r\n\r\n" not in client.body
    assert client.ended
    if framing == "close":
        assert client.transport.aborted
    entry = bench.entry
    assert (entry.status, entry.bytes_out, entry.outcome) == (200, 4, "origin closed")


def test_a_lost_tunnel(bench, inner):
    waiting, reading = bench.client().get(), bench.client().get()
    inner.last.respond(200)
    inner.last.stream.write(b"part")
    bench.run()
    inner.lose()
    assert waiting.status == 502
    assert waiting.values(b"proxy-status") == [b"sockgw; error=connection_terminated"]
    assert reading.ended
    assert sorted((entry.status, entry.outcome) for entry in bench.log.entries) == [
        (200, "tunnel lost"),
        (502, "tunnel lost"),
    ]
    assert sum(bench.counts.values()) == 2


def test_a_lost_tunnel_while_requests_are_pipelined(bench, inner, client):
    """The answer to the first lets the second begin, within the end of the tunnel."""
    client.send(b"GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n" * 2)
    inner.lose()
    assert client.written.count(b"HTTP/1.1 502 ") == 2
    assert len(bench.log.entries) == 2


@pytest.mark.parametrize(("length", "body"), [(b"10", b"short"), (b"3", b"too long")])
def test_an_answer_of_another_length_than_it_says_is_broken(bench, inner, client, length, body):
    client.get()
    inner.last.respond(200, [(b"Content-Length", length)])
    inner.last.stream.write(body)
    inner.last.stream.end()
    bench.run()
    assert client.ended
    assert len(client.body) < len(body) or length == b"10"
    assert not client.body.startswith(b"too")
    entry = bench.entry
    assert entry.outcome == "the answer is not as long as it said"


def test_a_client_that_leaves_while_it_waits(bench, inner, client):
    client.get()
    client.leave()
    assert inner.last.code is StreamCode.CANCELLED
    entry = bench.entry
    assert (entry.status, entry.outcome, entry.first_byte) == (499, "client left", None)
    assert list(bench.gateway.failures) == []
    assert inner.outer.session.streams == inner.tunnel.session.streams == {}


def test_a_client_that_leaves_within_the_answer(bench, inner, client):
    client.get()
    inner.last.respond(200)
    inner.last.stream.write(b"part")
    bench.run()
    client.leave()
    assert inner.last.code is StreamCode.CANCELLED
    assert (bench.entry.status, bench.entry.outcome) == (200, "client left")


def test_a_client_that_leaves_within_its_upload(bench, inner, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\npart")
    client.leave()
    assert inner.last.code is StreamCode.CANCELLED
    assert (bench.entry.status, bench.entry.bytes_in) == (499, 4)


def test_a_bad_body_is_one_request_with_one_entry(bench, inner, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"junk\r\n")
    assert client.status == 400
    assert inner.last.code is StreamCode.CANCELLED
    assert bench.entry.status == 400
    assert bench.entry.request_id == client.values(b"x-request-id")[0]


def test_a_body_that_does_not_come_is_one_request_with_one_entry():
    bench = Bench(limits={"idle_timeout": 5.0})
    inner, client = bench.inner(), bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\npart")
    bench.wait(6)
    assert client.status == 408
    assert inner.last.code is StreamCode.CANCELLED
    assert bench.entry.status == 408


def test_all_the_same_if_the_answer_had_begun(bench, inner, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
    inner.last.respond(200)
    bench.run()
    client.send(b"junk\r\n")
    assert client.ended
    assert bench.entry.status == 200


# ---------------------------------------------------------------------- hostile inner layers


def head(number, status=200, reason=b"", headers=(), flags=0):
    payload = encode_response(ResponseHead(status, reason, list(headers)))
    return encode(FrameType.HEAD, flags, number, payload)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"X: y\r\nSet-Cookie", b"a=b")],
        [(b"X Y", b"")],
        [(b"", b"")],
        [(b"X:", b"")],
        [(b"\xff", b"")],
        [(b"x" * 300, b"")],
        [(b"X", b"a\r\nSet-Cookie: a=b")],
        [(b"X", b"a\nb")],
        [(b"X", b"a\rb")],
        [(b"X", b"a\0b")],
        [(b"Connection", b"x"), (b"X Y", b"")],
        [(b"Location", b"http://origin.internal:8080/\r\nX: y")],
    ],
)
@pytest.mark.parametrize("status", [200, 103])
def test_a_bad_header_is_never_written(bench, inner, client, headers, status):
    client.get()
    inner.inject(head(inner.last.stream.id, status, b"", headers))
    assert client.status == 502
    assert b"Set-Cookie" not in client.written
    assert inner.last.code is StreamCode.ORIGIN_MALFORMED
    assert bench.entry.status == 502
    # Nothing else is disturbed.
    client.take()
    client.get()
    inner.last.answer()
    bench.run()
    assert client.status == 200


@pytest.mark.parametrize("reason", [b"OK\r\nSet-Cookie: a=b", b"a\nb", b"a\0b"])
def test_a_bad_reason_is_never_written(bench, inner, client, reason):
    client.get()
    inner.inject(head(inner.last.stream.id, 200, reason))
    assert client.status == 502
    assert b"Set-Cookie" not in client.written
    assert bench.entry.status == 502


@pytest.mark.parametrize("status", [0, 99, 600, 999, 1000, -1])
def test_a_status_out_of_range_is_an_error_of_the_stream(bench, inner, client, status):
    client.get()
    inner.inject(head(inner.last.stream.id, status))
    assert client.status == 502
    assert inner.last.code is StreamCode.PROTOCOL_ERROR
    assert bench.entry.status == 502
    assert inner.outer.available


def test_framing_is_not_the_inner_layers_to_choose(bench, inner, client):
    client.get()
    inner.inject(
        head(
            inner.last.stream.id,
            200,
            b"",
            [
                (b"Transfer-Encoding", b"chunked"),
                (b"Content-Length", b"5"),
                (b"Content-Length", b"50"),
                (b"Connection", b"Content-Length"),
            ],
        ),
        encode(
            FrameType.DATA, FIN, inner.last.stream.id, b"0\r\n\r\nHTTP/1.1 200 smuggled\r\n\r\n"
        ),
    )
    assert client.values(b"content-length") == []
    assert client.values(b"transfer-encoding") == [b"chunked"]
    assert client.body == b"1e\r\n0\r\n\r\nHTTP/1.1 200 smuggled\r\n\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize("status", [204, 304])
def test_a_body_where_none_may_be_is_not_written(bench, inner, client, status):
    client.get()
    inner.inject(
        head(inner.last.stream.id, status, b"", [(b"Content-Length", b"5")]),
        encode(FrameType.DATA, FIN, inner.last.stream.id, b"HTTP/1.1 200 smuggled\r\n\r\n"),
    )
    assert client.status == status
    assert client.body == b""
    assert bench.entry.bytes_out == 0


def test_trailers_are_not_passed_on_yet_and_bad_ones_do_no_harm(bench, inner, client):
    client.get()
    inner.last.respond(200)
    inner.last.stream.write(b"x")
    inner.last.stream.end([(b"X Y", b"a\r\nb")])
    bench.run()
    assert client.body == b"1\r\nx\r\n0\r\n\r\n"
    assert bench.entry.outcome == ""


@pytest.mark.parametrize(
    "frames",
    [
        lambda n: [encode(FrameType.DATA, 0, n, b"before the head")],
        lambda n: [head(n), head(n)],
        lambda n: [head(n, flags=FIN, status=103)],
        lambda n: [encode(FrameType.HEAD, 0, n, b"junk")],
    ],
    ids=["early data", "two heads", "an interim end", "junk"],
)
def test_frames_out_of_order_end_the_stream_only(bench, inner, frames):
    bad, good = bench.client(flushing=False), bench.client()
    bad.get()
    number = inner.last.stream.id
    good.get()
    inner.inject(*frames(number))
    assert inner.streams[0].code is StreamCode.PROTOCOL_ERROR
    assert len(bench.log.entries) == 1
    inner.last.answer()
    bench.run()
    assert good.status == 200


def test_who_sends_beyond_its_credit_is_cut_off(bench, inner):
    client = bench.client(flushing=False)
    client.get()
    number = inner.last.stream.id
    inner.inject(head(number), encode(FrameType.DATA, 0, number, bytes(60_000)) * 6)
    assert inner.last.code is StreamCode.TUNNEL_LOST
    assert len(bench.registry) == 0
    assert len(bench.log.entries) == 1


def test_what_comes_after_the_end_is_of_no_interest(bench, inner, client):
    client.get()
    number = inner.last.stream.id
    inner.inject(
        head(number, 200, b"", [(b"Content-Length", b"2")]),
        encode(FrameType.DATA, FIN, number, b"ok"),
        encode(FrameType.DATA, FIN, number, b"more"),
        head(number),
        encode(FrameType.RESET, 0, number, encode_reset(StreamCode.INTERNAL_ERROR, "late")),
    )
    assert client.body == b"ok"
    assert bench.entry.status == 200
    assert inner.outer.available


def test_answers_that_nobody_asked_for_end_the_tunnel(bench, inner, client):
    client.get()
    inner.inject(head(99))
    assert client.status == 502
    assert len(bench.registry) == 0


def test_an_inner_layer_that_asks_and_does_not_listen_is_bounded(bench, inner):
    """Each byte of data earns it pings, and each ping is an answer of ours that must wait."""
    client = bench.client().get()
    number = inner.last.stream.id
    inner.inject(head(number))
    inner.outer.pause()  # it reads nothing
    ping = encode(FrameType.PING, 0, 0, u64.pack(1)) * 8
    for _ in range(100_000):
        inner.outer.message_received(encode(FrameType.DATA, 0, number, b"x") + ping)
        if not inner.outer.available and not len(bench.registry):
            break
        assert inner.outer.session._control_size < 4_000_000
    assert len(bench.registry) == 0
    bench.run()
    assert client.ended


def test_an_inner_layer_that_says_farewell_for_ever_is_logged_once(bench, inner, client):
    seen = []
    globalLogPublisher.addObserver(seen.append)
    client.get()
    leave = encode(FrameType.GOAWAY, 0, 0, encode_goaway(0, TunnelCode.NO_ERROR, "again"))
    inner.inject(*[leave] * 20)
    inner.last.answer()
    bench.run()
    assert client.status == 200
    client.take()
    assert client.get().status == 502
    for code in TunnelCode:
        inner.inject(encode(FrameType.GOAWAY, 0, 0, encode_goaway(0, code, "again")))
    globalLogPublisher.removeObserver(seen.append)
    assert len([event for event in seen if event["log_level"] >= LogLevel.warn]) == 1
    assert len(bench.registry) == 0


# ---------------------------------------------------------------------- faults of our own


@pytest.mark.parametrize("method", ["head_received", "data_received", "ended"])
def test_a_fault_of_ours_ends_one_request_and_nobody_waits(bench, inner, monkeypatch, method):
    bad, good = bench.client().get(), bench.client().get()
    seen = []
    globalLogPublisher.addObserver(seen.append)
    with monkeypatch.context() as patched:

        def fail(*arguments):
            raise RuntimeError("a bug")

        patched.setattr(Relay, method, fail)
        inner.streams[0].answer()
        bench.run()
    globalLogPublisher.removeObserver(seen.append)
    assert len([event for event in seen if "log_failure" in event]) == 1
    if method == "head_received":
        assert bad.status == 502
    elif method == "data_received":
        assert bad.ended
        assert not bad.body
    assert bench.entry.outcome == "internal error"
    inner.last.answer()
    bench.run()
    assert good.status == 200


def test_a_fault_of_ours_after_the_answer_is_counted_once(bench, inner, client):
    def fail(entry):
        raise RuntimeError("a bug")

    bench.log.record = fail
    client.get()
    inner.last.answer()
    bench.run()
    assert client.status == 200
    assert bench.counts == {("a.example", 200): 1}


def test_a_fault_of_ours_while_an_upload_goes_on(bench, inner, client, monkeypatch):
    def fail(relay):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Relay, "drained", fail)
    inner.consume = False
    upload(client, 1_000_000)
    while client.send(bytes(50_000)):
        pass
    inner.last.take()
    bench.run()
    assert inner.last.code is StreamCode.INTERNAL_ERROR
    assert client.status == 502
    assert bench.entry.outcome == "internal error"


# ---------------------------------------------------------------------- flow control


def upload(client, size):
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % size)


def test_an_upload_pauses_the_client_while_there_is_no_credit(bench, inner, client):
    inner.consume = False
    size = 1_000_000
    upload(client, size)
    sent = 0
    data = bytes(range(256)) * 64
    while client.send(data[: min(len(data), size - sent)]) and sent < size:
        sent += min(len(data), size - sent)
    assert not client.transport.reading
    assert len(inner.last.body) == WINDOW
    assert sent < WINDOW + 200_000
    inner.last.consume = True
    inner.last.take()
    bench.run()
    while sent < size:
        assert client.send(data[: min(len(data), size - sent)])
        sent += min(len(data), size - sent)
    assert len(inner.last.body) == size
    assert inner.last.body == (data * 62)[:size]
    assert inner.last.trailers == []
    inner.last.answer()
    bench.run()
    assert client.status == 200
    assert bench.entry.bytes_in == size


@pytest.mark.parametrize("late", [0, 1, 30_000, 64_000])
@pytest.mark.parametrize("step", [16_384, 60_000, 65_536])
def test_an_upload_that_waits_for_credit_stays_in_order(bench, inner, late, step):
    """Also its end, which the client may have sent before it was asked to pause.

    TLS hands on what it has decrypted already: up to ``late`` bytes while reading is paused. All of
    it, with the end, is passed on from within the flush that made room.
    """
    for size in (WINDOW + 1, WINDOW + 65_536, WINDOW + 140_000, 2 * WINDOW):
        client = bench.client()
        inner.consume = False
        data = random.Random(size).randbytes(size)
        upload(client, size)
        rest = data
        surplus = 0
        while rest:
            piece = step
            if not client.transport.reading:
                piece = min(step, late - surplus)
                surplus += piece
            if piece:
                client.connection.dataReceived(rest[:piece])
                rest = rest[piece:]
            else:
                inner.last.take()
                surplus = 0
            bench.run()
        for _ in range(6):
            inner.last.take()
            bench.run()
        assert inner.last.code is None
        assert inner.last.body == data
        assert inner.last.trailers == []
        inner.last.answer()
        bench.run()
        assert client.status == 200


def test_credit_is_withheld_while_the_client_does_not_read(bench, inner):
    client = bench.client(flushing=False)
    client.get()
    inner.last.respond(200)
    data = bytes(1_000_000)
    inner.last.stream.write(data)
    inner.last.stream.end()
    bench.run()
    assert WINDOW <= len(client.written) < WINDOW + 70_000 + 10_000
    while inner.last.stream.queued:
        before = len(client.written)
        bench.clock.advance(0.1)  # a reader that takes longer than the link gets no larger window
        client.transport.flush()
        bench.run()
        assert before < len(client.written) <= before + WINDOW + 10_000
    client.transport.flush()
    bench.run()
    assert client.body.endswith(b"0\r\n\r\n")
    assert bench.entry.bytes_out == 1_000_000


def stalled_at_the_end(bench, inner):
    """A client that has not read the last bytes of a complete answer."""
    client = bench.client(flushing=False)
    client.get()
    inner.last.respond(200, [(b"Content-Length", b"200000")])
    inner.last.stream.write(bytes(200_000))
    inner.last.stream.end()
    bench.run()
    assert not inner.outer.session.streams
    assert bench.entry.outcome == ""
    return client


def test_what_a_client_has_not_taken_counts_also_after_the_end(bench, inner):
    client = stalled_at_the_end(bench, inner)
    session = inner.outer.session
    assert 200_000 - 70_000 < session.buffered <= 200_000
    client.transport.flush()
    bench.run()
    assert session.buffered == session._memory.buffered.used == 0


def test_a_client_that_goes_takes_what_it_had_not_taken_off_the_books(bench, inner):
    client = stalled_at_the_end(bench, inner)
    client.transport.close_by_peer()
    assert inner.outer.session.buffered == 0


def test_who_holds_most_is_cut_off_also_after_the_end(bench, inner):
    client = stalled_at_the_end(bench, inner)
    session = inner.outer.session
    session.shed()
    assert session.buffered == session._memory.buffered.used == 0
    assert client.transport.aborted
    bench.run()
    assert session.buffered == 0


def test_what_is_not_taken_outlives_the_tunnel(bench, inner):
    client = stalled_at_the_end(bench, inner)
    memory = inner.outer.session._memory
    inner.lose()
    assert memory.buffered.used > 0
    assert inner.outer.session in memory.holders
    client.transport.flush()
    assert memory.buffered.used == 0
    assert inner.outer.session not in memory.holders


def test_a_client_whose_answer_is_too_much_to_keep_is_cut_off(bench, inner):
    client = bench.client(flushing=False)
    client.get()
    inner.last.respond(200)
    inner.last.stream.write(bytes(200_000))
    bench.run()
    inner.outer.session.shed()
    bench.run()
    assert client.transport.aborted
    assert inner.last.code is StreamCode.OVERLOADED
    assert bench.entry.outcome == "overloaded"
    assert inner.outer.session.buffered == 0


def test_a_slow_client_does_not_stop_another(bench, inner):
    slow, quick = bench.client(flushing=False), bench.client()
    for client in (slow, quick):
        client.get()
        inner.last.respond(200)
        inner.last.stream.write(bytes(1_000_000))
        inner.last.stream.end()
    bench.run()
    assert len(quick.body) > 1_000_000
    assert quick.body.endswith(b"0\r\n\r\n")
    assert len(slow.body) < 400_000


# ---------------------------------------------------------------------- timeouts


def test_no_answer_in_time(bench):
    bench = Bench(timeout="5000")
    inner, client = bench.inner(), bench.client()
    client.get()
    bench.wait(4.5)
    assert client.written == b""
    bench.wait(1.25)
    assert client.status == 504
    assert client.values(b"proxy-status") == [b"sockgw; error=http_response_timeout"]
    assert inner.last.code is StreamCode.RESPONSE_TIMEOUT
    assert bench.entry.outcome == "response timeout"
    assert not client.closing


def test_interim_responses_are_no_answer():
    bench = Bench(timeout="5000")
    inner, client = bench.inner(), bench.client()
    client.get()
    for _ in range(6):
        bench.wait(1)
        if inner.last.code is None:
            inner.last.respond(103)
            bench.run()
    assert b"HTTP/1.1 504 " in client.written


def test_the_answer_has_its_time_from_the_end_of_the_request_on():
    bench = Bench(timeout="5000")
    inner, client = bench.inner(), bench.client()
    upload(client, 10)
    for _ in range(10):
        bench.wait(4)
        client.send(b"x")
    assert client.written == b""
    bench.wait(4)
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_the_answer_has_its_time_from_when_the_request_went_on():
    bench = Bench(timeout="5000")
    inner, client = bench.inner(), bench.client()
    inner.consume = False
    upload(client, 1_000_000)
    while client.send(bytes(50_000)):
        pass
    bench.wait(4)
    inner.last.take()
    bench.run()
    assert client.transport.reading
    bench.wait(4)
    assert client.written == b""
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_an_answer_that_stalls(bench):
    bench = Bench(timeout="1000", idle_timeout="5000")
    inner, client = bench.inner(), bench.client()
    client.get()
    inner.last.respond(200)
    bench.run()
    for _ in range(4):
        bench.wait(4.5)
        inner.last.stream.write(b"x")
        bench.run()
    assert not client.ended
    bench.wait(6)
    assert client.ended
    assert inner.last.code is StreamCode.IDLE_TIMEOUT
    assert (bench.entry.status, bench.entry.outcome) == (200, "idle timeout")


def test_an_upload_keeps_an_answer_that_has_begun_alive():
    """A byte either way counts: the origin may answer at the end of what it has begun to take."""
    bench = Bench(timeout="1000", idle_timeout="5000", limits={"idle_timeout": 5.0})
    inner, client = bench.inner(), bench.client()
    upload(client, 10)
    inner.last.respond(200)
    bench.run()
    for _ in range(9):
        bench.wait(4)
        client.send(b"x")
    assert not client.ended
    bench.wait(6)
    assert client.ended
    assert len(bench.log.entries) == 1


def test_a_slow_reader_that_reads_is_not_idle():
    bench = Bench(idle_timeout="5000", limits={"idle_timeout": 5.0})
    inner = bench.inner()
    client = bench.client(flushing=False)
    client.get()
    inner.last.respond(200)
    inner.last.stream.write(bytes(1_000_000))
    inner.last.stream.end()
    bench.run()
    for _ in range(10):
        bench.wait(4)
        client.transport.flush()
        bench.run()
    assert client.body.endswith(b"0\r\n\r\n")


def test_the_first_client_after_a_long_calm_has_its_time():
    bench = Bench(head_timeout="10000")
    inner = bench.inner()
    bench.clock.advance(3600)
    client = bench.client()
    bench.wait(5)
    assert not client.closing
    client.get()
    bench.wait(5)
    inner.last.answer()
    bench.run()
    assert client.status == 200


def test_nothing_is_watched_after_the_end(bench, inner, client):
    client.get()
    inner.last.answer()
    bench.run()
    client.leave()
    bench.wait(1)
    assert bench.deadlines.watched == set()


# ---------------------------------------------------------------------- revocation


def test_a_revoked_inner_layer_serves_no_longer(bench, inner, client):
    client.get()
    inner.outer.close(TunnelCode.REVOKED, "the key is no longer accepted")
    bench.run()
    assert client.status == 502
    client.take()
    assert client.get().status == 502
    assert len(inner.streams) == 1


def test_what_is_known_of_a_connection_holds_for_its_host_and_these_targets_only():
    bench = Bench()
    inner = bench.inner()
    client = bench.client()
    for host, path in (("a.example", "/1"), ("a.example", "/2"), ("kept.example", "/3")):
        client.get(path, host)
        assert dict(inner.last.headers)[b"X-Forwarded-Host"] == host.encode()
        assert inner.last.head.target == path.encode()
        inner.last.answer()
        bench.run()
    bench.gateway.use(
        parse_targets(
            "targets: {kept.example: {hostname: other.internal, protocol: http, port: 9}}", "t.yaml"
        )
    )
    client.take()
    client.get("/", "kept.example")
    assert inner.last.to.hostname == "other.internal"
    inner.last.answer()
    bench.run()
    client.take()
    client.get("/", "a.example")
    assert client.status == 404
