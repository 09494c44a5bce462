"""A relay between two ends of TCP connections that can be slow, far, and fail in every way.

A process of its own (see control.py). It passes connections to its port on to another one, over a
*line* for each direction: *up* is from who connected, *down* the other one. All connections share
the two lines, as they would share a link:

1. Bytes that were read wait in the line's queue until the line, at its rate, has sent them.
2. Then they fly for the delay, and are due at the other end.
3. A connection is read from only while fewer bytes wait in the queue than the line holds, as in a
   router's buffer. Bytes that are due and which the other end does not take count too, for their
   own connection.

Chunks are no longer than what the line sends in a millisecond. Sleeping is exact to some 50 µs:
select() takes microseconds, while epoll by itself takes milliseconds and rounds them up.

Faults hit the connections that are there (new ones pass), at once or after an exact number of
bytes handed on in a direction:

====== ==========================================================================
fin    both sides get a FIN; what was under way is lost
rst    both sides get a RST
hole   both sides stay connected; what they send is acknowledged and vanishes
lose   the same in one direction
stall  both sides stay connected; nothing is read any more
freeze the same for all connections, also new ones, until ``thaw``
flip   the next byte's bits are inverted
double the next byte is sent twice
====== ==========================================================================
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import time
from collections import deque
from math import inf
from typing import Any

PIECE = 131_072  # bytes read at a time
PACKET = 1448  # bytes: no chunk is shorter, however slow the line
QUANTUM = 0.001  # seconds of the line's rate: no chunk is longer
FLYING = 64 << 20  # bytes: most that is under way on a connection over a line without a rate
DIRECTIONS = ("up", "down")
RESET = struct.pack("ii", 1, 0)


class Line:
    """One direction, shared by all connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rate = inf  # bytes a second
        self.delay = 0.0  # seconds
        self.hold = 1 << 20  # bytes
        self.free = 0.0  # when the line has sent all that waits
        self.waiting: deque[tuple[float, int]] = deque()  # when sent, bytes
        self.held = 0  # bytes in ``waiting``
        self.delivered = 0
        self.swallowed = 0
        #: At which count of delivered bytes to do what, and whom to tell.
        self.armed: list[tuple[int, dict[str, Any]]] = []

    def depart(self, now: float) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            self.held -= self.waiting.popleft()[1]


class End:
    """One of the two sockets of a connection."""

    def __init__(self, relay: Relay, wire: socket.socket, connection: Connection) -> None:
        self._relay = relay
        self._mask = 0
        self.wire = wire
        self.fd = wire.fileno()
        self.connection = connection
        #: By which it is read, and written to.
        self.outgoing: Pipe
        self.incoming: Pipe
        relay.ends[self.fd] = self
        relay.epoll.register(self.fd, 0)

    def want(self, mask: int, on: bool) -> None:
        wanted = self._mask | mask if on else self._mask & ~mask
        if wanted != self._mask and self._relay.ends.get(self.fd) is self:
            self._relay.epoll.modify(self.fd, wanted)
            self._mask = wanted

    def forget(self) -> None:
        """Hear of it no more; it stays open."""
        if self._relay.ends.get(self.fd) is self:
            del self._relay.ends[self.fd]
            self._relay.epoll.unregister(self.fd)

    def close(self, *, reset: bool = False) -> None:
        self.forget()
        if reset:
            with contextlib.suppress(OSError):
                self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.wire.close()


