"""The outer layer while it drains: who is served, who is told to go elsewhere."""

from functools import partial

import pytest
from gatewaybench import Bench
from http_clients import LIMITS
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from wire import Wire

from sockgw.config import load
from sockgw.http.front import ClientFactory
from sockgw.http.h2server import PREFACE
from sockgw.http.patience import ServerLimits
from sockgw.outer.admission import Admission
from sockgw.outer.config import OuterConfig
from sockgw.outer.registry import Registry
from sockgw.protocol.errors import TunnelCode
from sockgw.protocol.frames import FrameType
from sockgw.protocol.payloads import decode_goaway

GRACE = 1.0


@pytest.fixture
def bench():
    return Bench()


def closes(client):
    return client.values(b"Connection") == [b"close"]


def test_last_requests_are_served_and_later_ones_told_to_come_back(bench):
    inner = bench.inner()
    slow, idle = bench.client(), bench.client()
    slow.get()
    inner.last.respond(200, [(b"Content-Length", b"4")])
    bench.run()
    bench.gateway.drain(GRACE)
    assert bench.gateway.busy == 1
    bench.wait(GRACE)
    idle.get()
    inner.last.answer()
    bench.run()
    assert idle.status == 200
    assert closes(idle)
    bench.wait(GRACE + 0.5)
    slow.take()
    slow.send(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")  # behind the answer that runs
    inner.streams[0].stream.write(b"body")
    inner.streams[0].stream.end()
    bench.run()
    assert slow.written.startswith(b"body")
    slow.transport.written[:4] = b""
    assert slow.status == 503
    assert closes(slow)
    assert slow.values(b"Retry-After") == [b"1"]
    assert len(inner.streams) == 2
    outcomes = sorted((entry.status, entry.outcome) for entry in bench.log.entries)
    assert outcomes == [(200, ""), (200, ""), (503, "this gateway is about to stop")]


def test_it_tells_when_all_have_gone(bench):
    inner = bench.inner()
    busy, idle = bench.client(), bench.client()
    busy.get()
    bench.gateway.drain(GRACE)
    told = []
    bench.gateway.emptied().addCallback(told.append)
    bench.wait(20)
    assert idle.ended
    assert not busy.ended
    assert told == []
    inner.last.answer()
    bench.run()
    assert closes(busy)
    busy.leave()
    assert told == [None]


def test_a_client_that_turns_out_to_speak_http_2_has_not_gone_meanwhile(bench):
    bench.factory = ClientFactory(
        bench.gateway,
        bench.deadlines,
        ServerLimits(**LIMITS),
        bench.clock.seconds,
        later=partial(bench.clock.callLater, 0),
    )
    client = bench.client()
    bench.gateway.drain(GRACE)
    told = []
    bench.gateway.emptied().addCallback(told.append)
    client.send(PREFACE)
    assert bench.gateway.connections == 1
    assert told == []
    bench.wait(2 * GRACE)
    assert told == [None]


def test_who_had_been_let_in_by_the_kernel_is_served(bench):
    inner = bench.inner()
    bench.gateway.drain(GRACE)
    client = bench.client().get()
    inner.last.answer()
    bench.run()
    assert client.status == 200
    assert closes(client)


def test_it_is_not_ready(bench):
    client = bench.client()
    assert bench.gateway.unready == "no inner layer is connected"
    bench.inner()
    assert bench.gateway.unready == ""
    bench.gateway.drain(GRACE)
    assert bench.gateway.unready == "draining"
    client.get("/readyz", "nobody.example")
    assert client.status == 503
    assert client.body == b"draining\n"


def test_it_is_healthy(bench):
    bench.gateway.drain(GRACE)
    assert bench.client().get("/healthz", "nobody.example").status == 200


# ---------------------------------------------------------------------- inner layers


@pytest.fixture
def admission():
    config = load(OuterConfig, {"public-key": ["unused"], "targets": ["unused"]}, {})
    clock = Clock()
    admission = Admission(config, clock, None, Registry(10), None, None)
    admission.wire = lambda: Wire(clock)
    admission.clock = clock

    class Ring:
        def find(self, fingerprint):
            raise AssertionError("nobody says anything here")

    admission._keyring = Ring()
    return admission


def test_greetings_end_in_good_order_and_no_new_ones_begin(admission):
    before, after = admission.wire(), admission.wire()
    admission.opened(before)
    assert before.calls == []
    admission.drain()
    assert before.calls == ["close"]
    admission.opened(after)
    assert after.calls == ["close"]
    assert before.sent == after.sent == []
    admission.clock.advance(100)
    assert not admission._waiting
    assert admission.clock.getDelayedCalls() == []


def test_tunnels_are_told_once_and_stay(bench):
    inner = bench.inner()
    client = bench.client().get()
    admission = Admission(bench.config, bench.clock, None, bench.registry, bench.metrics, None)
    bench.frames.clear()
    admission.leave()
    bench.run()
    ((_, _, _, payload),) = [frame for frame in bench.frames if frame[0] == FrameType.GOAWAY]
    _, code, detail = decode_goaway(payload)
    assert (code, detail) == (TunnelCode.NO_ERROR, "the outer layer is draining")
    assert len(bench.registry) == 1
    inner.last.answer()
    bench.run()
    assert client.status == 200


# ---------------------------------------------------------------------- all of it in order


class Port:
    """A listener of a plugin's, without a socket."""

    def __init__(self, events):
        self.events = events
        self.closed = Deferred()

    def stopListening(self):
        self.events.append("closing")
        return self.closed


@pytest.fixture
def service(tmp_path, monkeypatch):
    from twisted.internet.testing import MemoryReactorClock

    from sockgw.keys import generate
    from sockgw.outer.service import OuterService

    generate(tmp_path / "office.key", tmp_path / "office.crt", common_name="office")
    (tmp_path / "targets.yaml").write_text("targets: {a.example: {hostname: b}}")
    settings = {
        "public-key": [str(tmp_path / "office.crt")],
        "targets": [str(tmp_path / "targets.yaml")],
        "access-log": ["off"],
        "drain-timeout": ["5000"],
    }
    service = OuterService(load(OuterConfig, settings, {}), MemoryReactorClock())
    service.events = []
    for name in ("drain", "leave", "stop"):
        monkeypatch.setattr(service._admission, name, lambda name=name: service.events.append(name))
    monkeypatch.setattr(
        service._gateway.dispatcher.held, "stop", lambda: service.events.append("hold nobody")
    )
    service._ports = [Port(service.events)]
    return service


class Somebody:
    """A client's connection, as far as the gateway counts them."""

    busy = True
    ended = False

    def drain(self, grace):
        self.grace = grace


def test_inner_layers_are_told_once_the_listeners_are_closed(service):
    """Who is told dials again at once, and shall find the successor."""
    (port,) = service._ports
    drained = service.drain()
    assert service._gateway.draining
    assert service.events == ["drain", "closing"]
    port.closed.callback(None)
    # Else what the tunnels lose would be held, and answered by nobody.
    assert service.events == ["drain", "closing", "leave", "hold nobody", "stop"]
    assert drained.called


def test_clients_are_waited_for(service):
    (port,) = service._ports
    client = Somebody()
    service._gateway.connected(client)
    drained = service.drain()
    port.closed.callback(None)
    assert client.grace == GRACE
    service.reactor.advance(4.9)
    assert service.events[-1] == "leave"
    service._gateway.disconnected(client)
    assert service.events[-1] == "stop"
    assert drained.called
    assert service.reactor.getDelayedCalls() == []


def test_inner_layers_have_a_moment_to_leave(service):
    (port,) = service._ports
    service._carriers.add("one")
    drained = service.drain()
    port.closed.callback(None)
    assert service.events[-1] == "stop"
    assert not drained.called
    service._carriers.discard("one")
    assert drained.called


@pytest.mark.parametrize("slow_port", [False, True])
def test_nobody_is_waited_for_longer_than_the_timeout(service, slow_port):
    (port,) = service._ports
    service._gateway.connected(Somebody())
    drained = service.drain()
    if slow_port:
        service.reactor.advance(3)
    port.closed.callback(None)
    service.reactor.advance(4.9 - 3 * slow_port)
    assert service.events[-1] == "leave"
    service.reactor.advance(0.2)
    assert service.events[-1] == "stop"
    service.reactor.advance(1.4)
    assert not drained.called, "for what it was told"
    service.reactor.advance(0.2)
    assert drained.called
    assert service.reactor.getDelayedCalls() == []


def test_a_stop_ends_the_draining(service):
    (port,) = service._ports
    service._gateway.connected(Somebody())
    drained = service.drain()
    errors = []
    drained.addErrback(errors.append)
    port.closed.callback(None)
    drained.cancel()
    assert len(errors) == 1
    assert service.events[-1] == "leave"
    assert service.reactor.getDelayedCalls() == []
