"""Path routing: which target a path is for, as which path it gets there, and what the file says."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sockgw.outer.pathrouting import Paths
from sockgw.outer.paths import PathRefused, resolve
from sockgw.outer.targetsfile import parse_targets
from sockgw.yamlfile import ConfigError


def paths(text: str) -> Paths:
    """Return the paths of a host ``h``, from what stands below it."""
    found = parse_targets(f"targets: {{h: {{{text}}}}}", "t.yaml").match("h")
    assert isinstance(found, Paths)
    return found


def sent(to: Paths, request_target: str) -> tuple[str, str] | None:
    """Return who gets a request, and with which target."""
    found = to.match(request_target.encode())
    if found is None:
        return None
    target, resolved = found
    assert resolved.target.partition(b"?")[0].decode() == resolved.path
    return target.name, resolved.target.decode()


SHOP = paths("""
    hostname: rest, paths: {
      /api: {hostname: a}, /api/v1/: {hostname: v}, /static: {service: s},
      /static/x/y: {hostname: y},
      /c++: {hostname: c, strip-prefix: true}, /caf%C3%A9: {hostname: f}}""")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "h"),
        ("/x", "h"),
        ("/api", "h/api"),
        ("/api/", "h/api"),
        ("/api/x", "h/api"),
        ("/api?x=/static", "h/api"),
        ("/apix", "h"),
        ("/ap", "h"),
        ("/API", "h"),
        ("/x/api", "h"),
        ("/api/v", "h/api"),
        ("/api/v1", "h/api/v1"),
        ("/api/v1/", "h/api/v1"),
        ("/api/v1/x/y/z", "h/api/v1"),
        ("/api/v10", "h/api"),
        ("/static/api/v1", "h/static"),
        ("/static/x", "h/static"),
        ("/static/x/z", "h/static"),
        ("/static/x/y/z", "h/static/x/y"),
        ("/caf%c3%a9/x", "h/caf%C3%A9"),
    ],
)
def test_the_longest_prefix_of_whole_segments_wins(path: str, name: str) -> None:
    found = sent(SHOP, path)
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize(
    ("path", "name", "target"),
    [
        ("/api/../static/x", "h/static", "/static/x"),
        ("/api/%2e%2e/x?y", "h", "/x?y"),
        ("/api/./v1", "h/api/v1", "/api/v1"),
        ("/x/..//api//v1//", "h/api/v1", "/api/v1/"),
        ("//api", "h/api", "/api"),
        ("/%61pi/%2E", "h/api", "/api/"),
        ("/../../api", "h/api", "/api"),
        ("/c%2b%2B/x", "h/c++", "/x"),
        ("/c++/%2b", "h/c++", "/%2B"),
        ("/api/x;y=1", "h/api", "/api/x;y=1"),
        ("/api/v1;x/y", None, ""),
        ("/api;x/y", None, ""),
        ("/api;/y", None, ""),
        ("/api%3Bx/y", None, ""),
        ("/api/..;/static", None, ""),
        ("/api/%2e%2e;x/static", None, ""),
        ("/api/..%2fstatic", None, ""),
        ("/api%2f..%2fstatic", None, ""),
        ("/api\\..\\static", None, ""),
        ("/api/%5c..", None, ""),
        ("/api/%252e%252e/static", None, ""),
        ("/api/%c0%ae%c0%ae/static", None, ""),
        ("/api%00", None, ""),
        ("api", None, ""),
        ("http://h/api", None, ""),
        ("", None, ""),
    ],
)
def test_one_reading_or_none(path: str, name: str | None, target: str) -> None:
    if name is None:
        with pytest.raises(PathRefused):
            SHOP.match(path.encode())
    else:
        assert sent(SHOP, path) == (name, target)


def test_parameters_that_change_nothing_pass() -> None:
    only = paths("paths: {/api: {hostname: a}, /: {hostname: r}}")
    assert sent(only, "/x;y/api;z") == ("h/", "/x;y/api;z")
    assert sent(only, "/api/a;b") == ("h/api", "/api/a;b")


@pytest.mark.parametrize(
    ("keys", "path", "target"),
    [
        ("strip-prefix: true", "/api/v1", "/"),
        ("strip-prefix: true", "/api/v1/", "/"),
        ("strip-prefix: true", "/api/v1/x/?q", "/x/?q"),
        ("strip-prefix: true", "/api/v1?q", "/?q"),
        ("strip-prefix: false", "/api/v1/x", "/api/v1/x"),
        ("strip-prefix: /api", "/api/v1/x", "/v1/x"),
        ("strip-prefix: /api/", "/api/v1", "/v1"),
        ("strip-prefix: /api/v1", "/api/v1/x", "/x"),
        ("strip-prefix: /", "/api/v1/x", "/api/v1/x"),
        ("add-prefix: /app", "/api/v1/x?q", "/app/api/v1/x?q"),
        ("add-prefix: /app/", "/api/v1", "/app/api/v1"),
        ("add-prefix: /", "/api/v1", "/api/v1"),
        ("strip-prefix: true, add-prefix: /app", "/api/v1", "/app"),
        ("strip-prefix: true, add-prefix: /app", "/api/v1/", "/app/"),
        ("strip-prefix: true, add-prefix: /app", "/api/v1/x?q=/api/v1", "/app/x?q=/api/v1"),
    ],
)
def test_prefixes_are_taken_off_and_put_on(keys: str, path: str, target: str) -> None:
    to = paths(f"paths: {{/api/v1: {{hostname: a, {keys}}}}}")
    assert sent(to, path) == ("h/api/v1", target)


def test_what_no_prefix_stands_for() -> None:
    assert sent(paths("paths: {/api: {hostname: a}}"), "/x") is None
    assert sent(paths("paths: {/api: {hostname: a}}"), "*") is None
    for text in (
        "hostname: r, paths: {/api: {hostname: a}}",
        "socket: /run/r, paths: {/api: {hostname: a}}",
        "service: r, paths: {/api: {hostname: a}}",
    ):
        assert sent(paths(text), "/x") == ("h", "/x")
        assert sent(paths(text), "*") == ("h", "*")
    slash = paths("paths: {/api: {hostname: a}, /: {hostname: r, add-prefix: /app}}")
    assert sent(slash, "/x") == ("h/", "/app/x")
    assert sent(slash, "/") == ("h/", "/app/")
    assert sent(slash, "*") == ("h/", "*")


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("{hostname: x}", "https://x:443"),
        ("{hostname: '::1', protocol: http, http2: true}", "http://[::1]:80, HTTP/2"),
        ("{service: s}", "service s"),
        ("{service: s, protocol: udp, listen: 'udp:53'}", "udp service s, from udp:53"),
        ("{socket: /run/x}", "http://localhost:80 at unix:/run/x"),
        ("{socket: /x, protocol: tls, proxy-protocol: 2}", "tls at unix:/x, PROXY protocol 2"),
        ("{hostname: x, protocol: tcp, port: 1, listen: '2'}", "tcp://x:1, from 2"),
        ("{paths: {/a: {service: s, strip-prefix: true}}}", "service s, /a/… as /…"),
        ("{paths: {/a: {service: s, add-prefix: /b}}}", "service s, /… as /b/…"),
    ],
)  # fmt: skip
def test_where_it_leads_for_people(text: str, destination: str) -> None:
    (target,) = parse_targets(f"targets: {{h: {text}}}", "t.yaml")
    assert target.destination == destination


def test_each_has_keys_of_its_own() -> None:
    text = """
        hostname: r, identifier: x, hold: 1, preserve-host: true, policy: {/a: GET}, paths: {
          /api: {hostname: a, protocol: http, port: 8080},
          /b: {socket: /run/b.sock, identifier: y, policy: {/b: PUT}, hold: 0, http2: true}}"""
    rest, api, b = paths(text)
    assert (rest.name, rest.prefix, rest.hold, rest.preserve_host) == ("h", "", 1e-3, True)
    assert (api.name, api.protocol, api.port, api.identifiers) == ("h/api", "http", 8080, None)
    assert (api.hold, api.preserve_host, api.policy.unrestricted) == (None, False, True)
    assert (b.socket, b.identifiers, b.hold, b.http2) == ("/run/b.sock", {"y"}, 0, True)
    assert b.policy.allows("PUT", "/b")


def test_all_are_targets_of_the_file() -> None:
    text = "h: {hostname: r, paths: {/a: {hostname: a}, /b: {hostname: b}}}, i: {service: s}"
    targets = parse_targets(f"targets: {{{text}}}", "t.yaml")
    assert [target.name for target in targets] == ["h", "h/a", "h/b", "i"]
    assert len(targets) == 4
    wild = parse_targets('targets: {"*.x.y": {paths: {/a/: {hostname: a}}}}', "t.yaml")
    assert [target.name for target in wild] == ["*.x.y/a"]
    assert isinstance(wild.match("q.x.y"), Paths)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("{hostname: h, paths: {}}", 27, "these are no paths"),
        ("{hostname: h, paths: [/a]}", 27, "these are no paths"),
        ("{paths: {/a: x}}", 19, "this is no target"),
        ("{paths: {a: {hostname: h}}}", 15, "'a' is no path"),
        ("{paths: {'*': {hostname: h}}}", 15, "'*' is no path"),
        ("{paths: {'': {hostname: h}}}", 15, "'' is no path"),
        ("{paths: {'/a?b': {hostname: h}}}", 15, "not in normal form; expected '/a'"),
        ("{paths: {/a/../b: {hostname: h}}}", 15, "not in normal form; expected '/b'"),
        ("{paths: {/a//b: {hostname: h}}}", 15, "not in normal form; expected '/a/b'"),
        ("{paths: {/%61: {hostname: h}}}", 15, "not in normal form; expected '/a'"),
        ("{paths: {/a%2fb: {hostname: h}}}", 15, "stands for a slash"),
        ("{paths: {'/a#b': {hostname: h}}}", 15, "a character that is not allowed"),
        ("{paths: {/é: {hostname: h}}}", 15, "a character that is not allowed"),
        ("{paths: {'/a;b': {hostname: h}}}", 15, "'/a;b' has parameters"),
        ("{paths: {'/a%3Bb': {hostname: h}}}", 15, "has parameters"),
        (f"{{paths: {{/{'a' * 255}: {{hostname: h}}}}}}", 15, "at most 255 bytes"),
        ("{paths: {/a: {hostname: h}, /a/: {hostname: h}}}", 34, "'/a/' stands twice, first as"),
        ("{paths: {/+: {hostname: h}, /%2B: {hostname: h}}}", 34, "stands twice, first as '/+'"),
        ("{hostname: h, paths: {/: {hostname: h}}}", 28, "so does the host's own target"),
        ("{policy: {/: GET}, paths: {/a: {hostname: h}}}", 7, "for the host's own target"),
        ("{paths: {/a: {hostname: h}}, identifier: x}", 35, "for the host's own target"),
        ("{paths: {/a: {}}}", 15, "hostname is missing"),
        ("{paths: {/a: {hostname: h, paths: {}}}}", 33, "'paths' is unknown"),
        ("{paths: {/a: {hostname: h, listen: '1'}}}", 33, "'listen' is unknown"),
        ("{paths: {/a: {hostname: h, policy: {x: GET}}}}", 42, "'x' can never match"),
        ("{paths: {/a: {hostname: h, protocol: tcp}}}", 43, "protocol tcp is not possible for a"),
        ("{paths: {/a: {hostname: h, protocol: gopher}}}", 43, "'gopher' is no protocol"),
        ("{paths: {/a: {hostname: h, strip-prefix: 1}}}", 47, "1 is no path; expected true, f"),
        ("{paths: {/a: {hostname: h, strip-prefix: /b}}}", 47, "'/a' does not begin with '/b'"),
        ("{paths: {/a: {hostname: h, strip-prefix: /a/b}}}", 47, "'/a' does not begin with '/a/b'"),
        ("{paths: {/ab: {hostname: h, strip-prefix: /a}}}", 48, "'/ab' does not begin with '/a'"),
        ("{paths: {/a: {hostname: h, add-prefix: true}}}", 45, "True is no path"),
        ("{paths: {/a: {hostname: h, add-prefix: b}}}", 45, "'b' is no path"),
        ("{paths: {/a: {hostname: h, add-prefix: /..}}}", 45, "normal form; expected '/'"),
        ("{hostname: h, strip-prefix: true}", 20, "'strip-prefix' is unknown"),
        ("{protocol: tcp, listen: '1', hostname: h, port: 1, paths: {/a: {hostname: h}}}", 57,
         "paths is not possible with protocol tcp"),
        ("{protocol: tls, hostname: h, paths: {/a: {hostname: h}}}", 35, "paths is not possible"),
    ],
)  # fmt: skip
def test_errors_of_the_file(text: str, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_targets(f"targets:\n  a: {text}", "t.yaml")
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (2, column)


# ---------------------------------------------------------------------- properties

segment = st.text("abAB%+;.-~", min_size=1, max_size=4)
path = st.lists(segment, max_size=4).map(lambda parts: "/" + "/".join(parts))
junk = st.lists(
    st.sampled_from(
        ["/", "//", "/.", "/..", "/%2e", "/%2E%2e", "/a", "/b", "/%61", "/a;x", ";x", "%3B", "/;"]
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: "".join(["/", *parts]))


@st.composite
def hosts(draw: st.DrawFn) -> dict[str, tuple[str, str]]:
    """Return prefixes, each with what is taken off and put on."""
    prefixes = draw(st.sets(st.sampled_from(["", "/a", "/b", "/a/a", "/a/b", "/b/a/b", "/B"])))
    result = {}
    for prefix in prefixes:
        count = prefix.count("/")
        strip = "/".join(prefix.split("/")[: 1 + draw(st.integers(0, count))])
        result[prefix] = strip, draw(st.sampled_from(["", "/x", "/a/b"]))
    return result


def naive(routes: dict[str, tuple[str, str]], normal: str) -> tuple[str, str] | None:
    for prefix in sorted(routes, key=len, reverse=True):
        if (normal + "/").startswith(prefix + "/"):
            strip, add = routes[prefix]
            return prefix, add + normal.removeprefix(strip) or "/"
    return None


@given(hosts(), junk | path)
def test_like_a_search_through_all_prefixes(
    routes: dict[str, tuple[str, str]], request: str
) -> None:
    assume(routes)
    entries = ", ".join(
        f"{prefix or '/'}: {{hostname: h, strip-prefix: {strip or '/'}, add-prefix: {add or '/'}}}"
        for prefix, (strip, add) in routes.items()
    )
    to = paths(f"paths: {{{entries}}}")
    try:
        normal = resolve(request.encode()).path
    except PathRefused:
        with pytest.raises(PathRefused):
            to.match(request.encode())
        return
    expected = naive(routes, normal)
    # As a server reads it that drops parameters, and one that does not: both or neither.
    bare = "/".join(part.replace("%3B", ";").partition(";")[0] for part in normal.split("/"))
    other = naive(routes, bare)
    if (expected and expected[0]) != (other and other[0]):
        with pytest.raises(PathRefused):
            to.match(request.encode())
        return
    found = to.match(request.encode())
    if expected is None:
        assert found is None
        return
    assert found is not None
    target, resolved = found
    assert (target.name, resolved.path) == ("h" + (expected[0] or "/"), expected[1])
    # What the policy judges and what the origin gets is one path, with one reading.
    assert resolved.target == resolved.path.encode()
    assert resolve(resolved.target) == resolved


@given(junk | path, st.text("/.;%2e&=#\\é", max_size=6))
def test_a_query_decides_nothing_and_stays(request: str, query: str) -> None:
    try:
        plain = SHOP.match(request.encode())
        asked = SHOP.match(f"{request}?{query}".encode())
    except PathRefused:
        return
    assert plain is not None
    assert asked is not None
    assert asked[0] is plain[0]
    assert asked[1] == (plain[1].path, plain[1].target + b"?" + query.encode())


def test_the_time_does_not_grow_with_the_number_of_paths() -> None:
    few, many = (
        paths(
            "hostname: r, paths: {"
            + ", ".join(f"/p{number}/x: {{hostname: h}}" for number in range(count))
            + "}"
        )
        for count in (2, 2000)
    )
    # Looked at are as many segments as the longest prefix has, however long the path is.
    for to in (few, many):
        assert to._depth == 2
        assert sent(to, "/p1/x" + "/y" * 3000) is not None
    assert len(few._root.below["p1"].below) == len(many._root.below["p1"].below) == 1
