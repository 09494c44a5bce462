"""Header rules: what stops at a hop, and what can be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http import headers as module
from sockgw.http.headers import (
    connection_options,
    end_to_end,
    get,
    lower,
    serialize,
    upgrades_to,
)

token = st.from_regex(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}", fullmatch=True)


@pytest.mark.parametrize("bad", [b"", b"a b", b"a:", b"a\r", b"\xe4", b"a" * 257, b"(x)"])
def test_bad_names(bad):
    with pytest.raises(ValueError, match="bad header name"):
        lower(bad)


def test_the_cache_of_names_is_bounded():
    for number in range(3000):
        lower(b"x-%d" % number)
    assert len(module.lowered) <= 1024
    assert lower(b"X-2999") == b"x-2999"


def test_look_ups():
    fields = [(b"A", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert get(fields, b"a") == b"1"
    assert get(fields, b"c") is None


def test_hop_by_hop_fields_stop_here_also_those_that_connection_names():
    fields = [
        (b"Connection", b"close, X-Internal"),
        (b"connection", b"x-OTHER ,"),
        (b"X-Internal", b"1"),
        (b"x-other", b"2"),
        (b"Keep-Alive", b"3"),
        (b"TE", b"gzip"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"secret"),
        (b"Accept", b"*/*"),
    ]
    assert connection_options(fields) == {b"close", b"x-internal", b"x-other"}
    assert end_to_end(fields) == [(b"Accept", b"*/*")]
    assert end_to_end(fields, frozenset((b"accept",))) == []


@pytest.mark.parametrize("value", [b"trailers", b"Trailers", b"gzip;q=0.5, trailers"])
def test_that_trailers_are_welcome_passes(value):
    fields = [(b"Connection", b"TE"), (b"te", value), (b"Trailer", b"X-Sum")]
    assert end_to_end(fields) == [(b"Trailer", b"X-Sum"), (b"TE", b"trailers")]


@pytest.mark.parametrize(
    ("given", "asked", "fits"),
    [
        (b"websocket", b"websocket", True),
        (b"WebSocket", b"websocket", True),
        (b"b/1, c", b"a, B/1 ,c", True),
        (b"b/2", b"b/1", False),
        (b"b", b"a", False),
        (b"a, b", b"a", False),
        (b"", b"a", False),
        (b",", b"a", False),
        (b"", b"", False),
    ],
)
def test_upgrades(given, asked, fits):
    assert upgrades_to(given, asked) is fits


@given(st.lists(st.tuples(token, st.binary(max_size=30)), max_size=6))
def test_a_written_head_has_exactly_its_lines(fields):
    dirty = any(c == 127 or (c < 32 and c != 9) for _, value in fields for c in value)
    if dirty:
        with pytest.raises(ValueError, match="control character"):
            serialize(b"HTTP/1.1 200 OK", fields)
    else:
        lines = serialize(b"HTTP/1.1 200 OK", fields).split(b"\r\n")
        assert lines[1:-2] == [name + b": " + value for name, value in fields]
        assert lines[-2:] == [b"", b""]


def test_a_split_start_line_is_refused():
    with pytest.raises(ValueError, match="control character"):
        serialize(b"HTTP/1.1 200 OK\r\nX: 1", [])
