"""Streams of bytes to TCP origins, on strict fakes: dialling, both ends, pauses, breaking off."""

import pytest
from originfakes import Bench as Origins
from originfakes import Handler
from twisted.internet.error import ConnectionLost

from sockgw.http.client import Origin, OriginError
from sockgw.inner.rawtcp import RawTCP
from sockgw.protocol.errors import StreamCode

ORIGIN = Origin("tcp", "db.internal", 5432)


class Bench(Origins):
    def __init__(self):
        super().__init__(dial_at_once=False)
        self.raw = RawTCP(self.clock, self._endpoint, self.deadlines, 300.0)
        self.handler = Handler()
        self.handler.exchange = self.raw.connect(ORIGIN, self.handler)

    @property
    def connection(self):
        return self.handler.exchange

    def connected(self):
        self.answer_dial()
        assert self.handler.head.status == 200
        return self

    def received(self):
        return self.transport.drain()


@pytest.fixture
def bench():
    return Bench()


def test_bytes_both_ways_and_the_origin_ends_first(bench):
    bench.connected()
    assert bench.dialled == [ORIGIN]
    assert bench.transport.no_delay
    assert bench.transport.kept_alive
    bench.connection.write(b"up")
    assert bench.received() == b"up"
    bench.transport.receive(b"down")
    assert bench.handler.body == b"down"
    bench.turn(100_000)  # silence is no fault
    bench.transport.half_close()
    assert bench.handler.trailers == []
    bench.connection.write(b"last")
    assert bench.received() == b"last"
    assert bench.transport.closing == ""
    bench.connection.finish()
    assert bench.transport.closing == "loseConnection"


def test_the_client_ends_first(bench):
    bench.connected()
    bench.connection.write(b"all")
    bench.connection.finish()
    assert bench.received() == b"all"
    assert bench.transport.half_closed
    bench.transport.receive(b"last")
    bench.transport.half_close()
    assert bench.handler.body == b"last"
    assert bench.handler.trailers == []
    assert bench.transport.closing == "loseConnection"


def test_what_comes_before_the_connection(bench):
    bench.connection.write(b"early")
    bench.connection.finish()
    bench.connected()
    assert bench.received() == b"early"
    assert bench.transport.half_closed


def test_much_before_the_connection_pauses_the_stream(bench):
    bench.connection.write(b"x" * 65_535)
    assert not bench.connection.congested
    bench.connection.write(b"x")
    assert bench.connection.congested
    bench.connected()
    assert not bench.connection.congested
    assert bench.handler.drains == 1
    assert bench.received() == b"x" * 65_536


def test_an_origin_that_does_not_read(bench):
    bench.connected()
    bench.connection.write(b"x" * 100_000)
    assert bench.connection.congested
    bench.connection.finish()
    assert not bench.transport.half_closed
    assert len(bench.received()) == 100_000
    assert bench.handler.drains == 1
    assert bench.transport.half_closed


def test_a_client_that_does_not_read(bench):
    bench.connection.pause_response()  # before there is anything to pause
    bench.connection.resume_response()
    bench.connected()
    bench.connection.pause_response()
    assert not bench.transport.reading
    bench.connection.resume_response()
    assert bench.transport.reading


@pytest.mark.parametrize("error", [StreamCode.CONNECTION_REFUSED, StreamCode.DNS_ERROR])
def test_an_origin_that_cannot_be_reached(bench, error):
    bench.answer_dial(OriginError(error, "why"))
    bench.turn()
    assert bench.handler.failure == (error, "why")


def test_an_origin_that_breaks_off(bench):
    bench.connected()
    bench.transport.end(ConnectionLost())
    assert bench.handler.code is StreamCode.ORIGIN_CLOSED


def test_an_origin_that_closes_both_halves_at_once(bench):
    bench.connected()
    bench.transport.end()
    assert bench.handler.trailers == []


def test_a_client_that_breaks_off(bench):
    bench.connected()
    bench.handler.abort()
    assert bench.transport.closing == "abortConnection"


@pytest.mark.parametrize("cancellable", [True, False])
def test_a_client_that_breaks_off_before_there_is_a_connection(bench, cancellable):
    bench.cancellable = cancellable
    bench.handler.abort()
    assert bench.cancelled == 1
    bench.turn()
    if not cancellable:
        assert bench.transport.closing == "abortConnection"


def test_what_is_left_is_not_kept_for_ever(bench):
    bench.connected()
    bench.connection.write(b"x" * 100_000)
    bench.transport.half_close()
    bench.connection.finish()
    bench.received()
    assert bench.transport.closing == "loseConnection"
    bench.turn(301)
    assert bench.transport.closing == "abortConnection"


def test_the_end_of_all():
    bench = Bench()
    dialling = bench.handler
    bench.connected()
    done = bench.raw.close()
    assert dialling.code is StreamCode.CANCELLED
    assert not done.called
    bench.transport.end()
    assert done.called
    late = Handler()
    late.exchange = bench.raw.connect(ORIGIN, late)
    bench.turn()
    assert late.code is StreamCode.REFUSED
