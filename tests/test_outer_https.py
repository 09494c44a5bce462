"""Redirects to https, HSTS, and the challenges of certificate authorities."""

import os

import pytest
from gatewaybench import Bench
from twisted.internet.address import IPv4Address

from sockgw.config import ConfigError, load
from sockgw.outer.challenges import MAX_ANSWER, Challenges
from sockgw.outer.config import OuterConfig

PROXY = IPv4Address("TCP", "127.0.0.1", 4321)
STRANGER = IPv4Address("TCP", "203.0.113.7", 4321)
TOKEN = "DGyRejmCefe7v4NfDGDKfA-_09"
CHALLENGE = f"/.well-known/acme-challenge/{TOKEN}"


def secure(client):
    client.connection.secure = True
    return client


# ---------------------------------------------------------------------- redirects


@pytest.mark.parametrize(
    ("method", "target", "host", "status", "location"),
    [
        ("GET", "/a?b=c", "a.example", 301, b"https://a.example/a?b=c"),
        ("GET", "/", "a.example:8080", 301, b"https://a.example/"),
        ("GET", "/", "A.Example", 301, b"https://A.Example/"),
        ("HEAD", "/", "a.example", 301, b"https://a.example/"),
        ("POST", "/a", "a.example", 308, b"https://a.example/a"),
        ("OPTIONS", "*", "a.example", 308, b"https://a.example/"),
        (
            "GET",
            "//evil.example/%0d%0a",
            "a.example",
            301,
            b"https://a.example//evil.example/%0d%0a",
        ),
        ("GET", "http://a.example/x", "a.example", 301, b"https://a.example/x"),
        # Before the policy: over https it holds as ever.
        ("DELETE", "/secret", "strict.example", 308, b"https://strict.example/secret"),
    ],
)
def test_redirects(method, target, host, status, location):
    bench = Bench(redirect_https="yes")
    inner, client = bench.inner(), bench.client()
    client.get(target, host, method=method)
    assert client.status == status
    assert client.values(b"location") == [location]
    assert client.body == b""
    assert inner.streams == []
    entry = bench.log.entries[0]
    assert (entry.status, entry.target_name) == (status, host.split(":")[0].lower())
    client.take()
    assert client.get("/", host).status == 301  # the connection goes on


def test_redirects_to_another_port():
    bench = Bench(redirect_https="8443")
    client = bench.client().get("/x", "a.example:80")
    assert client.values(b"location") == [b"https://a.example:8443/x"]


def test_no_redirect_for_hosts_that_are_no_target():
    bench = Bench(redirect_https="yes")
    client = bench.client().get("/x", "evil.example")
    assert client.status == 404
    assert client.values(b"location") == []
    client.take()
    assert client.get("/healthz", "127.0.0.1").status == 200


def test_no_redirect_for_challenges():
    bench = Bench(redirect_https="yes")
    inner, client = bench.inner(), bench.client()
    client.get(CHALLENGE)
    assert inner.last.head.target == CHALLENGE.encode()


def test_no_redirect_from_https():
    bench = Bench(redirect_https="yes", trust_proxy="loopback")
    inner = bench.inner()
    secure(bench.client()).get()
    assert len(inner.streams) == 1
    bench.client(peer=PROXY).get("/", "a.example", "X-Forwarded-Proto: https")
    assert len(inner.streams) == 2
    for fields, peer in (
        (("X-Forwarded-Proto: https",), STRANGER),
        (("X-Forwarded-Proto: http",), PROXY),
        ((), PROXY),
    ):
        client = bench.client(peer=peer).get("/", "a.example", *fields)
        assert client.status == 301
    client = secure(bench.client(peer=PROXY))  # the proxy's client came in clear
    assert client.get("/", "a.example", "X-Forwarded-Proto: http").status == 301


# ---------------------------------------------------------------------- HSTS


def test_hsts_over_https_only():
    text = "max-age=31536000; includeSubDomains"
    bench = Bench(hsts=text, trust_proxy="loopback")
    inner = bench.inner()

    def answers(client, *headers, fields=()):
        client.get("/", "a.example", *fields)
        inner.last.answer(headers=headers)
        bench.run()
        found = client.values(b"strict-transport-security")
        client.take()
        return found

    assert answers(secure(bench.client())) == [text.encode()]
    assert answers(bench.client()) == []
    told = ("X-Forwarded-Proto: https",)
    assert answers(bench.client(peer=PROXY), fields=told) == [text.encode()]
    assert answers(bench.client(peer=STRANGER), fields=told) == []
    own = (b"STRICT-transport-security", b"max-age=0")
    assert answers(secure(bench.client()), own) == [b"max-age=0"]


