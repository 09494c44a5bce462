"""The reader of requests: where one ends and the next begins, however the bytes come."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.http.framing import HttpError, examine
from sockgw.http.reader import RequestReader


class Recorded:
    """A request as the reader fills it in."""

    def __init__(self, head, host, http_version, length, expects_continue, keep_alive):
        self.head = head
        self.length = length
        self.keep_alive = keep_alive
        self.bytes_received = 0
        self.pieces = []
        self.trailers = []
        self.complete = False


def make(length=None, **limits):
    """Return a reader and its requests, whose bodies are of that length, whatever they say."""
    requests = []

    def begin(*args):
        requests.append(Recorded(*args))
        if length is not None:
            requests[-1].length = length
        return requests[-1]

    sizes = {"max_header_size": 300, "max_header_count": 10, "max_body_size": 0, **limits}
    return RequestReader(begin, **sizes), requests


def feed_all(reader, requests, pieces):
    """Feed them; hold that no call takes parts of two requests. Return the ends that it chose."""
    for piece in pieces:
        start = 0
        while start < len(piece):
            before = len(requests), sum(r.complete for r in requests)
            end = reader.feed(piece, start)
            assert start < end <= len(piece)
            after = len(requests), sum(r.complete for r in requests)
            assert after[0] - before[0] <= 1
            assert after[1] - before[1] <= 1
            if after[1] > before[1]:
                assert reader.head_size == 0
            start = end


HEAD = b"Host: a\r\n"
PARTS = [
    b"GET /%d HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"\r\n\r\nGET /%d HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"POST /%d HTTP/1.1\r\nContent-Length: 9\r\n" + HEAD + b"\r\na\r\n\r\nb\r\n\r",
    b"POST /%d HTTP/1.1\r\nContent-Length: 0\r\n" + HEAD + b"\r\n",
    b"POST /%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEAD + b"\r\n0\r\n\r\n",
    b"POST /%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    + HEAD
    + b"\r\n4\r\n\r\n\r\n\r\n5\r\nx\r\n\r\n\r\n0\r\nA: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n" + HEAD + b"\r\n",
    b"PUT /%d HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n"
    + HEAD
    + b"\r\n2\r\n\r\n\r\n0\r\n\r\n",
]
BODIES = [b"", b"", b"a\r\n\r\nb\r\n\r", b"", b"", b"\r\n\r\nx\r\n\r\n", b"", b"\r\n"]


@given(
    st.lists(st.sampled_from(range(len(PARTS))), max_size=6),
    st.lists(st.integers(0, 2000), max_size=12),
)
def test_requests_never_mix(kinds, places):
    data = b"".join(PARTS[kind] % i for i, kind in enumerate(kinds))
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    reader, requests = make()
    feed_all(reader, requests, [data[a:b] for a, b in itertools.pairwise(cuts)])
    assert [request.head.target for request in requests] == [b"/%d" % i for i in range(len(kinds))]
    assert [b"".join(request.pieces) for request in requests] == [BODIES[kind] for kind in kinds]
    assert all(request.complete for request in requests)
    assert reader.receiving is None


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 1000])
@pytest.mark.parametrize("kind", range(len(PARTS)))
def test_head_size_is_exact_after_any_request(kind, step):
    """A head is judged by its own bytes, whatever came before it in the same read."""
    bare = len(b"GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n")
    for size, accepted in ((300, True), (301, False)):
        head = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * (size - bare) + b"\r\n\r\n"
        data = PARTS[kind] % 1 + head
        reader, requests = make()
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        if accepted:
            feed_all(reader, requests, pieces)
            assert len(requests) == 2
        else:
            with pytest.raises(HttpError) as raised:
                feed_all(reader, requests, pieces)
            assert raised.value.status == 431
            assert len(requests) == 1


def test_refusal_is_not_mistaken_while_another_error_is_handled():
    """Python chains exceptions: the first context is not always the parser's own."""
    reader, _ = make()
    try:
        raise HttpError(599, "another")
    except HttpError:
        with pytest.raises(HttpError) as raised:
            reader.feed(b"GET / HTTP/1.1\r\n\r\n", 0)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")],
        [(b"Content-Length", b"5"), (b"Content-Length", b"5")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"+5")],
        [(b"Content-Length", b"")],
    ],
)
def test_lengths_are_examined_although_llhttp_does(fields):
    with pytest.raises(HttpError) as raised:
        examine(b"POST", b"/", "1.1", [(b"Host", b"a"), *fields])
    assert raised.value.status == 400


def test_disagreement_with_llhttp_ends_in_a_refusal():
    """Not in a loop, and not in two readings of one request."""
    reader, requests = make(length=0)
    with pytest.raises(HttpError, match="doubt"):
        feed_all(reader, requests, [PARTS[5] % 1])


def test_a_bug_in_begin_is_not_a_client_error():
    def begin(*args):
        raise ZeroDivisionError

    reader = RequestReader(begin, 300, 10, 0)
    with pytest.raises(Exception, match=r".") as raised:
        reader.feed(PARTS[0] % 1, 0)
    assert not isinstance(raised.value, HttpError)


def test_nothing_refers_to_a_closed_reader():
    """So that a connection is freed at once, and not by the garbage collector."""
    import gc
    import weakref

    class Target:
        pass

    target = Target()

    def begin(*args, keep=target):
        raise AssertionError

    reference = weakref.ref(target)
    gc.disable()
    try:
        reader = RequestReader(begin, 300, 10, 0)
        reader.close()
        del reader, begin, target
        assert reference() is None
    finally:
        gc.enable()
