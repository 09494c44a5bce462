"""Normal forms of request targets: what policy and origin both see, and what is refused."""

import posixpath
import re
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sockgw.outer.paths import MAX_PATH, PathRefused, Resolved, resolve


@pytest.mark.parametrize(
    ("target", "normal"),
    [
        ("/", "/"),
        ("/helloworld", "/helloworld"),
        ("/helloworld/", "/helloworld/"),
        ("/a/b.html", "/a/b.html"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/~joe/@x/a,b/(1)/$&'*+=:!", "/~joe/@x/a,b/(1)/$&'*+=:!"),
        ('/"<>[]^`{|}', '/"<>[]^`{|}'),
        # RFC 3986, section 6.2.2.2: unreserved characters need no escape
        ("/%61%5A%30%2d%2E%5f%7e", "/aZ0-._~"),
        # section 6.2.2.1: other escapes in upper case
        ("/caf%c3%a9%3f%23%3b", "/caf%C3%A9%3F%23%3B"),
        ("/%20", "/%20"),
        ("/100%25", "/100%25"),
        ("/100%25ok", "/100%25ok"),
        # section 5.2.4: dot segments
        ("/a/b/c/./../../g", "/a/g"),
        ("/mid/content=5/../6", "/mid/6"),
        ("/..", "/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/a/b/../", "/a/"),
        ("/public/%2e%2e/admin", "/admin"),
        ("/public/%2E./admin", "/admin"),
        ("/public/.%2e/admin", "/admin"),
        ("/public/%2e/admin", "/public/admin"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/..a/.b/c..", "/..a/.b/c.."),
        # empty segments are merged, before dot segments are removed
        ("//admin", "/admin"),
        ("/a//b///", "/a/b/"),
        ("/public//../admin", "/admin"),
        ("/.//admin", "/admin"),
        ("//example.org/x", "/example.org/x"),
    ],
)
def test_normal_forms(target: str, normal: str) -> None:
    assert resolve(target.encode()) == Resolved(normal, normal.encode())


@pytest.mark.parametrize(
    "target",
    [
        "",
        "?",
        "helloworld",
        "*x",
        "*?x",
        "http://example.org/",
        "example.org:443",
        "/a%2fb",
        "/a%2Fb",
        "/a\\b",
        "/a%5cb",
        "/a%5Cb",
        "/..\\admin",
        "/a%00",
        "/a%00.png",
        "/a%0a",
        "/a%0D%0Ab",
        "/a%1f",
        "/a%7F",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%u002e",
        "/a%%32%65",
        "/%%32e",
        "/%+2",
        "/..;/admin",
        "/public/..;x=y/admin",
        "/public/.;x/admin",
        "/public/.%3bx/admin",
        "/public/%2e%2e;/admin",
        "/public/%2e%2E%3B/admin",
        "/;/admin",
        "/a/;x=y/admin",
        "/..;",
        "/%252e%252e/admin",
        "/%252E%252E/admin",
        "/a%252fb",
        "/a%252Fb",
        "/a%255cb",
        "/a%2500",
        "/%25%32%65",
        "/%25%32e",
        "/%25252e",
        "/%2561dmin",
        "/%c0%ae%c0%ae/admin",
        "/a%C0%AFb",
        "/%c1%a1dmin",
        "/%e0%80%ae",
        "/%E0%9F%BF",
        "/%f0%80%80%ae",
        "/a#b",
        "/a?b#c",
        "/a b",
        "/a?b c",
        "/a\tb",
        "/a\r\nb",
        "/a\n",
        "/a?b\n",
        "/\x7f",
        "/a?\x00",
    ],
)
def test_refused(target: str) -> None:
    with pytest.raises(PathRefused) as refusal:
        resolve(target.encode())
    assert str(refusal.value).isprintable()  # the text goes to the client


@pytest.mark.parametrize("target", [b"/caf\xc3\xa9", b"/caf\xe9", b"/\xef\xbc\x8f", b"/a?\xe9"])
def test_raw_bytes_beyond_ascii_are_refused(target: bytes) -> None:
    with pytest.raises(PathRefused):
        resolve(target)


@pytest.mark.parametrize(
    ("target", "path", "sent"),
    [
        (b"/a?", "/a", b"/a?"),
        (b"/a?x=%2f..%2f&y=/../%00%zz\\", "/a", b"/a?x=%2f..%2f&y=/../%00%zz\\"),
        (b"/a/../b?c?d", "/b", b"/b?c?d"),
        (b"/%61?%61", "/a", b"/a?%61"),
        (b"//?//", "/", b"/?//"),
    ],
)
def test_the_query_stays_as_it_came(target: bytes, path: str, sent: bytes) -> None:
    assert resolve(target) == Resolved(path, sent)


def test_an_escaped_question_mark_starts_no_query() -> None:
    assert resolve(b"/a%3fb?c") == Resolved("/a%3Fb", b"/a%3Fb?c")


def test_asterisk() -> None:
    assert resolve(b"*") == Resolved("*", b"*")


def test_length_is_bounded() -> None:
    longest = b"/" + b"a" * (MAX_PATH - 1)
    assert resolve(longest + b"?" + b"q" * 20_000).path == longest.decode()
    with pytest.raises(PathRefused):
        resolve(longest + b"a")


# Pieces of which attacks are made, with enough plain text between them to pass at times.
PLAIN = ["/", "/", "/", ".", "..", "a", "b", "admin", "~", "-", ":", "@", "*", "'", "{"]
ESCAPED = ["%61", "%2e", "%2E", "%2e%2e", "%25", "%3b", "%3B", "%20", "%7e", "%C3%A9"]
HOSTILE = ["%252e", ";", "..;", ".;x", "%c0%ae", "%2f", "%5c", "\\", "%00", "%", "%2"]
PIECES = st.sampled_from(PLAIN + ESCAPED + HOSTILE)
TARGETS = st.one_of(
    st.lists(PIECES, max_size=14).map(lambda pieces: "/" + "".join(pieces)),
    st.text(st.sampled_from("/.%2eE5fFcC;ab"), max_size=20).map(lambda text: "/" + text),
)


def resolved(target: str) -> str:
    """Return the path that is matched and sent; discard the example where it is refused."""
    try:
        result = resolve(target.encode())
    except PathRefused:
        assume(False)
        raise
    assert result.target == result.path.encode()
    return result.path


@settings(deadline=None)
@given(TARGETS)
def test_idempotent(target: str) -> None:
    path = resolved(target)
    assert resolved(path) == path


@settings(deadline=None)
@given(TARGETS)
@example("/a/%2e%2e/b")
@example("/a/../..")
def test_no_dot_segment_and_no_empty_one_is_left(target: str) -> None:
    path = resolved(target)
    assert not re.search(r"//|/(?:\.|%2e){1,2}(?:/|;|%3b|$)", path, re.IGNORECASE)


@settings(deadline=None)
@given(TARGETS)
def test_an_origin_that_decodes_and_resolves_naively_reads_the_same(target: str) -> None:
    path = resolved(target)
    once = unquote(path)
    assert once.count("/") == path.count("/")
    assert posixpath.normpath(once) == (once.rstrip("/") or "/")
    assert posixpath.normpath(unquote(once)) == posixpath.normpath(once)


@settings(deadline=None)
@given(TARGETS)
def test_the_origin_would_have_read_the_same_from_the_original(target: str) -> None:
    path = resolved(target)
    # A leading // is the one thing that normpath keeps, for POSIX's sake.
    naive = posixpath.normpath("/" + unquote(target).lstrip("/"))
    assert posixpath.normpath(unquote(path)) == naive


@settings(deadline=None)
@given(TARGETS)
def test_an_origin_that_drops_path_parameters_leaves_no_directory(target: str) -> None:
    path = resolved(target)
    segments = [unquote(segment).partition(";")[0] for segment in path.split("/")]
    assert all(segment not in ("", ".", "..") for segment in segments[1:-1])
    assert segments[-1] not in (".", "..")


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_junk_is_resolved_or_refused(junk: bytes) -> None:
    for target in (junk, b"/" + junk):
        try:
            path = resolve(target).path
        except PathRefused:
            continue
        assert path == "*" or path.startswith("/")
        assert path.isascii()
        assert path.isprintable()