class Pipe:
    """One direction of a connection."""

    def __init__(self, relay: Relay, line: Line, source: End, sink: End) -> None:
        self._relay = relay
        self.line = line
        self.source = source
        self.sink = sink
        source.outgoing = sink.incoming = self
        self.flying: deque[tuple[float, memoryview | None]] = deque()  # None is the end
        self.due: deque[memoryview | None] = deque()
        self.under_way = 0  # bytes waiting and flying
        self.stuck = 0  # bytes due
        self.ended = False
        self.swallow = False
        self.tamper = ""
        source.want(select.EPOLLIN, True)

    def room(self) -> int:
        if self.swallow:
            return PIECE
        line = self.line
        room = line.hold - line.held - self.stuck
        if line.rate == inf and line.delay:
            room = min(room, FLYING - self.under_way)
        return min(room, PIECE)

    def read(self, now: float) -> None:
        room = self.room()
        if self.ended or room <= 0:
            self.source.want(select.EPOLLIN, False)
            if not self.ended:
                self._relay.full.add(self)
            return
        try:
            data = self.source.wire.recv(room)
        except BlockingIOError:
            return
        except OSError:
            self.source.connection.broke(self.source)
            return
        line = self.line
        if self.swallow:
            line.swallowed += len(data)
            if not data:
                self.source.connection.broke(self.source)
            return
        if not data:
            self.ended = True
            self.source.want(select.EPOLLIN, False)
            self._fly(max(now, line.free) + line.delay, None, now)
            return
        view = memoryview(data)
        if line.rate == inf:
            self._fly(now + line.delay, view, now)
            return
        step = max(PACKET, int(line.rate * QUANTUM))
        for start in range(0, len(view), step):
            chunk = view[start : start + step]
            line.free = max(now, line.free) + len(chunk) / line.rate
            line.waiting.append((line.free, len(chunk)))
            line.held += len(chunk)
            self._fly(line.free + line.delay, chunk, now)

    def _fly(self, arrival: float, chunk: memoryview | None, now: float) -> None:
        if self.flying:
            arrival = max(arrival, self.flying[-1][0])
        elif arrival <= now:
            self.due.append(chunk)
            self.stuck += len(chunk or b"")
            self.write()
            return
        self.flying.append((arrival, chunk))
        self.under_way += len(chunk or b"")
        self._relay.busy.add(self)

    def arrive(self, now: float) -> None:
        while self.flying and self.flying[0][0] <= now:
            chunk = self.flying.popleft()[1]
            self.under_way -= len(chunk or b"")
            self.stuck += len(chunk or b"")
            self.due.append(chunk)
        if not self.flying:
            self._relay.busy.discard(self)
        self.write()

    def write(self) -> None:
        line = self.line
        while self.due and not self.swallow:
            chunk = self.due[0]
            if chunk is None:
                self.due.popleft()
                with contextlib.suppress(OSError):
                    self.sink.wire.shutdown(socket.SHUT_WR)
                self.sink.want(select.EPOLLOUT, False)
                self.source.connection.half_closed()
                return
            if self.tamper:
                self._tamper(chunk)
                continue
            limit = len(chunk)
            if line.armed:
                limit = min(limit, line.armed[0][0] - line.delivered)
            try:
                sent = self.sink.wire.send(chunk[:limit])
            except BlockingIOError:
                self.sink.want(select.EPOLLOUT, True)
                return
            except OSError:
                self.source.connection.broke(self.sink)
                return
            self.stuck -= sent
            line.delivered += sent
            if sent == len(chunk):
                self.due.popleft()
            else:
                self.due[0] = chunk[sent:]
            if line.armed and line.delivered == line.armed[0][0]:
                self._relay.fire(line, self)
                if self._relay.frozen:
                    return
        self.sink.want(select.EPOLLOUT, False)

    def _tamper(self, chunk: memoryview) -> None:
        if self.tamper == "flip":
            self.due[0] = memoryview(bytes([chunk[0] ^ 0xFF]) + chunk[1:])
        else:
            self.due[0] = memoryview(bytes([chunk[0]]) + bytes(chunk))
            self.stuck += 1
        self.tamper = ""

    def vanish(self) -> None:
        """Lose what is under way and all that comes."""
        self.swallow = True
        self.line.swallowed += self.under_way + self.stuck
        self.drop()
        self.source.want(select.EPOLLIN, not self.ended)

    def drop(self) -> None:
        self.flying.clear()
        self.due.clear()
        self.under_way = self.stuck = 0
        self._relay.busy.discard(self)
        self._relay.full.discard(self)