def test_hsts_in_answers_of_our_own():
    bench = Bench(hsts="max-age=5", limits={"max_header_count": 3})
    for target, host, status in (
        ("/", "b.example", 404),
        ("/healthz", "b.example", 200),
        ("/secret", "strict.example", 403),
        ("/", "a.example", 502),
    ):
        client = secure(bench.client()).get(target, host)
        assert client.status == status
        assert client.values(b"strict-transport-security") == [b"max-age=5"]
        client = bench.client().get(target, host)
        assert client.values(b"strict-transport-security") == []
    client = secure(bench.client())
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.status == 400
    assert client.values(b"strict-transport-security") == [b"max-age=5"]


def test_hsts_where_a_body_turns_out_to_be_none():
    bench = Bench(hsts="max-age=5")
    bench.inner()
    client = secure(bench.client())
    client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    client.send(b"cdefgh")
    assert client.status == 400
    assert client.values(b"strict-transport-security") == [b"max-age=5"]


# ---------------------------------------------------------------------- challenges


@pytest.fixture
def webroot(tmp_path):
    directory = tmp_path / ".well-known" / "acme-challenge"
    directory.mkdir(parents=True)
    (directory / TOKEN).write_text(f"{TOKEN}.thumbprint")
    return tmp_path


@pytest.fixture
def directory(webroot):
    return webroot / ".well-known" / "acme-challenge"


@pytest.mark.parametrize("host", ["a.example", "strict.example", "b.example", "127.0.0.1"])
@pytest.mark.parametrize("redirect", ["no", "yes"])
def test_challenges_are_answered_for_every_host(webroot, host, redirect):
    bench = Bench(acme_challenges=str(webroot), redirect_https=redirect)
    inner, client = bench.inner(), bench.client()
    client.get(CHALLENGE, host)
    assert (client.status, client.body) == (200, f"{TOKEN}.thumbprint".encode())
    client.take()
    client.get(CHALLENGE, host, method="HEAD")
    assert (client.status, client.body) == (200, b"")
    assert inner.streams == []
    assert [entry.status for entry in bench.log.entries] == [200, 200]
    assert secure(bench.client()).get(CHALLENGE, host).status == 200


def test_what_is_not_there_is_the_targets(webroot):
    bench = Bench(acme_challenges=str(webroot))
    inner, client = bench.inner(), bench.client()
    client.get(CHALLENGE[:-1])
    assert len(inner.streams) == 1
    bench.client().get(CHALLENGE, method="POST", body=b"x")
    assert len(inner.streams) == 2
    assert bench.client().get(CHALLENGE[:-1], "b.example").status == 404


def find(webroot, token=TOKEN):
    return Challenges(str(webroot)).find(b"/.well-known/acme-challenge/" + os.fsencode(token))


def test_only_tokens(webroot, directory):
    for name in ("a.b", "..", "a b", "a%41", "x" * 129, "", TOKEN + "?", TOKEN + "/", "\u00e9"):
        assert find(webroot, name) is None
    (directory / "...").write_text("x")
    (directory / ("x" * 128)).write_text("long")
    (directory / ("x" * 129)).write_text("too long")
    assert find(webroot, "...") is None
    assert find(webroot, "../acme-challenge/" + TOKEN) is None
    assert find(webroot, "x" * 128) == b"long"
    assert find(webroot, "x" * 129) is None
    assert find(webroot) is not None
    assert Challenges(str(webroot)).find(b"/" + TOKEN.encode()) is None


def test_no_way_out(webroot, directory):
    secret = webroot / "secret"
    secret.write_text("secret")
    (directory / "link").symlink_to(secret)
    (directory / "dir").mkdir()
    os.mkfifo(directory / "pipe")
    for name in ("link", "dir", "pipe", "none"):
        assert find(webroot, name) is None
    (directory / "large").write_bytes(bytes(MAX_ANSWER))
    assert find(webroot, "large") == bytes(MAX_ANSWER)
    (directory / "large").write_bytes(bytes(MAX_ANSWER + 1))
    assert find(webroot, "large") is None
    before = len(os.listdir("/proc/self/fd"))
    directory.rename(webroot / "elsewhere")
    directory.symlink_to(webroot / "elsewhere")
    assert find(webroot) is None
    directory.unlink()
    assert find(webroot) is None
    assert find(webroot / "none") is None
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "port"), [("no", 0), ("off", 0), ("yes", 443), ("443", 443), ("8443", 8443)]
)
def test_where_to(text, port):
    settings = {"public-key": ["x"], "targets": ["x"], "redirect-https": [text]}
    assert load(OuterConfig, settings, {}).redirect_https == port


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("redirect-https", "65536"),
        ("redirect-https", "https"),
        ("redirect-https", "-1"),
        ("hsts", "31536000"),
        ("hsts", "max-age=1\r\nX: y"),
        ("hsts", "max-age=1; preload; includeSubDomains"),
        ("hsts", "max-age=\u0661"),
    ],
)
def test_what_cannot_be_meant(option, text):
    settings = {"public-key": ["x"], "targets": ["x"], option: [text]}
    with pytest.raises(ConfigError, match=option):
        load(OuterConfig, settings, {})
