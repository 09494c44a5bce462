"""Path routing through the gateway: who gets a request, as what, and what its client sees."""

import pytest
from gatewaybench import Bench

TARGETS = """
targets:
  www.example:
    hostname: rest.internal
    protocol: http
    policy: {^/: [GET, POST], /api/hidden: "*"}
    paths:
      /api:
        hostname: api.internal
        protocol: http
        port: 8080
        strip-prefix: true
        policy: {^/v1/: "*", /: GET}
      /api/open: {socket: /run/open.sock, strip-prefix: /api, add-prefix: /app}
      /wiki: {service: wiki, strip-prefix: true, identifier: mill}
      /kept: {hostname: kept.internal, preserve-host: true}
  part.example:
    paths:
      /only: {hostname: only.internal, protocol: http}
  plain.example: {hostname: plain.internal, protocol: http}
"""


@pytest.fixture
def bench():
    return Bench(targets=TARGETS)


@pytest.fixture
def inner(bench):
    return bench.inner("mill")


@pytest.fixture
def client(bench):
    return bench.client()


@pytest.mark.parametrize(
    ("path", "hostname", "sent", "name"),
    [
        ("/", "rest.internal", b"/", "www.example"),
        ("/apix?q=/api", "rest.internal", b"/apix?q=/api", "www.example"),
        ("/api", "api.internal", b"/", "www.example/api"),
        ("/api/v1/x?q", "api.internal", b"/v1/x?q", "www.example/api"),
        ("/x/../api/%761/", "api.internal", b"/v1/", "www.example/api"),
        ("/api/open/a", "localhost", b"/app/open/a", "www.example/api/open"),
        ("/kept/", "kept.internal", b"/kept/", "www.example/kept"),
    ],
)
def test_a_path_leads_to_its_own_target(bench, inner, client, path, hostname, sent, name):
    client.get(path, "www.example")
    assert inner.last.to.hostname == hostname
    assert inner.last.head.target == sent
    inner.last.answer()
    bench.run()
    assert client.status == 200
    entry = bench.entry
    assert (entry.target_name, entry.target) == (name, path.encode())
    assert bench.counts == {(name, 200): 1}


def test_where_it_goes(bench, inner, client):
    client.get("/api/open", "www.example")
    to = inner.last.to
    assert (to.protocol, to.hostname, to.port, to.socket) == (
        "http",
        "localhost",
        80,
        "/run/open.sock",
    )
    other = bench.client().get("/wiki/x", "www.example")
    assert (inner.last.to.service, inner.last.head.target) == ("wiki", b"/x")
    assert other.written == b""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        # The policy of the target that gets it judges, and the path that is sent.
        ("DELETE", "/api/v1/x", 0),
        ("DELETE", "/api/hidden", 403),
        ("GET", "/api/hidden", 403),
        ("GET", "/api/", 0),
        ("POST", "/api/", 403),
        ("DELETE", "/x", 403),
        ("GET", "/api/v1/../hidden", 403),
        ("DELETE", "/api/open/x", 0),
        ("DELETE", "/api/open/../v2", 403),
        ("DELETE", "/api/v1/%2e%2e/%2e%2e/x", 403),
        ("GET", "/api/v1/..%2f..%2fx", 400),
        ("GET", "/api;x/v1/", 400),
        ("GET", "/api/open;x/v1/", 400),
        ("GET", "/api/..;/x", 400),
        # No policy, and yet only one reading.
        ("GET", "/kept/a%2fb", 400),
        ("GET", "/kept/%00", 400),
    ],
)
def test_policy_judges_what_the_target_gets(bench, inner, client, method, path, status):
    client.get(path, "www.example", method=method)
    if status:
        assert inner.streams == []
        assert client.status == status
        assert bench.entry.status == status
    else:
        assert len(inner.streams) == 1


def test_a_refusal_names_the_origins_url(bench, client):
    client.get("/api/secret", "www.example")
    assert client.body == (
        b"Forbidden: GET http://api.internal:8080/secret is not allowed by policy.\n"
    )
    assert bench.entry.target_name == "www.example/api"


def test_a_path_that_no_target_has(bench, inner, client):
    for path in ("/", "/onl", "/only/..", "/healthz", "/readyz"):
        client.get(path, "part.example")
        assert (client.status, client.body) == (404, b"no target of this host has this path\n")
        assert client.values(b"proxy-status") == [b"sockgw; error=destination_not_found"]
        assert bench.log.entries[-1].target_name == "part.example"
        client.take()
    client.get("*", "part.example", method="OPTIONS")
    assert client.status == 404
    assert inner.streams == []
    client.take()
    client.get("/only", "part.example")
    assert inner.last.to.hostname == "only.internal"


def test_options_of_the_server_as_a_whole(bench, inner):
    loose = Bench(targets=TARGETS.replace("policy: {^/: [GET, POST]", "policy: {'*': '*'"))
    asked = loose.inner("mill")
    loose.client().get("*", "www.example", method="OPTIONS")
    assert (asked.last.to.hostname, asked.last.head.target) == ("rest.internal", b"*")
    bench.client().get("*", "www.example", method="OPTIONS")  # to that host's policy a path
    assert inner.streams == []


