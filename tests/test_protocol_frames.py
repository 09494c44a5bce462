"""Frames: what was encoded comes out again, and nothing else gets through."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockgw.protocol.errors import LocalError, TunnelCode, TunnelError
from sockgw.protocol.frames import (
    FIN,
    HEADER_SIZE,
    MAX_DATA,
    MAX_STREAM_ID,
    FrameType,
    decode,
    encode,
    pack_header,
)

data_frames = st.tuples(
    st.just(FrameType.DATA),
    st.sampled_from([0, FIN]),
    st.integers(1, MAX_STREAM_ID),
    st.binary(max_size=300),
)
ping_frames = st.tuples(
    st.just(FrameType.PING), st.just(0), st.just(0), st.binary(min_size=8, max_size=8)
)
frames = st.lists(st.one_of(data_frames, ping_frames), max_size=8)


@given(frames)
def test_round_trip(sent):
    message = b"".join(encode(*frame) for frame in sent)
    assert list(decode(message)) == [(int(kind), *rest) for kind, *rest in sent]


@given(frames.filter(bool), st.data())
def test_a_cut_message_is_refused_after_its_whole_frames(sent, data):
    encoded = [encode(*frame) for frame in sent]
    message = b"".join(encoded)
    cut = data.draw(st.integers(1, len(encoded[-1]) - 1))
    seen = []
    with pytest.raises(TunnelError) as caught:
        deque(map(seen.append, decode(message[:-cut])), maxlen=0)
    assert caught.value.code is TunnelCode.FRAME_SIZE_ERROR
    assert len(seen) == len(sent) - 1


@given(st.binary(max_size=200))
def test_junk_raises_only_the_remote_error(junk):
    try:
        for kind, _flags, _stream, payload in decode(junk):
            assert 0 <= kind <= 255
            assert len(payload) <= len(junk) - HEADER_SIZE
    except TunnelError:
        pass


def test_the_length_is_judged_on_the_header_alone():
    header = pack_header(FrameType.DATA, 0, 1, MAX_DATA + 1)
    with pytest.raises(TunnelError, match="DATA of 65537 bytes"):
        list(decode(header))


@pytest.mark.parametrize(
    ("kind", "stream"),
    [(FrameType.DATA, 0), (FrameType.PING, 1), (FrameType.DATA, MAX_STREAM_ID + 1)],
)
def test_frames_on_the_wrong_kind_of_stream(kind, stream):
    with pytest.raises(TunnelError) as caught:
        list(decode(pack_header(kind, 0, stream, 8) + bytes(8)))
    assert caught.value.code is TunnelCode.PROTOCOL_ERROR


def test_an_unknown_type_comes_through():
    message = pack_header(0x7F, 3, 9, 2) + b"ab"
    assert list(decode(message)) == [(0x7F, 3, 9, b"ab")]


@pytest.mark.parametrize(
    ("kind", "stream", "payload"),
    [
        (FrameType.DATA, 1, bytes(MAX_DATA + 1)),
        (FrameType.CREDIT, 1, b"abc"),
        (FrameType.PING, 0, b"short"),
        (FrameType.DATA, 0, b"x"),
        (FrameType.ACK, 3, bytes(8)),
    ],
)
def test_we_do_not_encode_what_we_would_not_accept(kind, stream, payload):
    with pytest.raises(LocalError):
        encode(kind, 0, stream, payload)
