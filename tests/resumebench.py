"""Two sessions with carriers that break, and a model of what must arrive all the same."""

from collections import deque

from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.memory import Limits, Memory, Pool
from sockgw.protocol.payloads import Destination, u64
from sockgw.protocol.session import Session

TO = Destination("http", "origin.test", 80)
GET = RequestHead(b"GET", b"/", [(b"Host", b"a")])
LARGEST = 200_000  # bytes; of a message: a head of the largest kind behind other frames


class End:
    """One end of a stream: what it has sent, and what it has received of the other's."""

    def __init__(self, world, stream=None):
        self.world = world
        self.stream = stream
        self.peer = None
        self.sent = []  # in order: bytes, heads, ("end", trailers)
        self.got = []
        self.eager = True  # takes what comes
        self.unconsumed = 0
        self.finished = False  # we have sent our end
        self.complete = False  # we have received the peer's
        self.code = None  # why it was reset by the peer
        self.was_reset = False  # by ourselves

    # What we do.

    @property
    def alive(self):
        return not self.was_reset and self.code is None

    @property
    def may_write(self):
        return self.alive and not self.finished and self.responded

    responded = True  # the opening side begins with the body

    def respond(self, status):
        self.sent.append(ResponseHead(status, b"", []))
        self.stream.respond(self.sent[-1])
        self.responded = status >= 200

    def write(self, data):
        self.sent.append(data)
        self.stream.write(data)

    def end(self, trailers):
        self.finished = True
        self.sent.append(("end", trailers))
        self.stream.end(trailers)

    def abort(self, code):
        self.was_reset = True
        self.stream.reset(code)

    def take(self, count=None):
        if self.alive and self.unconsumed:
            count = self.unconsumed if count is None else min(count, self.unconsumed)
            self.unconsumed -= count
            self.stream.consumed(count)

    # What we are told.

    def _hear(self):
        assert not self.was_reset, "told something after our own reset"
        assert self.code is None, "told something after the peer's reset"
        assert not self.complete, "told something after the end"

    def head_received(self, head):
        self._hear()
        self.got.append(head)
        self.check_prefix()

    def data_received(self, data):
        self._hear()
        if self.got and type(self.got[-1]) is bytearray:
            self.got[-1] += data
        else:
            self.got.append(bytearray(data))
        self.unconsumed += len(data)
        if self.eager:
            self.take()

    def ended(self, trailers):
        self._hear()
        self.complete = True
        self.got.append(("end", trailers))
        self.check_prefix()

    def reset(self, code, detail):
        assert self.alive
        self.code = code

    def drained(self):
        pass

    # The model.

    def check_prefix(self):
        """What we have got is the beginning of what was sent, byte for byte."""
        sent = joined(self.peer.sent)
        assert joined(self.got) == cut_to(sent, joined(self.got))

    def check_everything(self):
        """We have got all that was sent, once and in order."""
        assert joined(self.got) == joined(self.peer.sent)


def joined(items):
    """Return the items with neighbouring pieces of data as one."""
    result = []
    for item in items:
        if isinstance(item, (bytes, bytearray)):
            if result and type(result[-1]) is bytearray:
                result[-1] += item
            else:
                result.append(bytearray(item))
        else:
            result.append(item)
    return result


def cut_to(sent, got):
    """Return the beginning of ``sent`` that is as long as ``got``."""
    result = sent[: len(got)]
    if got and result and type(result[-1]) is type(got[-1]) is bytearray:
        result[-1] = result[-1][: len(got[-1])]
    return result


class Side:
    """A session, and its handler; wakes as the session tells it to, and at no other time."""

    def __init__(self, world, opens, limits, memory):
        self.world = world
        self.awake = False
        self.ends = {}
        self.wire = deque()  # what it has sent, on its way
        self.carrier = 1  # which it has, by number
        self.memory = memory
        self.session = Session(
            self, opens=opens, limits=limits, memory=memory, seconds=lambda: world.now
        )

    def output_ready(self):
        assert not self.awake, "woken twice"
        self.awake = True

    def opened(self, stream, head, to, complete):
        assert stream.id not in self.ends, "opened twice"
        assert (head, to) == (GET, TO)
        end = self.ends[stream.id] = End(self.world, stream)
        end.responded = False
        end.peer = self.world.outer.ends[stream.id]
        end.peer.peer = end
        assert complete is (end.peer.finished and len(end.peer.sent) == 0)
        end.complete = complete
        end.eager = self.world.eager
        return end

    def ping(self):
        self.session.ping(u64.pack(self.carrier))

    def ponged(self, payload):
        assert u64.unpack(payload) == (self.carrier,), "a ping of another carrier was answered"

    def going_away(self, last_stream, code, detail):
        raise AssertionError("nobody leaves")

    def handler_failed(self, stream):
        raise

    def pump(self):
        """Send the next message; return whether there was one."""
        if not self.awake:
            return False
        self.awake = False
        message = self.session.next_message()
        self.awake = self.awake or self.session.pending
        if not self.session.pending:
            assert self.session.next_message() == b""
        if not message:
            assert not self.awake
            return False
        assert len(message) <= LARGEST
        self.wire.append(message)
        return True


