"""What a stream takes while it is open and idle, and that nothing is left of it when it is over:
not even to the garbage collector."""

import gc
import tracemalloc
import weakref

import pytest
from test_protocol_session import OK, Pair

from sockgw.protocol.errors import StreamCode
from sockgw.protocol.frames import FIN, FrameType, encode


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def begun(consume=True):
    """Return a pair, the client of a request whose body has not ended, and the origin."""
    pair = Pair()
    pair.inner.consume = consume
    client = pair.open(complete=False, consume=consume)
    pair.run()
    return pair, client, pair.inner.handlers.pop()


def answer(origin, data=b"data"):
    origin.stream.respond(OK)
    origin.stream.write(data)
    origin.stream.end()


def complete(pair, client, origin):
    client.stream.end()
    answer(origin)
    pair.run()


def complete_the_other_way(pair, client, origin):
    answer(origin)
    pair.run()
    client.stream.write(b"data")
    client.stream.end()
    pair.run()


def reset_by_the_outer_layer(pair, client, origin):
    client.stream.reset(StreamCode.CANCELLED)
    pair.run()


def reset_by_the_inner_layer(pair, client, origin):
    origin.stream.reset(StreamCode.DNS_ERROR)
    pair.run()


def reset_by_a_handler_while_it_is_called(pair, client, origin):
    client.data_received = lambda data: stream.reset(StreamCode.CANCELLED)
    stream = client.stream
    answer(origin)
    pair.run()


def broken_by_the_peer(pair, client, origin):
    pair.inner.session.send_frame(encode(FrameType.HEAD, FIN, origin.stream.id, b"x"))
    pair.run()


def ended_with_the_tunnel(pair, client, origin):
    for side in (pair.outer, pair.inner):
        side.session.end(StreamCode.TUNNEL_LOST, "")


def failed_by_its_handler(pair, client, origin):
    def fail(data):
        raise RuntimeError("a bug")

    client.data_received = fail
    answer(origin)
    pair.run()
    assert pair.outer.failures == [1]


@pytest.mark.parametrize(
    "happens",
    [
        complete,
        complete_the_other_way,
        reset_by_the_outer_layer,
        reset_by_the_inner_layer,
        reset_by_a_handler_while_it_is_called,
        broken_by_the_peer,
        ended_with_the_tunnel,
        failed_by_its_handler,
    ],
)
@pytest.mark.parametrize("consume", [True, False])
def test_who_handled_a_stream_that_is_over_is_gone(happens, consume):
    pair, client, origin = begun(consume)
    happens(pair, client, origin)
    assert client.stream.closed
    assert origin.stream.closed
    client.take()  # of an answer that is complete: until then it is held
    gone = [weakref.ref(one) for one in (client, origin)]
    del client, origin
    assert [one() for one in gone] == [None, None]
    assert pair.outer.session.buffered == pair.inner.session.buffered == 0


def test_who_reads_the_end_of_an_answer_is_there_until_it_is_read_or_given_up():
    pair, client, origin = begun(consume=False)
    complete(pair, client, origin)
    stream = client.stream
    gone = weakref.ref(client)
    del client
    assert gone() is not None
    pair.outer.session.shed()
    assert gone() is None
    assert stream.complete
    assert pair.outer.session.buffered == 0


def test_a_handler_that_fails_after_a_reset_hears_of_it():
    pair, client, origin = begun()

    def fail(data):
        client.stream.reset(StreamCode.CANCELLED)
        raise RuntimeError("a bug")

    client.data_received = fail
    answer(origin)
    pair.run()
    assert pair.outer.failures == [1]
    assert client.code is StreamCode.INTERNAL_ERROR
    assert origin.code is StreamCode.CANCELLED


def test_a_handler_that_fails_at_the_end_hears_of_it():
    pair, client, origin = begun()

    def fail(trailers):
        raise RuntimeError("a bug")

    client.ended = fail
    complete(pair, client, origin)
    assert pair.outer.failures == [1]
    assert client.code is StreamCode.INTERNAL_ERROR


def test_an_idle_stream_takes_little():
    count = 1_000
    pair = Pair(max_streams=count + 1)
    pair.open()
    pair.run()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    handlers = [pair.open() for _ in range(count)]
    pair.run()
    handlers += pair.inner.handlers
    for handler in handlers:
        vars(handler).clear()  # a test's is larger than a stream
    pair.run()  # acknowledged
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(pair.outer.session.streams) == count + 1
    each = (after - before) / count / 2
    print(f"{each:.0f} bytes on each side")
    assert each < 1_024
