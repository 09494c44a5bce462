"""What is remembered of heads by their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http import shapes as module
from sockgw.http.headers import end_to_end
from sockgw.http.outgoing import clean
from sockgw.http.shapes import name_of, shapes
from sockgw.protocol.heads import RequestHead

NAMES = [b"A", b"b", b"Own", b"Keep-Alive", b"TE", b"te", b"Connection", b"connection", b"Host"]
VALUES = [b"1", b"close", b"Keep-Alive", b"a", b"own, b", b"trailers", b"x, trailers", b"te", b""]
heads = st.lists(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=6), max_size=12
)


def shape_of(fields):
    return shapes[tuple(map(name_of, fields))]


@given(heads)
def test_a_shape_says_the_same_as_end_to_end_whatever_was_seen_before(several):
    for fields in several:
        before = list(fields)
        assert shape_of(fields).end_to_end(fields) == end_to_end(fields)
        assert fields == before


@given(heads)
def test_a_clean_head_has_one_host_and_passes_as_it_is(several):
    for fields in several:
        head = RequestHead(b"GET", b"/", fields)
        hosts = [value for name, value in end_to_end(fields) if name == b"Host"]
        if len(hosts) > 1:
            with pytest.raises(ValueError, match="two Host fields"):
                clean(head, b"x")
            continue
        shape = clean(head, b"x")
        assert shape_of(head.headers) is shape
        assert shape.end_to_end(head.headers) is head.headers
        expected = end_to_end(fields)
        assert head.headers == (expected if hosts else [(b"Host", b"x"), *expected])
        assert shape.te == ((b"TE", b"trailers") in expected)


def test_te_passes_as_we_say_it_whatever_else_is_said():
    for values in ([b"trailers"], [b"x"], [b"gzip", b"trailers"], [b"trailers", b"gzip"]):
        fields = [(b"TE", value) for value in values]
        expected = [(b"TE", b"trailers")] if b"trailers" in values else []
        assert shape_of(fields).end_to_end(fields) == expected
        fields.append((b"A", b"1"))
        assert shape_of(fields).end_to_end(fields) == [(b"A", b"1"), *expected]


def test_places():
    names = (b"content-length", b"HOST", b"Content-Length", b"transfer-encoding", b"te", b"host")
    shape = shapes[names]
    assert (shape.lengths, shape.codings, shape.hosts, shape.te) == ((0, 2), (3,), 2, True)
    shape = shapes[()]
    assert (shape.lengths, shape.codings, shape.hosts, shape.te) == ((), (), 0, False)


def test_bad_names():
    for name in (b"", b"a b", b"a:", b"a\r", b"\xe4", b"a" * 257):
        for _ in range(2):
            with pytest.raises(ValueError, match="bad header name"):
                shapes[(b"A", name)]


def test_what_is_remembered_is_bounded():
    for number in range(2_000):
        assert shape_of([(b"x-%d" % number, b"1")]).hosts == 0
        assert 0 < len(shapes) <= module._MAX_SHAPES
    for names in ((b"x",) * 65, (b"x" * 200, b"y" * 200) * 6):
        assert shapes[names].hosts == 0
        assert names not in shapes
