"""Datagrams in a stream: whole again however they were cut, and few of them while they wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.protocol.datagrams import MAX_DATAGRAM, DatagramReader, Waiting, frame


@given(st.lists(st.binary(max_size=300), max_size=10), st.data())
def test_any_cutting_gives_the_same_datagrams(datagrams, data):
    stream = b"".join(map(frame, datagrams))
    reader, found, start = DatagramReader(), [], 0
    while start < len(stream):
        size = data.draw(st.integers(1, len(stream) - start))
        found += reader.feed(stream[start : start + size])
        start += size
    assert found == datagrams


@pytest.mark.parametrize("size", [0, 1, MAX_DATAGRAM])
def test_sizes(size):
    datagram = b"x" * size
    stream = frame(datagram)
    assert len(stream) == size + 2
    for step in (1, 7, len(stream)):
        reader = DatagramReader()
        parts = [stream[start : start + step] for start in range(0, len(stream), step)]
        assert [each for part in parts for each in reader.feed(part)] == [datagram]


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=50)), max_size=40),
    st.integers(1, 5),
    st.integers(1, 120),
)
def test_the_oldest_goes_first(steps, most, most_bytes):
    waiting, model = Waiting(most, most_bytes), []
    for step in steps:
        if step is None:
            if model:
                assert waiting.take() == model.pop(0)
            continue
        model.append(step)
        dropped = 0
        while len(model) > most or (sum(map(len, model)) > most_bytes and len(model) > 1):
            model.pop(0)
            dropped += 1
        assert waiting.add(step) == dropped
        assert len(waiting) == len(model) <= most
