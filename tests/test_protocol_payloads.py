"""Payloads: heads come out as they went in, and nothing malformed comes out at all."""

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import (
    MAX_FIELDS,
    Destination,
    decode_goaway,
    decode_head,
    decode_open,
    decode_reset,
    encode_goaway,
    encode_open,
    encode_reset,
    encode_response,
    encode_trailers,
)

headers = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=10)
hosts = st.text(min_size=1, max_size=50)
destinations = st.one_of(
    st.builds(
        Destination,
        protocol=st.sampled_from(["http", "https"]),
        hostname=hosts,
        port=st.integers(1, 65_535),
        socket=st.sampled_from(["", "/run/app.sock", "/" + "s" * 106]),
        http2=st.booleans(),
    ).filter(lambda to: not to.socket or to.protocol == "http"),
    st.builds(Destination, service=hosts, http2=st.booleans()),
)
raw = st.one_of(
    st.builds(
        Destination,
        protocol=st.sampled_from(["tcp", "udp"]),
        hostname=hosts,
        port=st.integers(1, 65_535),
        socket=st.sampled_from(["", "/run/app.sock"]),
    ).filter(lambda to: not to.socket or to.protocol == "tcp"),
    st.builds(Destination, protocol=st.sampled_from(["tcp", "udp"]), service=hosts),
)
some = st.binary(min_size=1, max_size=20)


@given(some, some, headers, destinations, st.binary(max_size=256))
def test_requests(method, target, fields, to, upgrade):
    head = RequestHead(method, target, fields, upgrade)
    assert decode_open(encode_open(head, to)) == (head, to)


@given(raw)
def test_streams_of_bytes(to):
    head = RequestHead(b"CONNECT", b"", [])
    assert decode_open(encode_open(head, to)) == (head, to)


@given(st.integers(100, 599), st.binary(max_size=20), headers, st.binary(max_size=256))
def test_responses(status, reason, fields, upgrade):
    head = ResponseHead(status, reason, fields, upgrade=upgrade)
    assert decode_head(encode_response(head)) == head


@given(headers)
def test_trailers(fields):
    assert decode_head(encode_trailers(fields)) == fields


@pytest.mark.parametrize(
    "fields",
    [
        "text",
        {b"a": 1},
        [b"ab"],
        ["ab"],
        [{b"a": 1, b"b": 2}],
        [[b"a"]],
        [[b"a", b"b", b"c"]],
        [[b"a", "b"]],
        [[b"a", 1]],
        [[b"a", None]],
        [[b"a", [b"b"]]],
        [[b"a", b"b"], b"cd"],
        [[b"a", b"b"]] * (MAX_FIELDS + 1),
    ],
)
def test_headers_that_are_none(fields):
    for payload in ({"headers": fields}, {"status": 200, "headers": fields}):
        with pytest.raises(ValueError):  # noqa: PT011 - which of them does not matter
            decode_head(msgpack.packb(payload))


GOOD = {"method": b"GET", "target": b"/", "headers": [], "to": ["http", "a", 80]}


@pytest.mark.parametrize(
    "change",
    [
        {"method": b""},
        {"method": "GET"},
        {"target": None},
        {"to": None},
        {"to": ["ftp", "a", 80]},
        {"to": ["http", "", 80]},
        {"to": ["http", "a", 0]},
        {"to": ["http", "a", 65_536]},
        {"to": ["http", "a", True]},
        {"to": ["http", "a", 80.0]},
        {"to": ["http", b"a", 80]},
        {"to": ["http", "a"]},
        {"service": "x"},
        {"service": ""},
        {"service": 5},
        {"socket": "run/app.sock"},
        {"socket": "/run/\0"},
        {"socket": "/" + "s" * 107},
        {"socket": b"/run/app.sock"},
        {"socket": "/run/\n"},
        {"socket": "/run/\x1b[2J"},
        {"socket": "/run/app.sock", "to": ["https", "a", 443]},
        {"socket": "/run/app.sock", "to": ["udp", "a", 53]},
        {"http2": 1},
        {"upgrade": "websocket"},
        {"upgrade": b"x" * 257},
    ],
)
def test_requests_that_are_none(change):
    decode_open(msgpack.packb(GOOD))
    with pytest.raises(ValueError):  # noqa: PT011 - which of them does not matter
        decode_open(msgpack.packb({**GOOD, **change}))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
known = ("method", "target", "headers", "upgrade", "to", "service", "protocol", "socket", "http2",
         "status", "reason", "origin")  # fmt: skip


@given(st.dictionaries(st.sampled_from(known), values), st.booleans())
def test_values_of_whatever_type_raise_nothing_else(fields, usual):
    payload = msgpack.packb({**GOOD, **fields} if usual else fields)
    for decode in (decode_open, decode_head):
        with contextlib.suppress(ValueError):
            decode(payload)


def test_a_service_stands_alone():
    fields = {key: value for key, value in GOOD.items() if key != "to"}
    decode_open(msgpack.packb({**fields, "service": "x"}))
    for change in ({"socket": "/run/app.sock"}, {"protocol": "https"}, {"protocol": 5}):
        with pytest.raises(ValueError):  # noqa: PT011 - which of them does not matter
            decode_open(msgpack.packb({**fields, "service": "x", **change}))


@pytest.mark.parametrize("origin", [["tcp", "a", 80], ["udp", "a", 80]])
def test_no_answer_comes_from_a_stream_of_bytes(origin):
    with pytest.raises(ValueError, match="origin"):
        decode_head(msgpack.packb({"status": 200, "origin": origin}))


@pytest.mark.parametrize("status", [99, 600, -1, "200", 200.0, True, None])
def test_statuses_that_are_none(status):
    with pytest.raises(ValueError, match="status"):
        decode_head(msgpack.packb({"status": status}))


def test_unknown_keys_are_ignored():
    head, _ = decode_open(msgpack.packb({**GOOD, "later": {"x": [1, 2]}}))
    assert head.method == b"GET"


@given(st.binary(max_size=100))
def test_junk_raises_only_value_errors(junk):
    for decode in (decode_open, decode_head):
        with contextlib.suppress(ValueError):
            decode(junk)


def test_reset_and_goaway_cut_what_is_long_and_know_the_unknown():
    assert decode_reset(encode_reset(StreamCode.DNS_ERROR, "x" * 999)) == (16, "x" * 512)
    assert decode_reset(b"\xff\xff\xff")[0] is StreamCode.INTERNAL_ERROR
    assert decode_goaway(encode_goaway(7, TunnelCode.REVOKED, "é")) == (7, TunnelCode.REVOKED, "é")
    assert decode_goaway(b"\0\0\0\1\xff\xff")[1] is TunnelCode.INTERNAL_ERROR
