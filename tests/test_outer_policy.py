"""Policies: what they allow, which are refused when read, and that no path makes them slow."""

import time

import pytest

from sockgw.outer.policy import Policy, forbidden_reason, parse_policy
from sockgw.yamlfile import ConfigError, load_yaml


def policy(text: str) -> Policy:
    return parse_policy(load_yaml(text, "p.yaml"))


def test_the_seeds_example() -> None:
    p = policy('"/helloworld":\n  - "GET"\n  - "POST"\n')
    assert not p.unrestricted
    assert p.allows("GET", "/helloworld")
    assert p.allows("POST", "/helloworld")
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE"):
        assert not p.allows(method, "/helloworld")
    for path in ("/", "/helloworld/", "/helloworld2", "/x/helloworld", "/HelloWorld", "*"):
        assert not p.allows("GET", path)


@pytest.mark.parametrize(
    "text", ['"*"', '{"*": "*"}', '{"*": ["GET", "*"]}', '{/a: GET, "*": "*"}']
)
def test_unrestricted(text: str) -> None:
    p = policy(text)
    assert p.unrestricted
    assert p.allows("BREW", "/anything")
    assert p.allows("OPTIONS", "*")


def test_omitted_is_unrestricted() -> None:
    assert parse_policy(None).unrestricted


def test_empty_allows_nothing() -> None:
    p = policy("{}")
    assert not p.unrestricted
    assert not p.allows("GET", "/")


def test_any_path() -> None:
    p = policy('{"*": [GET, HEAD]}')
    assert not p.unrestricted
    assert p.allows("GET", "/a/b")
    assert p.allows("HEAD", "*")
    assert not p.allows("POST", "/a/b")


def test_any_method() -> None:
    p = policy('{/a: "*"}')
    assert not p.unrestricted
    assert p.allows("PROPFIND", "/a")
    assert not p.allows("GET", "/b")


@pytest.mark.parametrize("methods", ["GET", "get", "[Get]", '["POST", "get"]'])
def test_methods_in_any_case_and_alone(methods: str) -> None:
    p = policy(f"/a: {methods}")
    assert p.allows("GET", "/a")
    assert p.allows("get", "/a")
    assert not p.allows("GETS", "/a")
    assert not p.allows("PUT", "/a")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("^/api/", "/api/x", True),
        ("^/api/", "/x/api/", False),
        ("^/api/[0-9]+$", "/api/12", True),
        ("^/api/[0-9]+$", "/api/12a", False),
        ("^/a|/b", "/x/b", True),  # searched, not anchored by us: as JavaScript's test()
        ("^/a|/b", "/x/c", False),
        ("^.*\\.png$", "/x/y.png", True),
        ("^/%C3%A9$", "/%C3%A9", True),
        ("^\\*$", "*", True),
        ("^/A", "/a", False),
        ("^", "/", True),
    ],
)
def test_regular_expressions(pattern: str, path: str, expected: bool) -> None:
    p = policy(f"'{pattern}': GET")
    assert p.allows("GET", path) is expected
    assert not p.allows("POST", path)


def test_an_exact_path_is_literal() -> None:
    p = policy("/v1.0/Items(1)+x: GET")
    assert p.allows("GET", "/v1.0/Items(1)+x")
    assert not p.allows("GET", "/v1x0/Items(1)+x")


