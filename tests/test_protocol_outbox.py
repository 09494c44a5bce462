"""The outbox: what is kept, what is sent again, and the bounds of both."""

import pytest

from sockgw.protocol.errors import TunnelError
from sockgw.protocol.frames import FrameType, decode, encode
from sockgw.protocol.memory import Pool
from sockgw.protocol.outbox import LEAST, Outbox
from sockgw.protocol.payloads import u64

PING = encode(FrameType.PING, 0, 0, bytes(8))
ACK = encode(FrameType.ACK, 0, 0, u64.pack(5))


def frame(number, size=10):
    """A frame that can be told from others."""
    return encode(FrameType.DATA, 0, 2 * number + 1, bytes([number]) * size)


def numbers(message):
    return [(stream - 1) // 2 for _, _, stream, _ in decode(message)]


def kept(*counts, bound=1 << 24, pool=None):
    """An outbox with messages of so many frames each, numbered through from 1."""
    outbox = Outbox(bound, pool or Pool(1 << 28))
    number = 1
    for count in counts:
        message = PING + b"".join(frame(number + i) for i in range(count)) + ACK
        outbox.keep(message, count, 0.0, False)
        number += count
    return outbox


def again(outbox):
    """All that is sent again, as numbers of frames by message."""
    result = []
    while message := outbox.next_again():
        result.append(numbers(message))
    return result


def test_what_is_kept_counts_in_the_pool():
    pool = Pool(1 << 28)
    outbox, other = kept(2, 1, pool=pool), kept(40, pool=pool)
    assert outbox.sent == 3
    assert outbox.size == 2 * (17 + 17) + 3 * 19
    assert other.cost == other.size == 17 + 17 + 40 * 19
    assert pool.used == outbox.cost + other.cost
    outbox.acknowledge(2, 0.0)
    assert outbox.size == 17 + 17 + 19
    assert pool.used == outbox.cost + other.cost
    outbox.acknowledge(3, 0.0)
    assert outbox.size == 0
    other.clear()
    assert pool.used == 0


def test_an_acknowledgement_within_a_message_frees_nothing_yet():
    outbox = kept(3, 3)
    size = outbox.size
    outbox.acknowledge(2, 0.0)
    assert (outbox.acknowledged, outbox.size) == (2, size)
    outbox.acknowledge(4, 0.0)
    assert outbox.size == size / 2


@pytest.mark.parametrize("count", [2, 0, 7, 1 << 63])
def test_an_acknowledgement_neither_goes_back_nor_ahead(count):
    outbox = kept(3, 3)
    outbox.acknowledge(3, 0.0)
    with pytest.raises(TunnelError, match=f"ACK of {count} frames"):
        outbox.acknowledge(count, 0.0)
    assert outbox.acknowledged == 3


def test_nothing_is_sent_again_while_the_carrier_holds():
    outbox = kept(3, 3)
    outbox.acknowledge(1, 0.0)
    assert outbox.next_again() == b""
    assert outbox.resent == 0


@pytest.mark.parametrize(
    ("received", "missing"),
    [
        (0, [[1, 2, 3], [4], [5, 6]]),
        (1, [[2, 3], [4], [5, 6]]),
        (2, [[3], [4], [5, 6]]),
        (3, [[4], [5, 6]]),
        (4, [[5, 6]]),
        (5, [[6]]),
        (6, []),
    ],
)
def test_what_is_missing_is_sent_again_to_the_frame(received, missing):
    outbox = kept(3, 1, 2)
    outbox.rewind(received, 0.0)
    assert again(outbox) == missing
    assert outbox.resent == 19 * sum(map(len, missing))


def test_frames_of_the_carrier_alone_are_left_out():
    outbox = kept(1)
    outbox.rewind(0, 0.0)
    assert outbox.next_again() == frame(1)


def test_bytes_are_the_same_whatever_the_frame():
    frames = [
        encode(FrameType.OPEN, 1, 1, b"\x80" * 100),
        encode(FrameType.DATA, 0, 1, b""),
        encode(FrameType.DATA, 1, 1, bytes(65_536)),
        encode(FrameType.RESET, 0, 3, b"\0\1why"),
        b"\0\0\2\x7f\0\0\0\0\5ab",  # of a type that a later version knows
    ]
    outbox = Outbox(1 << 24, Pool(1 << 24))
    outbox.keep(PING.join([b"", *frames]), len(frames), 0.0, False)
    outbox.rewind(2, 0.0)
    assert outbox.next_again() == b"".join(frames[2:])


def test_rewound_twice():
    """The second carrier breaks while it carries again what the first has lost."""
    outbox = kept(2, 2, 2)
    outbox.rewind(1, 0.0)
    assert numbers(outbox.next_again()) == [2]
    assert numbers(outbox.next_again()) == [3, 4]
    outbox.rewind(3, 0.0)
    assert again(outbox) == [[4], [5, 6]]
    outbox.rewind(3, 0.0)
    assert again(outbox) == [[4], [5, 6]]


def test_what_is_acknowledged_meanwhile_is_not_sent_again():
    outbox = kept(2, 2, 2)
    outbox.rewind(0, 0.0)
    outbox.next_again()
    outbox.acknowledge(5, 0.0)  # who says so has got it from elsewhere
    assert again(outbox) == [[6]]


def test_what_is_new_is_kept_behind_what_is_sent_again():
    outbox = kept(2)
    outbox.rewind(0, 0.0)
    outbox.next_again()
    outbox.keep(frame(3), 1, 0.0, False)
    outbox.rewind(2, 0.0)
    assert again(outbox) == [[3]]
    assert outbox.sent == 3


@pytest.mark.parametrize("received", [0, 7])
def test_nobody_is_resumed_from_where_it_cannot_be(received):
    outbox = kept(3, 3)
    outbox.acknowledge(3, 0.0)
    with pytest.raises(TunnelError):
        outbox.rewind(received, 0.0)


def test_the_bound_of_a_tunnel():
    outbox = Outbox(1_000, Pool(1 << 28))
    assert not outbox.full
    outbox.keep(frame(1, 990), 1, 0.0, False)
    assert not outbox.full
    outbox.keep(frame(2, 1), 1, 0.0, False)
    assert outbox.full
    outbox.acknowledge(1, 0.0)
    assert not outbox.full


def test_the_bound_of_the_process_leaves_each_tunnel_a_message():
    pool = Pool(100_000)
    pool.used = 100_000  # of others
    outbox = Outbox(1 << 24, pool)
    assert not outbox.full
    outbox.keep(frame(1, LEAST - 10), 1, 0.0, False)
    assert not outbox.full
    outbox.keep(frame(2, 1), 1, 0.0, False)
    assert outbox.full
    pool.used = 99_999  # others have been acknowledged
    assert not outbox.full


def test_nothing_is_left_after_the_end():
    pool = Pool(1 << 28)
    outbox = kept(2, 2, pool=pool)
    outbox.rewind(1, 0.0)
    outbox.clear()
    assert pool.used == outbox.size == 0
    assert outbox.next_again() == b""
    outbox.clear()
    assert pool.used == 0


def test_what_was_sent_twice_measures_nothing():
    """Karn's rule: who can tell which of the two has arrived?"""
    outbox = kept(1, 1)
    outbox.rewind(0, 10.0)
    assert again(outbox) == [[1], [2]]
    outbox.acknowledge(2, 10.001)
    assert outbox.flight.round_trip is None
    assert outbox.flight.delivered == 2 * 53
    outbox.keep(frame(3), 1, 11.0, False)
    outbox.acknowledge(3, 11.25)
    assert outbox.flight.round_trip == 0.25


def test_what_was_sent_once_measures_the_link():
    outbox = kept(1)
    outbox.acknowledge(1, 0.125)
    assert outbox.flight.round_trip == 0.125


def test_a_new_carrier_is_another_link():
    outbox = kept(1)
    outbox.acknowledge(1, 0.125)
    outbox.rewind(1, 1.0)
    assert outbox.flight.round_trip is None


def test_many_small_messages_are_counted_with_what_they_cost():
    """Each is several objects: by its bytes alone, 16 MiB of them would be half a gigabyte."""
    pool = Pool(1 << 28)
    outbox = Outbox(100_000, pool)
    number = 0
    while not outbox.full:
        number += 1
        outbox.keep(frame(1, 1), 1, 0.0, False)
    assert number < 500
    assert pool.used > 90_000
    outbox.acknowledge(number - 1, 0.0)
    assert not outbox.full
    assert 0 < pool.used < 1_000
    outbox.clear()
    assert pool.used == 0