class World:
    """Both sides, and what is between them."""

    def __init__(self, resend_buffer=16 * 1024 * 1024, window_bytes=1 << 28, pool=1 << 28):
        self.now = 0.0
        self.eager = True
        self.connected = True  # in the eyes of the inner side
        limits = Limits(resend_buffer=resend_buffer, max_streams=8)
        self.outer, self.inner = (
            Side(self, opens, limits, Memory(resend=Pool(pool), promised=Pool(window_bytes)))
            for opens in (True, False)
        )
        self.sides = (self.outer, self.inner)

    def other(self, side):
        return self.inner if side is self.outer else self.outer

    def open(self, complete):
        end = End(self)
        end.finished = complete
        end.eager = self.eager
        number = self.outer.session._last_id + 2
        self.outer.ends[number] = end
        end.peer = End(self)  # until the other side knows of it
        end.stream = self.outer.session.open(GET, TO, end, complete=complete)
        assert end.stream.id == number
        return end

    @property
    def all_ends(self):
        return [end for side in self.sides for end in side.ends.values()]

    # The link.

    def deliver(self, side):
        """The oldest message that ``side`` has sent arrives; return whether there was one."""
        if not side.wire:
            return False
        self.other(side).session.receive(side.wire.popleft())
        return True

    def later(self, seconds=0.005):
        """Time passes, and what was not acknowledged yet is."""
        self.now += seconds
        for side in self.sides:
            side.session.acknowledge()

    def cut(self):
        """The carrier breaks; what is on it is lost."""
        self.connected = False
        for side in self.sides:
            side.wire.clear()
            side.awake = False

    def notice(self):
        """Only the inner side has noticed that the carrier is dead."""
        self.connected = False
        self.inner.awake = False
        self.outer.wire.clear()

    def outer_resumes(self):
        """The outer side has taken the inner side's proof, and sends WELCOME."""
        received = self.inner.session.received
        self.inner.wire.clear()  # nothing comes from the old carrier any more
        self.outer.wire.clear()
        self.outer.awake = False
        self.outer.carrier += 1
        assert self.outer.session.resumable(received)
        self.outer.session.resume(received)
        assert self.outer.awake
        return self.outer.session.received

    def resume(self):
        """A new carrier, for both."""
        received = self.outer_resumes()
        assert self.inner.session.resumable(received)
        self.inner.awake = False
        self.inner.carrier += 1
        self.inner.session.resume(received)
        assert self.inner.awake
        self.connected = True

    # What must hold.

    def run(self):
        """Let both sides talk until they are silent."""
        assert self.connected
        for _ in range(100_000):
            busy = False
            for side in self.sides:
                busy |= side.pump()
                busy |= self.deliver(side)
            if not busy:
                if not any(side.session.untold for side in self.sides):
                    return
                self.later()
        raise AssertionError("they never fall silent")

    def check(self):
        """The books are in order."""
        for side in self.sides:
            session = side.session
            outbox = session._outbox
            streams = session.streams.values()
            assert outbox.acknowledged <= outbox.sent
            assert session.received <= self.other(side).session._outbox.sent
            assert outbox.acknowledged <= self.other(side).session.received
            assert outbox.size == sum(len(kept[1]) for kept in outbox._kept)
            assert outbox.cost == side.memory.resend.used >= outbox.size
            assert outbox.size <= outbox._bound + LARGEST
            assert session.buffered == sum(
                stream.receiving.held + stream.receiving.surcharge
                for stream in (*streams, *session.holding.lingering)
            )
            assert session.buffered == side.memory.buffered.used
            promised = sum(stream.receiving.promised for stream in streams)
            assert promised == session.holding.promised == side.memory.promised.used
            assert 0 <= promised <= side.memory.promised.limit
            waiting = sum(map(len, session._urgent)) + sum(map(len, session._control))
            assert session._control_size == waiting
            for stream in streams:
                assert stream.receiving.held == side.ends[stream.id].unconsumed
                assert stream.receiving.granted >= 0
                assert stream._send.available >= 0
                other = self.other(side).session.streams.get(stream.id)
                if other is not None:
                    # What may be sent never exceeds what will be taken.
                    assert stream._send.available <= other.receiving.granted

    def finish(self):
        """All is brought to its end; nothing is missing, and nothing is left."""
        if not self.connected:
            self.resume()
        for _ in range(1_000):
            self.run()
            idle = True
            for end in self.all_ends:
                end.eager = True
                end.take()  # also what is left after the end
                if end.alive and not (end.complete and end.finished):
                    idle = False
                    if not end.responded:
                        end.respond(200)
                    if not end.finished:
                        end.end([])
            if idle:
                break
        else:
            raise AssertionError("a stream never ends")
        self.run()
        for end in self.all_ends:
            if end.alive and end.peer.alive:
                end.check_everything()
            else:
                end.check_prefix()
                # Both know of it, unless all had been said before.
                assert not end.alive or end.complete
        self.check()
        for side in self.sides:
            assert side.session.settled
            assert not side.session.streams
            assert side.session.unacknowledged == 0
            assert side.memory.resend.used == 0
            assert side.memory.buffered.used == 0
            assert side.memory.promised.used == 0
