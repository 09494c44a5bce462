"""What a gateway has done to the beginning of paths is undone in answers, and nothing else is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http.rewriting import Prefixes, Rewriter

STRIP = Prefixes(b"/api", b"")
ADD = Prefixes(b"", b"/app")
BOTH = Prefixes(b"/api", b"/app")
DEEPER = Prefixes(b"/api", b"/api/v2")


def rewrite(prefixes: Prefixes | None, name: str, value: str, host: str = "origin.test") -> str:
    rewriter = Rewriter(b"http", host.encode(), 8080 if host else 0, prefixes)
    headers = [(b"X-A", b"/"), (name.encode(), value.encode("latin-1"))]
    result = rewriter.rewrite(headers, b"https", b"www.test", remove_csps=False)
    assert result[0] == headers[0]
    assert (result is headers) is (result == headers)
    return result[1][1].decode("latin-1")


@pytest.mark.parametrize("name", ["Location", "content-location"])
@pytest.mark.parametrize(
    ("prefixes", "value", "expected"),
    [
        (STRIP, "/login", "/api/login"),
        (STRIP, "/", "/api/"),
        (STRIP, "/login?next=/x#/y", "/api/login?next=/x#/y"),
        (STRIP, "/?q", "/api/?q"),
        (STRIP, "/apix", "/api/apix"),
        (STRIP, "http://origin.test:8080/login", "https://www.test/api/login"),
        (STRIP, "http://origin.test:8080", "https://www.test/api/"),
        (STRIP, "http://origin.test:8080?q", "https://www.test/api/?q"),
        (STRIP, "//origin.test:8080/login", "//www.test/api/login"),
        (STRIP, "/../x", "/api/x"),
        (STRIP, "/a/%2E%2e/../x/.?/../y", "/api/x/?/../y"),
        (STRIP, "/..", "/api/"),
        # Already public: an origin that is told of the prefix writes it.
        (STRIP, "/api", "/api"),
        (STRIP, "/api/login", "/api/login"),
        (STRIP, "/api?q", "/api?q"),
        (STRIP, "http://origin.test:8080/api/login", "https://www.test/api/login"),
        # Relative, empty, or of another origin.
        (STRIP, "login", "login"),
        (STRIP, "../login", "../login"),
        (STRIP, "?q", "?q"),
        (STRIP, "#f", "#f"),
        (STRIP, "", ""),
        (STRIP, "//other.test/login", "//other.test/login"),
        (STRIP, "///login", "///login"),
        (STRIP, "https://other.test/login", "https://other.test/login"),
        (STRIP, "https://www.test/login", "https://www.test/login"),
        (STRIP, "https://origin.test:8080/login", "https://origin.test:8080/login"),
        (STRIP, "mailto:/x", "mailto:/x"),
        (STRIP, "/\\other.test", "/api/\\other.test"),
        (ADD, "/app/login", "/login"),
        (ADD, "/app", "/"),
        (ADD, "/app?q", "/?q"),
        (ADD, "/app/", "/"),
        (ADD, "/application", "/application"),
        (ADD, "/login", "/login"),
        (ADD, "http://origin.test:8080/app/login", "https://www.test/login"),
        (ADD, "http://origin.test:8080/login", "https://www.test/login"),
        (ADD, "/app/../login", "/login"),
        # What is left must not name a host.
        (ADD, "/app//evil.test", "/evil.test"),
        (ADD, "/app/\\evil.test", "/evil.test"),
        (ADD, "/app/\t/evil.test", "/evil.test"),
        (ADD, "/app/.//evil.test", "/evil.test"),
        (ADD, "/app/\\\t\\/evil.test", "/evil.test"),
        (BOTH, "/app/login", "/api/login"),
        (BOTH, "/app", "/api"),
        (BOTH, "/app//x", "/api//x"),
        (BOTH, "/login", "/login"),
        (BOTH, "/api/login", "/api/login"),
        (DEEPER, "/api/v2/x", "/api/x"),
        (DEEPER, "/api/v2", "/api"),
        (None, "/login", "/login"),
        (None, "/a/../x", "/a/../x"),
        (None, "http://origin.test:8080/login", "https://www.test/login"),
    ],
)
def test_references(name: str, prefixes: Prefixes | None, value: str, expected: str) -> None:
    assert rewrite(prefixes, name, value) == expected


def test_references_in_other_fields() -> None:
    assert rewrite(STRIP, "Refresh", "5; url='/x'; y") == "5; url='/api/x'; y"
    assert rewrite(STRIP, "Refresh", "5;url=http://origin.test:8080/x") == (
        "5;url=https://www.test/api/x"
    )
    assert rewrite(STRIP, "Refresh", "5; url=x") == "5; url=x"
    link = '</a.css>; rel=preload; title="</b>", <c>; rel=next, <//o.test/d>, </api/e>'
    assert rewrite(STRIP, "Link", link) == link.replace("</a.css>", "</api/a.css>")
    assert rewrite(ADD, "Link", "</app/a>, </b>") == "</a>, </b>"
    assert rewrite(STRIP, "X-Location", "/login") == "/login"


@pytest.mark.parametrize(
    ("prefixes", "path", "expected"),
    [
        (STRIP, "/", "/api"),
        (STRIP, "/x", "/api/x"),
        (STRIP, "/x/", "/api/x/"),
        (STRIP, "/api", "/api"),
        (STRIP, "/api/x", "/api/x"),
        (STRIP, "/apix", "/api/apix"),
        (STRIP, "", ""),
        (STRIP, "x", "x"),
        (ADD, "/app", "/"),
        (ADD, "/app/", "/"),
        (ADD, "/app/x", "/x"),
        (ADD, "/", "/"),
        (ADD, "/other", "/other"),
        (ADD, "/application", "/application"),
        (BOTH, "/app", "/api"),
        (BOTH, "/app/x", "/api/x"),
        (BOTH, "/", "/api"),
        (BOTH, "/other", "/other"),
        (DEEPER, "/api", "/api"),
        (DEEPER, "/api/v2/x", "/api/x"),
        (None, "/", "/"),
    ],
)
def test_cookies(prefixes: Prefixes | None, path: str, expected: str) -> None:
    cookie = "a=/x; Path={}; Secure; Expires=Thu, 01 Jan 2099 00:00:00 GMT"
    assert rewrite(prefixes, "Set-Cookie", cookie.format(path)) == cookie.format(expected)


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        ("a=b", "a=b"),
        ("a=b;path=/", "a=b;path=/api"),
        ("a=b; PATH = / ; path=/x", "a=b; PATH =/api; path=/api/x"),
        ("path=/; HttpOnly", "path=/; HttpOnly"),
        ('a="; Path=/"; Path=/x', 'a="; Path=/"; Path=/api/x'),
        ("a=b; Domain=origin.test; Path=/", "a=b; Domain=www.test; Path=/api"),
        ("a=b; Path", "a=b; Path"),
        ("__Host-a=b; Path=/; Secure", "__Host-a=b; Path=/; Secure"),
        (" __host-a=b; Path=/; Secure", " __host-a=b; Path=/; Secure"),
        ("__Secure-a=b; Path=/; Secure", "__Secure-a=b; Path=/api; Secure"),
    ],
)
def test_cookies_as_they_come(cookie: str, expected: str) -> None:
    assert rewrite(STRIP, "Set-Cookie", cookie) == expected


def test_an_origin_that_nobody_knows() -> None:
    assert rewrite(STRIP, "Location", "/login", host="") == "/api/login"
    for value in ("//", "///x", "http://", "http:///x", ":", "//:0/", "http://h/x"):
        assert rewrite(STRIP, "Location", value, host="") == value


@pytest.mark.parametrize("authority", [b"", b"a b", b"a@b"])
def test_where_no_host_was_asked_for(authority: bytes) -> None:
    headers = [
        (b"Location", b"/login"),
        (b"Content-Location", b"http://origin.test:8080/x"),
        (b"Set-Cookie", b"a=b; Path=/"),
    ]
    rewriter = Rewriter(b"http", b"origin.test", 8080, STRIP)
    assert [value for _, value in rewriter.rewrite(headers, b"http", authority, False)] == [
        b"/api/login",
        b"http://origin.test:8080/x",
        b"a=b; Path=/api",
    ]
    assert Rewriter(b"http", b"origin.test", 8080).rewrite(headers, b"http", authority, False) is (
        headers
    )


# ---------------------------------------------------------------------- properties

parts = st.sampled_from(["a", "b", "app", "api", "x.y", "%C3%A9", "~"])
prefixes = st.lists(parts, max_size=3).map(lambda found: "".join(f"/{part}" for part in found))
tails = st.sampled_from(["", "?q=/a", "#f", "?a#/b"])


def begins(path: str, prefix: str) -> bool:
    return not prefix or re.match(re.escape(prefix) + r"(?:[/?#]|\Z)", path) is not None


@given(prefixes, prefixes, prefixes, st.sampled_from(["", "/"]), tails)
def test_a_client_that_follows_gets_what_the_origin_meant(
    public: str, origin: str, rest: str, slash: str, tail: str
) -> None:
    """Forward(undo(path)) is the path, but for what is already public."""
    value = (origin + rest + slash or "/") + tail
    found = rewrite(Prefixes(public.encode(), origin.encode()), "Location", value)
    assert begins(found, public)
    assert not found.startswith("//")
    if not origin and begins(value, public):
        assert found == value
        return
    forwarded = origin + found.removeprefix(public)
    # The origin's own root, and its prefix alone, are one place where nothing is left of the path.
    assert forwarded.replace("/?", "?").replace("/#", "#").rstrip("/") == (
        value.replace("/?", "?").replace("/#", "#").rstrip("/")
    )


@given(prefixes, prefixes, st.text("/.%2eab?#\\\t:;@", max_size=12))
def test_no_path_becomes_another_host(public: str, origin: str, text: str) -> None:
    value = origin + "/" + text
    found = rewrite(Prefixes(public.encode(), origin.encode()), "Location", value)
    if not re.match(r"/[\t]*[/\\]", value):
        assert not re.match(r"/[\t]*[/\\]", found)
    # What a client reads stays below the prefix.
    if public and not origin and value[1:2] != "/":
        assert begins(found, public)


@given(st.sampled_from([STRIP, ADD, BOTH, DEEPER]), st.text('/apix;=" Path,v2', max_size=30))
def test_junk_in_cookies_keeps_name_and_value(found: Prefixes, text: str) -> None:
    result = rewrite(found, "Set-Cookie", f"name=value; {text}")
    assert result.startswith("name=value;")
    assert result.count(";") == text.count(";") + 1
