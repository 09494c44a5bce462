"""The admin page: who may see it, what it shows, and that nothing on it is anything but text."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.web.test.requesthelper import DummyRequest

from sockgw.outer import admin
from sockgw.outer.admin import AdminResource, Failure, TargetView, TunnelView

NOW = 1795374429.0  # 2026-11-22 19:07:09 UTC
OFFICE = TunnelView(
    identifier="office",
    address="192.0.2.1",
    fingerprint="SHA256:abc",
    since=NOW - 7500,
    streams=3,
    bytes_in=1536,
    bytes_out=5,
    round_trip=0.01234,
    suspended=False,
    resumes=3,
    takeovers=1,
    resent=2048,
    passed_over=["wiki.example.org"],
)
TARGET = TargetView(
    name="*.example.org",
    destination="https://intranet:443",
    policy=["/a GET", "^/b *"],
    identifiers=["office", "home"],
)
FAILURE = Failure(
    time=NOW - 60,
    target="a.example.org",
    identifier="office",
    status=502,
    reason="connection refused",
    request_id="4f7e1b2c",
)


class State:
    def __init__(
        self,
        tunnels: Sequence[TunnelView] = (OFFICE,),
        targets: Sequence[TargetView] = (TARGET,),
        failures: Sequence[Failure] = (FAILURE,),
    ) -> None:
        self._all = tunnels, targets, failures

    def tunnels(self) -> Sequence[TunnelView]:
        return self._all[0]

    def targets(self) -> Sequence[TargetView]:
        return self._all[1]

    def failures(self) -> Sequence[Failure]:
        return self._all[2]


def basic(password: str, user: str = "") -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


class Browser:
    """Asks the page from some address."""

    def __init__(self, password: str | None = "secret", state: State | None = None) -> None:
        self.clock = Clock()
        wall_clock = lambda: NOW + self.clock.seconds()  # noqa: E731
        self.resource = AdminResource(password, state or State(), self.clock, wall_clock)
        self.headers: dict[bytes, bytes] = {}

    def get(
        self,
        authorization: bytes | None = None,
        address: Any = None,
        method: bytes = b"GET",
        **arguments: bytes,
    ) -> tuple[int, str]:
        request: Any = DummyRequest([b"admin"])
        request.method = method
        request.args = {name.encode(): [value] for name, value in arguments.items()}
        request.client = address or IPv4Address("TCP", "192.0.2.9", 1234)
        if authorization is not None:
            request.requestHeaders.setRawHeaders(b"authorization", [authorization])
        body = self.resource.render(request)
        self.headers = {
            name.lower(): values[0] for name, values in request.responseHeaders.getAllRawHeaders()
        }
        return request.responseCode or 200, body.decode()

    def page(self) -> str:
        status, body = self.get(basic("secret"))
        assert status == 200
        return body


class Cells(HTMLParser):
    """The text of each cell, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")
        self._inside = tag == "td"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


@pytest.mark.parametrize("password", [None, ""])
def test_there_is_no_page_without_a_password(password: str | None) -> None:
    browser = Browser(password)
    for authorization in (None, basic(""), basic("secret")):
        assert browser.get(authorization) == (404, "Not Found\n")
        assert b"www-authenticate" not in browser.headers


@pytest.mark.parametrize("password", ["secret", "süß:1", " "])
@pytest.mark.parametrize("user", ["", "admin"])
def test_any_user_with_the_password(password: str, user: str) -> None:
    assert Browser(password).get(basic(password, user))[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Basic",
        b"Basic !",
        b"Basic " + base64.b64encode(b"secret"),
        b"Basic " + base64.b64encode(b"secret:"),
        b"Basic " + base64.b64encode(b"\xff:\xff"),
        b"Bearer secret",
        basic("Secret"),
        basic("secret "),
        basic(""),
    ],
)
def test_nobody_else(authorization: bytes | None) -> None:
    browser = Browser()
    assert browser.get(authorization) == (401, "Unauthorized\n")
    assert browser.headers[b"www-authenticate"] == b'Basic realm="sockgw", charset="UTF-8"'


@given(st.binary())
def test_junk_opens_nothing(junk: bytes) -> None:
    assert Browser().get(junk.replace(b"\r", b"").replace(b"\n", b""))[0] == 401
    assert Browser().get(b"Basic " + base64.b64encode(junk))[0] == 401


def test_the_password_is_not_kept() -> None:
    resource = Browser("opensesame").resource
    assert "opensesame" not in repr(vars(resource))


def test_guessing_is_bounded() -> None:
    browser = Browser()
    for _ in range(10):
        assert browser.get(basic("wrong"))[0] == 401
        browser.clock.advance(1)
    assert browser.get(basic("secret")) == (429, "Too Many Requests\n")
    assert browser.headers[b"retry-after"] == b"60"
    # Others are not concerned, and after a minute it may go on.
    assert browser.get(basic("secret"), IPv4Address("TCP", "192.0.2.10", 1))[0] == 200
    browser.clock.advance(58)
    assert browser.get(basic("secret"))[0] == 429
    browser.clock.advance(1)
    assert browser.get(basic("secret"))[0] == 200