def test_any_of_several_entries_is_enough() -> None:
    p = policy('{"^/a": GET, /ab: POST, "*": OPTIONS, "^/ab": PUT}')
    for method in ("GET", "POST", "OPTIONS", "PUT"):
        assert p.allows(method, "/ab")
    assert not p.allows("DELETE", "/ab")
    assert not p.allows("POST", "/a")


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("\n  null", 2, 3, "no policy"),
        ("- /a", 1, 1, "no policy"),
        ("GET", 1, 1, "no policy"),
        ("/a: GET\n/b: 7", 2, 5, "7 is no method"),
        ("/a: null", 1, 5, "None is no method"),
        ("/a: []", 1, 5, "no method is given"),
        ("/a: [GET, [PUT]]", 1, 11, "a list is no method"),
        ("/a: {GET: x}", 1, 5, "a mapping is no method"),
        ("/a: GET, PUT", 1, 5, "'GET, PUT' is no method"),
        ("/a: ''", 1, 5, "'' is no method"),
        ("/a: GET\n/b/../c: GET", 2, 1, "can never match; expected its normal form '/c'"),
        ("/%61: GET", 1, 1, "can never match; expected its normal form '/a'"),
        ("//a: GET", 1, 1, "can never match; expected its normal form '/a'"),
        ("a: GET", 1, 1, "can never match"),
        ("/a%2fb: GET", 1, 1, "can never match"),
        ("/grüße: GET", 1, 1, "can never match"),
        ("'': GET", 1, 1, "can never match"),
        ("/a?b: GET", 1, 1, "a regular expression starts with ^"),
        ("/a/.*: GET", 1, 1, "a regular expression starts with ^"),
        ("/a/.+: GET", 1, 1, "a regular expression starts with ^"),
        ("/(a|b): GET", 1, 1, "a regular expression starts with ^"),
        ("/a/[0-9]: GET", 1, 1, "a regular expression starts with ^"),
        ("/a$: GET", 1, 1, "a regular expression starts with ^"),
        ("/x: GET\n'^/(?!admin)': GET", 2, 1, "look-ahead"),
        ("'^/(?=a)': GET", 1, 1, "look-ahead"),
        ("'^/(?<!a)b': GET", 1, 1, "look-behind"),
        ("'^/(a)\\1': GET", 1, 1, "back-references"),
        ("'^/(': GET", 1, 1, "missing )"),
        ("'^/[': GET", 1, 1, "missing ]"),
        ("'^/(?:(?:a{1000}){1000}){9}': GET", 1, 1, "repetition"),
        ("'^/(?:\\pL{1,9}){990}': GET", 1, 1, "no regular expression"),
        ("'^/é': GET", 1, 1, "ASCII"),
    ],
)
def test_errors_say_where_and_what(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert words in str(caught.value)


def test_a_pattern_has_its_share_of_memory_and_no_more() -> None:
    names = [f"/{i}/some-longer-name" for i in range(2000)]
    few, many = ("|".join(names[:n]) for n in (100, 2000))
    assert policy(f"? '^(?:{few})$'\n: GET").allows("GET", "/99/some-longer-name")
    with pytest.raises(ConfigError, match="too large"):
        policy(f"? '^(?:{many})$'\n: GET")


def test_bad_patterns_write_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        policy("'^/(': GET")
    # Its automaton outgrows the memory it may have, which RE2 would like to report.
    policy("'^(?:.*a){20}.{200}b': GET").allows("GET", "/" + "ax" * 4000)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "pattern", ["^/(a+)+$", "^/(a|aa)+$", "^/(a|a?)+$", "^/([a-z]+)*[0-9]$", "^/.*a.{30}b$"]
)
def test_a_hostile_path_is_matched_in_linear_time(pattern: str) -> None:
    p = policy(f"'{pattern}': GET")
    start = time.process_time()
    assert not p.allows("GET", "/" + "a" * 8000 + "!")
    # A backtracking engine needs 2^8000 steps for most of them; RE2 some milliseconds.
    assert time.process_time() - start < 1


def test_equality() -> None:
    one, same = policy('{/a: [GET, PUT], "^/b": "*"}'), policy('{/a: [put, get], "^/b": "*"}')
    assert one == same
    assert hash(one) == hash(same)
    assert one != policy('{/a: [GET], "^/b": "*"}')
    assert one != policy('{/a: [GET, PUT], "^/c": "*"}')
    assert one != "*"


def test_rules_are_there_to_be_shown() -> None:
    rules = policy('{"^/b": "*", /a: [GET]}').rules
    assert [(rule.path, rule.methods) for rule in rules] == [
        ("^/b", None),
        ("/a", frozenset({"GET"})),
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("GET", "http", "localhost", 8000, "/x"), "GET http://localhost:8000/x"),
        (("PUT", "https", "my.private.api", 443, "/"), "PUT https://my.private.api:443/"),
        (("GET", "http", "wiki", 0, "/x"), "GET http://wiki/x"),
        (("GET", "http", "::1", 80, "/x"), "GET http://[::1]:80/x"),
        (("OPTIONS", "http", "localhost", 80, "*"), "OPTIONS http://localhost:80"),
        (("GET", "http", "h", 80, "/\r\n\x1b[2J\0é x"), "GET http://h:80/?[2J?x"),
    ],
)
def test_forbidden_reason(arguments: tuple[str, str, str, int, str], text: str) -> None:
    assert forbidden_reason(*arguments) == f"Forbidden: {text} is not allowed by policy."


def test_forbidden_reason_is_bounded_and_one_line() -> None:
    reason = forbidden_reason("G\n" * 10_000, "http", "h", 80, "/" + "a\n" * 10_000)
    assert len(reason) < 500
    assert reason.isprintable()
    assert reason.endswith(" is not allowed by policy.")