def test_each_target_has_its_own_inner_layers(bench, client):
    office = bench.inner("office")
    client.get("/wiki/", "www.example")
    assert client.status == 502
    assert office.streams == []
    bench.client().get("/kept", "www.example")
    assert len(office.streams) == 1


@pytest.mark.parametrize(
    ("path", "told", "expected"),
    [
        ("/api/v1/x", None, [b"/api"]),
        ("/api/open/x", None, [b"/api"]),
        ("/wiki/x", None, [b"/wiki"]),
        ("/", None, []),
        ("/kept", None, []),
        ("/api/v1/x", "/outer", [b"/outer/api"]),
        ("/api/v1/x", "/outer/", [b"/outer/api"]),
        ("/api/v1/x", "/", [b"/api"]),
        ("/api/v1/x", "evil, /x", [b"/api"]),
        ("/kept", "/outer", [b"/outer"]),
    ],
)
def test_the_origin_is_told_what_was_taken_off(path, told, expected):
    bench = Bench(targets=TARGETS, trust_proxy="192.0.2.7")
    inner = bench.inner("mill")
    fields = [] if told is None else [f"X-Forwarded-Prefix: {told}"]
    bench.client().get(path, "www.example", *fields)
    assert inner.last.values(b"x-forwarded-prefix") == expected


@pytest.mark.parametrize(
    "name", ["X-Forwarded-Prefix", "x-forwarded-prefix", "X_Forwarded_Prefix", "X.Forwarded-Prefix"]
)
def test_a_stranger_tells_no_prefix(bench, inner, client, name):
    client.get("/api/v1/", "www.example", f"{name}: /evil", f"{name}: /more")
    assert inner.last.values(b"x-forwarded-prefix") == [b"/api"]
    assert b"evil" not in b"".join(value for _, value in inner.last.headers)
    bench.client().get("/", "www.example", f"{name}: /evil")
    assert b"evil" not in b"".join(value for _, value in inner.last.headers)


def test_answers_lead_back(bench, inner, client):
    client.get("/api/v1/x", "www.example")
    fields = [
        (b"Location", b"/login?next=/v1/x"),
        (b"Set-Cookie", b"a=b; Path=/; HttpOnly"),
        (b"Link", b"<http://api.internal:8080/next>; rel=next"),
        (b"Content-Location", b"x"),
    ]
    inner.last.answer(status=302, headers=fields)
    bench.run()
    assert client.values(b"location") == [b"/api/login?next=/v1/x"]
    assert client.values(b"set-cookie") == [b"a=b; Path=/api; HttpOnly"]
    assert client.values(b"link") == [b"<http://www.example/api/next>; rel=next"]
    assert client.values(b"content-location") == [b"x"]


def test_a_prefix_that_was_put_on_comes_off(bench, inner, client):
    client.get("/api/open/x", "www.example")
    inner.last.answer(status=302, headers=[(b"Location", b"http://localhost/app/open/y")])
    bench.run()
    assert client.values(b"location") == [b"http://www.example/api/open/y"]


@pytest.mark.parametrize(
    ("origin", "absolute"),
    [
        (("https", "wiki.internal", 443), b"http://www.example/wiki/x"),
        (None, b"https://wiki.internal/x"),
    ],
)
def test_answers_of_a_service(bench, inner, client, origin, absolute):
    client.get("/wiki/", "www.example")
    fields = [(b"Location", b"https://wiki.internal/x"), (b"Content-Location", b"/y")]
    inner.last.respond(200, [*fields, (b"Content-Length", b"0")], end=True, origin=origin)
    bench.run()
    assert client.values(b"location") == [absolute]
    assert client.values(b"content-location") == [b"/wiki/y"]


def test_early_hints_lead_back_too(bench, inner, client):
    client.get("/api/v1/", "www.example")
    inner.last.respond(103, [(b"Link", b"</a.css>; rel=preload")])
    bench.run()
    assert b"Link: </api/a.css>; rel=preload" in client.take()


def test_where_no_prefix_changes_nothing_does(bench, inner):
    for path, host in (("/kept/x", "www.example"), ("/x", "plain.example")):
        client = bench.client().get(path, host)
        fields = [(b"Location", b"/a/../login"), (b"Set-Cookie", b"a=b; Path=/")]
        inner.last.answer(status=302, headers=fields)
        bench.run()
        assert client.values(b"location") == [b"/a/../login"]
        assert client.values(b"set-cookie") == [b"a=b; Path=/"]
    # Nor is a path looked at for hosts without path routing.
    bench.client().get("//a/../b%2fc;d", "plain.example")
    assert inner.last.head.target == b"//a/../b%2fc;d"


def test_failures_bear_the_name(bench, client):
    client.get("/api/v1/x", "www.example")
    assert client.status == 502
    assert bench.gateway.failures[0].target == "www.example/api"
    assert bench.counts == {("www.example/api", 502): 1}