def test_a_browser_that_has_not_asked_yet_guesses_nothing() -> None:
    browser = Browser()
    for _ in range(20):
        assert browser.get()[0] == 401
    assert browser.get(basic("secret"))[0] == 200


def test_a_network_of_ipv6_counts_as_one() -> None:
    browser = Browser()
    for number in range(10):
        browser.get(basic("wrong"), IPv6Address("TCP", f"2001:db8::{number}", 1))
    assert browser.get(basic("x"), IPv6Address("TCP", "2001:db8::ffff", 1))[0] == 429
    assert browser.get(basic("x"), IPv6Address("TCP", "2001:db8:0:1::1", 1))[0] == 401
    assert browser.get(basic("x"), IPv6Address("TCP", "::ffff:192.0.2.1", 1))[0] == 401
    assert browser.get(basic("x"), IPv6Address("TCP", "fe80::1%eth0", 1))[0] == 401
    assert browser.get(basic("x"), UNIXAddress("/run/admin"))[0] == 401


def test_the_table_of_guessers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_MAX_ADDRESSES", 20)
    browser = Browser()
    for number in range(100):
        browser.get(basic("wrong"), IPv4Address("TCP", f"192.0.2.{number}", 1))
    assert len(browser.resource._attempts._failures) == 20


def test_what_it_shows() -> None:
    page = Browser().page()
    assert Cells(page).cells == [
        "office",
        "connected\npassed over for wiki.example.org",
        "192.0.2.1",
        "SHA256:abc",
        "2026-11-22 17:02:09\n2 h 5 min",
        "3",
        "1.5 KiB",
        "5 B",
        "3\n1 taken over",
        "2.0 KiB",
        "12.3 ms",
        "*.example.org",
        "https://intranet:443",
        "/a GET\n^/b *",
        "office\nhome",
        "2026-11-22 19:06:09",
        "a.example.org",
        "office",
        "502",
        "connection refused",
        "4f7e1b2c",
    ]
    assert '<meta http-equiv="refresh" content="5">' in page


def test_nothing_to_show() -> None:
    page = Browser(state=State((), (), ())).page()
    assert Cells(page).cells == []
    assert "No inner layer is connected." in page


@given(st.text())
def test_everything_is_text(text: str) -> None:
    text = "x" + text.replace("\r", "").replace("\0", "")  # which HTML has no way to write
    state = State(
        [TunnelView(text, text, text, NOW, 0, 0, 0, None, True, 0, 0, 0, [text])],
        [TargetView(text, text, [text], [text])],
        [Failure(NOW, text, text, 502, text, text)],
    )
    hostile, harmless = Cells(Browser(state=state).page()), Cells(Browser().page())
    assert hostile.tags == harmless.tags
    assert hostile.cells.count(text) == 11


def test_markup_is_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    page = Browser(state=State([], [TargetView(hostile, "", [], [])], [])).page()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_long_tables_are_cut() -> None:
    page = Browser(state=State((), [TARGET] * 10_000, ())).page()
    assert len(Cells(page).cells) == 500 * 4
    assert "and 9500 more" in page


def test_headers() -> None:
    browser = Browser()
    page = browser.page()
    style = re.search("<style>(.*)</style>", page, re.DOTALL)
    assert style is not None
    expected = base64.b64encode(hashlib.sha256(style[1].encode()).digest())
    policy = browser.headers[b"content-security-policy"]
    assert policy.startswith(b"default-src 'none'; style-src 'sha256-%b';" % expected)
    assert b"frame-ancestors 'none'" in policy
    assert browser.headers[b"content-type"] == b"text/html; charset=utf-8"
    assert browser.headers[b"x-frame-options"] == b"DENY"
    assert browser.headers[b"x-content-type-options"] == b"nosniff"
    assert browser.headers[b"referrer-policy"] == b"no-referrer"
    assert browser.headers[b"cache-control"] == b"no-store"
    assert "style=" not in page


def test_head() -> None:
    browser = Browser()
    length = len(browser.page().encode())
    assert browser.get(basic("secret"), method=b"HEAD") == (200, "")
    assert int(browser.headers[b"content-length"]) == length


def test_json() -> None:
    browser = Browser()
    status, body = browser.get(basic("secret"), format=b"json")
    assert status == 200
    assert browser.headers[b"content-type"] == b"application/json"
    view = json.loads(body)
    assert view["tunnels"][0]["identifier"] == "office"
    assert view["tunnels"][0]["round_trip"] == 0.01234
    assert view["tunnels"][0]["suspended"] is False
    assert view["tunnels"][0]["resumes"] == 3
    assert view["tunnels"][0]["takeovers"] == 1
    assert view["tunnels"][0]["resent"] == 2048
    assert view["tunnels"][0]["passed_over"] == ["wiki.example.org"]
    assert view["targets"][0]["policy"] == ["/a GET", "^/b *"]
    assert view["failures"][0]["status"] == 502
    assert browser.get(format=b"json")[0] == 401


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1024.0 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (2000 * 1024**4, "2000.0 TiB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert admin._size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (86400, "1 d"), (90061, "1 d 1 h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert admin._age(seconds) == text