class Connection:
    """A connection: two ends and two pipes."""

    def __init__(self, relay: Relay, near: socket.socket, far: socket.socket) -> None:
        self._relay = relay
        self._half_closed = 0
        self.ends = (End(relay, near, self), End(relay, far, self))
        self.pipes = (
            Pipe(relay, relay.lines["up"], *self.ends),
            Pipe(relay, relay.lines["down"], *reversed(self.ends)),
        )
        relay.connections.add(self)

    def half_closed(self) -> None:
        self._half_closed += 1
        if self._half_closed == 2 or self._some_end_is_closed():
            self._close()

    def broke(self, end: End) -> None:
        """A side was reset: so is the other one, unless the way there is lost."""
        if end.outgoing.swallow and not self._some_end_is_closed():
            end.close()
        else:
            self._close(reset=True)

    def _some_end_is_closed(self) -> bool:
        return any(end.wire.fileno() < 0 for end in self.ends)

    def _close(self, *, reset: bool = False) -> None:
        for pipe in self.pipes:
            pipe.drop()
        for end in self.ends:
            end.close(reset=reset)
        self._relay.connections.discard(self)

    def fail(self, action: str, direction: str) -> None:
        if action == "rst":
            self._close(reset=True)
        elif action == "fin":
            # Closing with unread bytes would send a RST: they are read and dropped.
            for pipe in self.pipes:
                pipe.vanish()
            for end in self.ends:
                with contextlib.suppress(OSError):
                    end.wire.shutdown(socket.SHUT_WR)
        elif action == "stall":
            for pipe in self.pipes:
                pipe.drop()
            for end in self.ends:
                end.forget()
        elif action == "hole":
            for pipe in self.pipes:
                pipe.vanish()
        elif action == "lose":
            self.pipes[DIRECTIONS.index(direction)].vanish()
        else:
            raise ValueError(f"no such fault: {action}")
        if action in ("fin", "stall", "hole"):
            self._relay.connections.discard(self)
            self._relay.ghosts.append(self)


