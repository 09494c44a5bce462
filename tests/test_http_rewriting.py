"""The target's origin becomes the public one; what merely looks alike stays."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sockgw.http.rewriting import Rewriter
from sockgw.protocol.heads import Headers

HTTPS = Rewriter(b"https", b"my.private.api", 443)
PORT = Rewriter(b"http", b"My.Private.Api", 8080)
IPV6 = Rewriter(b"http", b"2001:db8::1", 80)


def rewrite(
    rewriter: Rewriter,
    name: str,
    value: str,
    public: str = "a.example:3000",
    scheme: str = "http",
    csps: bool = False,
) -> str | None:
    """Return the rewritten value; None where the field has gone."""
    around: Headers = [(b"Date", b"now"), (b"X", b"https://my.private.api/")]
    headers = [around[0], (name.encode(), value.encode("latin-1")), around[1]]
    before = list(headers)
    result = rewriter.rewrite(headers, scheme.encode(), public.encode(), csps)
    assert headers == before
    assert (result == before) is (result is headers)
    assert (result[0], result[-1]) == tuple(around)
    return result[1][1].decode("latin-1") if len(result) == 3 else None


NEW = "http://a.example:3000"


@pytest.mark.parametrize("name", ["Location", "location", "Content-Location"])
@pytest.mark.parametrize(
    ("rewriter", "value", "expected"),
    [
        (HTTPS, "https://my.private.api", NEW),
        (HTTPS, "https://my.private.api/", NEW + "/"),
        (HTTPS, "https://my.private.api/a?b=https://my.private.api/#c", None),
        (HTTPS, "https://my.private.api?q", NEW + "?q"),
        (HTTPS, "https://my.private.api#f", NEW + "#f"),
        (HTTPS, "HTTPS://MY.Private.API/A", NEW + "/A"),
        (HTTPS, "https://my.private.api:443/", NEW + "/"),
        (HTTPS, "https://my.private.api:0443/", NEW + "/"),
        (HTTPS, "https://my.private.api:/", NEW + "/"),
        (HTTPS, "https://my.private.api \t", NEW + " \t"),
        (HTTPS, "//my.private.api/a", "//a.example:3000/a"),
        (HTTPS, "//my.private.api", "//a.example:3000"),
        (HTTPS, "//my.private.api:443?q", "//a.example:3000?q"),
        (PORT, "http://my.private.api:8080/a", NEW + "/a"),
        (PORT, "//MY.private.api:8080/a", "//a.example:3000/a"),
        (IPV6, "http://[2001:db8::1]/a", NEW + "/a"),
        (IPV6, "http://[2001:DB8::1]:80/a", NEW + "/a"),
    ],
)
def test_references(rewriter: Rewriter, name: str, value: str, expected: str | None) -> None:
    if expected is None:
        expected = NEW + value.removeprefix("https://my.private.api")
    assert rewrite(rewriter, name, value) == expected


LOOK_ALIKES = [
    "",
    "/",
    "/https://my.private.api/",
    "?u=https://my.private.api/",
    "my.private.api",
    "my.private.api/",
    "/my.private.api/",
    "///my.private.api/",
    "https:/my.private.api/",
    "https:my.private.api/",
    "https:///my.private.api/",
    "https:\\\\my.private.api/",
    "https://my.private.api.evil.example/",
    "https://my.private.apis/",
    "https://evil.my.private.api/",
    "https://my-private.api/",
    "https://myxprivate.api/",
    "https://my.private.api./",
    "https://my.private.api%2eevil.example/",
    "https://my.private.api@evil.example/",
    "https://my.private.api:443@evil.example/",
    "https://my.private.api:x@evil.example/",
    "https://user@my.private.api/",
    "https://user:pass@my.private.api/",
    "https://@my.private.api/",
    "https://my.private.api\\@evil.example/",
    "https://my.private.api\\",
    "https://my.private.api;a/",
    "https://my.private.api,evil.example",
    "https://my.private.api evil.example/",
    "https://my.private.api:80/",
    "https://my.private.api:8443/",
    "https://my.private.api:4430/",
    "https://my.private.api:443x/",
    "https://my.private.api:-443/",
    "http://my.private.api/",
    "http://my.private.api:443/",
    "http://my.private.api:80/",
    "//my.private.api:80/",
    "//my.private.api@evil.example/",
    "wss://my.private.api/",
    "xhttps://my.private.api/",
    "view-source:https://my.private.api/",
    "https://other.example/?next=https://my.private.api/",
    "https://other.example/#https://my.private.api/",
    " https://my.private.api.evil.example",
    "mailto:x@my.private.api",
    "https://m\xfd.private.api/",
]


@pytest.mark.parametrize("value", LOOK_ALIKES)
def test_what_merely_looks_alike_stays(value: str) -> None:
    assert rewrite(HTTPS, "Location", value) == value
    assert rewrite(HTTPS, "Content-Location", value) == value
    for refresh in (f"5; url={value}", f"5;URL='{value}'", f'0, "{value}"', f"1 {value}"):
        assert rewrite(HTTPS, "Refresh", refresh) == refresh
    link = f"<{value}>; rel=next, <{value}>"
    assert rewrite(HTTPS, "Link", link) == link


@pytest.mark.parametrize(
    "value",
    [
        "http://my.private.api/",
        "//my.private.api/",
        "http://my.private.api:80/",
        "//my.private.api:/",
    ],
)
def test_another_port_is_another_origin(value: str) -> None:
    assert rewrite(PORT, "Location", value) == value


@pytest.mark.parametrize("name", ["X-Location", "Locations", "Origin", "Referer", "Set-Cookie2"])
def test_other_fields_stay(name: str) -> None:
    value = "https://my.private.api/"
    assert rewrite(HTTPS, name, value) == value


OLD = "https://my.private.api"


@pytest.mark.parametrize(
    "value",
    [
        "5; url=OLD/a",
        "5;url=OLD",
        "5;URL=OLD?q",
        " 5 ; Url = OLD/a",
        "0.5, url=OLD/",
        "5 url=OLD/",
        "5;OLD/a",
        "5 OLD/a",
        "5; url='OLD/a'",
        "5; url='OLD'",
        '5; url="OLD" ',
        '5; url="OLD/a',
        '5; "OLD/a"; x="https://my.private.api"',
    ],
)
def test_refresh(value: str) -> None:
    expected = value.replace("OLD", NEW)
    assert rewrite(HTTPS, "Refresh", value.replace("OLD", OLD)) == expected


@pytest.mark.parametrize(
    "value", ["", "5", "5;", "OLD/", "url=OLD/", "5url=OLD/", "5;;url=OLD/", "5; uri=OLD", "x; OLD"]
)
def test_no_refresh(value: str) -> None:
    value = value.replace("OLD", OLD)
    assert rewrite(HTTPS, "Refresh", value) == value


@pytest.mark.parametrize(
    "value",
    [
        "<OLD/a>; rel=next",
        "<OLD>",
        "<OLD/1>; rel=prev, <OLD/3>; rel=next,<https://other.example/>,<OLD?q>",
        '<OLD/a,b;c>; title="a \\"<https://my.private.api/>, b", <OLD/b>',
        '<OLD/"x>; rel=next, <OLD/">',
        '<OLD/a>; anchor="https://my.private.api/"; rel=https://my.private.api/',
        '<OLD/a>; title="<https://my.private.api/>',
        "<<OLD/a>",
    ],
)
def test_link(value: str) -> None:
    assert rewrite(HTTPS, "Link", value.replace("OLD", OLD)) == value.replace("OLD", NEW)


def test_link_without_scheme() -> None:
    assert rewrite(HTTPS, "Link", "<//my.private.api/a>") == "<//a.example:3000/a>"


@pytest.mark.parametrize("value", ["", "<", "<>", "<" + OLD, OLD, '"<' + OLD + '/>"', "<" * 9000])
def test_no_link(value: str) -> None:
    assert rewrite(HTTPS, "Link", value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # The target's own name.
        ("a=b; Domain=my.private.api; Path=/", "a=b; Domain=a.example; Path=/"),
        ("a=b;domain=.MY.private.api", "a=b;domain=a.example"),
        ('a=b; DOMAIN = "my.private.api" ;Secure', "a=b; DOMAIN =a.example;Secure"),
        (
            "a=b; Domain=my.private.api; Domain=my.private.api",
            "a=b; Domain=a.example; Domain=a.example",
        ),
        ("=; Domain=my.private.api", "=; Domain=a.example"),
        ("; Domain=my.private.api", "; Domain=a.example"),
        # A parent domain of the target.
        ("a=b; Domain=private.api; Path=/", "a=b; Path=/"),
        ("a=b; Domain=.api", "a=b"),
        # Others.
        ("a=b", None),
        ("", None),
        ("a=b; Path=/", None),
        ("a=b; Domain=; Path=/", None),
        ("a=b; Domain", None),
        ("a=b; Domain=other.example", None),
        ("a=b; Domain=x.my.private.api", None),
        ("a=b; Domain=e.api.example", None),
        ("a=b; Domain=rivate.api", None),
        ("a=b; Domain=a.example", None),
        ("a=b; XDomain=my.private.api", None),
        ("a=b; Path=my.private.api", None),
        # The cookie's name and value.
        ("Domain=my.private.api", None),
        ("Domain=my.private.api; Path=/", None),
        ("a=https://my.private.api/", None),
        ('a="; Domain=my.private.api"', None),
        ('a="x; Domain=my.private.api; y"; Path=/', None),
        ('a="x; Domain=my.private.api', 'a="x; Domain=a.example'),
        ('a="x"y; Domain=my.private.api', 'a="x"y; Domain=a.example'),
        ('a="x;y"; Domain=my.private.api', 'a="x;y"; Domain=a.example'),
    ],
)
def test_cookies(value: str, expected: str | None) -> None:
    assert rewrite(HTTPS, "Set-Cookie", value) == (value if expected is None else expected)


@pytest.mark.parametrize(
    "public", ["localhost:3000", "gateway", "192.0.2.1:80", "[::1]:3000", "[::ffff:192.0.2.1]"]
)
def test_hosts_that_can_have_no_domain_cookies(public: str) -> None:
    value = "a=b; Domain=my.private.api; Path=/"
    assert rewrite(HTTPS, "Set-Cookie", value, public) == "a=b; Path=/"


@pytest.mark.parametrize("public", ["my.public.api", "PRIVATE.api", "x.private.api:80"])
def test_a_parent_domain_of_both_stays(public: str) -> None:
    value = "a=b; Domain=api"
    assert rewrite(HTTPS, "Set-Cookie", value, public) == value


def test_a_parent_domain_that_is_the_public_host_stays() -> None:
    value = "a=b; Domain=private.api"
    assert rewrite(HTTPS, "Set-Cookie", value, "Private.api:80") == value


@pytest.mark.parametrize("public", ["my.public.api", "xprivate.api", "private.api.example"])
def test_a_parent_domain_of_the_target_alone_goes(public: str) -> None:
    assert rewrite(HTTPS, "Set-Cookie", "a=b; Domain=private.api", public) == "a=b"


def test_cookies_of_a_target_in_capitals() -> None:
    assert rewrite(PORT, "Set-Cookie", "a=b; Domain=My.private.api") == "a=b; Domain=a.example"


def test_cookies_of_an_address() -> None:
    target = Rewriter(b"http", b"10.0.0.5", 80)
    assert rewrite(target, "Set-Cookie", "a=b; Domain=10.0.0.5") == "a=b; Domain=a.example"
    assert rewrite(target, "Set-Cookie", "a=b; Domain=0.0.5") == "a=b; Domain=0.0.5"


def test_each_cookie_for_itself() -> None:
    headers: Headers = [
        (b"Set-Cookie", b"a=b; Domain=my.private.api"),
        (b"set-cookie", b"c=d; Domain=api"),
        (b"Set-Cookie", b"e=f"),
    ]
    assert HTTPS.rewrite(headers, b"https", b"a.example", False) == [
        (b"Set-Cookie", b"a=b; Domain=a.example"),
        (b"set-cookie", b"c=d"),
        (b"Set-Cookie", b"e=f"),
    ]


@pytest.mark.parametrize("name", ["Content-Security-Policy", "content-security-policy-report-only"])
@pytest.mark.parametrize("public", ["a.example", ""])
def test_csps(name: str, public: str) -> None:
    assert rewrite(HTTPS, name, "default-src 'self'", public) == "default-src 'self'"
    assert rewrite(HTTPS, name, "default-src 'self'", public, csps=True) is None


def test_a_csp_beside_what_is_rewritten() -> None:
    csp = (b"Content-Security-Policy", b"default-src 'self'")
    headers = [csp, (b"Location", b"https://my.private.api/")]
    new = (b"Location", b"http://a.example/")
    assert HTTPS.rewrite(headers, b"http", b"a.example", False) == [csp, new]
    assert HTTPS.rewrite(headers, b"http", b"a.example", True) == [new]


def test_other_policies_stay_with_csps_removed() -> None:
    assert rewrite(HTTPS, "X-Content-Security-Policies", "a", csps=True) == "a"
    assert rewrite(HTTPS, "Location", OLD + "/", csps=True) == NEW + "/"


@pytest.mark.parametrize(
    "public", ["", "a b", "a\r\nX: y", "a\n", 'a"', "a>", "a/", "a@b", "a;b", "a,b", "[::1", "a:b"]
)
def test_nothing_is_rewritten_to_what_is_no_authority(public: str) -> None:
    for name, value in (
        ("Location", OLD),
        ("Refresh", "1;url=" + OLD),
        ("Link", f"<{OLD}>"),
        ("Set-Cookie", "a=b; Domain=my.private.api"),
    ):
        assert rewrite(HTTPS, name, value, public) == value


def test_the_scheme_follows_the_client() -> None:
    assert rewrite(HTTPS, "Location", OLD + "/a", "[::1]", "https") == "https://[::1]/a"


def test_the_same_origin_is_no_change() -> None:
    value = OLD + "/a"
    assert rewrite(HTTPS, "Location", value, "my.private.api", "https") == value


NAMES = st.sampled_from(
    [b"Location", b"content-location", b"Refresh", b"Link", b"Set-Cookie", b"Date", b"CSP"]
)
VALUES = st.lists(
    st.sampled_from(
        [b"https:", b"http:", b"//", b"my.private.api", b"my.private", b".api", b"a=", b"; Domain="]
        + [b"5;url=", b"<", b">", b'"', b"'", b"\\", b"/", b"?", b":443", b"@", b" ", b",", b";"]
    )
    | st.binary(max_size=3),
    max_size=10,
).map(b"".join)
FIELDS: st.SearchStrategy[Headers] = st.lists(st.tuples(NAMES, VALUES), max_size=5)


@given(FIELDS)
def test_without_the_origin_the_list_is_the_same(headers: Headers) -> None:
    block = b"\n".join(value.lower() for _, value in headers)
    assume(b"//my.private.api" not in block)
    assume(not re.search(rb"domain=[. \t\"]*(my\.private\.api|api)", block))
    assert HTTPS.rewrite(headers, b"http", b"a.example", True) is headers


EITHER = re.compile(rb"(?i)(?:https?:)?//(?:my\.private\.api(?::443|:)?|b\.example:3000)")


@given(FIELDS)
def test_only_origins_and_domains_change(headers: Headers) -> None:
    result = HTTPS.rewrite(headers, b"http", b"b.example:3000", False)
    assert [name for name, _ in result] == [name for name, _ in headers]
    for (_, old), (name, new) in zip(headers, result, strict=True):
        assert new.count(b"\r") == old.count(b"\r")
        assert new.count(b"\n") == old.count(b"\n")
        if name == b"Set-Cookie":
            assert new.split(b";")[0] == old.split(b";")[0]
        else:
            assert EITHER.sub(b"X", new) == EITHER.sub(b"X", old)


@given(st.text("ab.", min_size=1, max_size=5), st.sampled_from(["/", "?", "#", ""]))
def test_longer_hosts_are_other_hosts(more: str, end: str) -> None:
    value = f"https://my.private.api{more}{end}"
    assert rewrite(HTTPS, "Location", value) == value