class Relay:
    """All of it."""

    def __init__(self, control: socket.socket) -> None:
        self.lines = {name: Line(name) for name in DIRECTIONS}
        self.epoll = select.epoll()
        self.ends: dict[int, End] = {}
        self.connections: set[Connection] = set()
        self.ghosts: list[Connection] = []  # given up, kept open
        self.busy: set[Pipe] = set()  # with chunks flying
        self.full: set[Pipe] = set()  # not read from for want of room
        self.frozen = False
        self._control = control
        self._received = b""
        self._target = 0
        self._buffers = 0  # bytes of each kernel buffer of ours; 0 for the system's
        self._accepted = 0
        self._refused = 0
        self._faults: list[tuple[float, str, int]] = []
        # A socket that is bound and does not listen keeps the port while nobody may connect.
        self._holder = _bound(0)
        self._port = self._holder.getsockname()[1]
        self._listener: socket.socket | None = None
        self._listen()

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        watched = [self._control] if self.frozen else [self._control, self.epoll]
        ready = select.select(watched, [], [], self._timeout())[0]
        if self._control in ready and not self._obey():
            return False
        if self.frozen:
            return True
        now = time.monotonic()
        if self.epoll in ready:
            for fd, mask in self.epoll.poll(0):
                self._happened(fd, mask, now)
                if self.frozen:
                    return True
        for line in self.lines.values():
            line.depart(now)
        for pipe in list(self.busy):
            if pipe.flying and pipe.flying[0][0] <= now:
                pipe.arrive(now)
                if self.frozen:
                    return True
        for pipe in list(self.full):
            if pipe in self.full and pipe.room() > 0:
                self.full.discard(pipe)
                pipe.source.want(select.EPOLLIN, True)
                pipe.read(now)
        return True

    def _timeout(self) -> float | None:
        if self.frozen:
            return None
        at = min((pipe.flying[0][0] for pipe in self.busy), default=inf)
        if self.full:
            for line in self.lines.values():
                if line.waiting:
                    at = min(at, line.waiting[0][0])
        return None if at == inf else max(0.0, at - time.monotonic())

    def _happened(self, fd: int, mask: int, now: float) -> None:
        if self._listener is not None and fd == self._listener.fileno():
            self._accept()
            return
        end = self.ends.get(fd)
        if end is not None and mask & select.EPOLLOUT:
            end.incoming.write()
        if fd in self.ends and end is not None:
            if mask & (select.EPOLLIN | select.EPOLLRDHUP):
                end.outgoing.read(now)
            elif mask & (select.EPOLLERR | select.EPOLLHUP):
                if mask & select.EPOLLERR or end.outgoing.swallow:
                    end.connection.broke(end)
                else:
                    end.forget()  # closed both ways; what is under way still goes its way

    # ------------------------------------------------------------------ connections

    def _listen(self) -> None:
        self._listener = _bound(self._port)
        if self._buffers:
            _shorten(self._listener, self._buffers)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self.epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _refuse(self) -> None:
        if self._listener is not None:
            self.epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            near = self._listener.accept()[0]
        except OSError:
            return
        far = socket.socket()
        for wire in (near, far):
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._buffers:
                _shorten(wire, self._buffers)
        far.settimeout(1.0)
        try:
            far.connect(("127.0.0.1", self._target))
        except OSError:
            self._refused += 1
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            near.close()
            far.close()
            return
        near.setblocking(False)
        far.setblocking(False)
        self._accepted += 1
        Connection(self, near, far)

    # ------------------------------------------------------------------ faults

    def fail(self, action: str, direction: str = "") -> dict[str, Any]:
        """Do it now, to all connections that are there."""
        hit = len(self.connections)
        if action == "freeze":
            self.frozen = True
        elif action in ("flip", "double"):
            for connection in self.connections:
                connection.pipes[DIRECTIONS.index(direction)].tamper = action
        else:
            for connection in list(self.connections):
                connection.fail(action, direction)
        at = time.monotonic()
        self._faults.append((at, action, hit))
        return {"at": at, "hit": hit}

    def fire(self, line: Line, pipe: Pipe) -> None:
        _, command = line.armed.pop(0)
        if command["action"] in ("flip", "double"):
            pipe.tamper = command["action"]
            self._faults.append((time.monotonic(), command["action"], 1))
            done = {"at": time.monotonic(), "hit": 1}
        else:
            done = self.fail(command["action"], command.get("direction", ""))
        self._answer(command["number"], {"fired": True, **done})

    # ------------------------------------------------------------------ control

    def _obey(self) -> bool:
        try:
            data = self._control.recv(65_536)
        except ConnectionResetError:  # the tests ended with an answer unread
            return False
        if not data:
            return False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            try:
                answer = getattr(self, f"do_{command['command']}")(command)
            except Exception as error:  # noqa: BLE001 - raised in the test
                answer = {"error": repr(error)}
            if answer is not None:
                self._answer(command["number"], answer)
        return True

    def _answer(self, number: int, answer: dict[str, Any]) -> None:
        self._control.sendall(json.dumps({"number": number, **answer}).encode() + b"\n")

    def do_port(self, command: dict[str, Any]) -> dict[str, Any]:
        return {"port": self._port}

    def do_set(self, command: dict[str, Any]) -> dict[str, Any]:
        """See control.Relay."""
        self._target = command.get("target", self._target)
        if "buffers" in command:
            self._buffers = command["buffers"]
            self._refuse()
            self._listen()
        for name in [command["direction"]] if "direction" in command else DIRECTIONS:
            line = self.lines[name]
            if "rate" in command:
                line.rate = command["rate"] / 8 or inf
            line.delay = command.get("delay", line.delay)
            line.hold = command.get("hold", line.hold)
        return {}

    def do_fail(self, command: dict[str, Any]) -> dict[str, Any]:
        return self.fail(command["action"], command.get("direction", ""))

    def do_arm(self, command: dict[str, Any]) -> None:
        """Let a fault happen after exactly ``bytes`` more in the direction ``on``; answer then."""
        line = self.lines[command["on"]]
        assert command["bytes"] > 0
        line.armed.append((line.delivered + command["bytes"], command))
        line.armed.sort(key=lambda item: item[0])

    def do_disarm(self, command: dict[str, Any]) -> dict[str, Any]:
        for line in self.lines.values():
            for _, armed in line.armed:
                self._answer(armed["number"], {"fired": False})
            line.armed.clear()
        return {}

    def do_thaw(self, command: dict[str, Any]) -> dict[str, Any]:
        self.frozen = False
        now = time.monotonic()
        for connection in list(self.connections):
            for pipe in connection.pipes:
                pipe.arrive(now)
        return {"at": now}

    def do_refuse(self, command: dict[str, Any]) -> dict[str, Any]:
        self._refuse()
        return {"at": time.monotonic()}

    def do_accept(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._listener is None:
            self._listen()
        return {"at": time.monotonic()}

    def do_stats(self, command: dict[str, Any]) -> dict[str, Any]:
        return {
            "open": len(self.connections),
            "accepted": self._accepted,
            "refused": self._refused,
            "faults": self._faults,
            **{
                name: {
                    "delivered": line.delivered,
                    "swallowed": line.swallowed,
                    "held": line.held,
                }
                for name, line in self.lines.items()
            },
        }


def _bound(port: int) -> socket.socket:
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    wire.bind(("127.0.0.1", port))
    return wire


def _shorten(wire: socket.socket, size: int) -> None:
    """Have the kernel keep about ``size`` bytes each way.

    Loopback's segments of 64 KiB would not fit into a small buffer, and the sender then waits for
    timers: they are made as short as Ethernet's.
    """
    with contextlib.suppress(OSError):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


if __name__ == "__main__":
    Relay(socket.socket(fileno=int(sys.argv[1]))).run()
