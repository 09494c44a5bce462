"""Counters of the outer layer: plain numbers on the request path, Prometheus families at a scrape.

prometheus_client's own counters take a lock and look labels up on each step. Here a request costs a
dictionary look-up and some additions, and the families are made from that when somebody asks.

Labels come from small sets: names in the targets file, identifiers in the key ring, statuses, and
reasons listed here. Nothing that a stranger sends becomes a label.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from sockgw import __version__
from sockgw.build import BUILD
from sockgw.edge import Edge
from sockgw.outer.clienthello import Fault
from sockgw.protocol.handshake import Refused

__all__ = ["Metrics", "TunnelCount"]

# Upper bounds in seconds: from a hop on loopback to the default timeout of a first byte.
_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_BOUNDS = tuple(str(bound) for bound in _BUCKETS) + ("+Inf",)

# Names of targets seen since the start. Only a targets file that is rewritten again and again comes
# near; requests for further names count under "-".
_MAX_TARGETS = 20_000


class _Target:
    """What is counted for one target."""

    __slots__ = ("buckets", "bytes_in", "bytes_out", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0


TunnelCount = tuple[int, int, int, int]
"""Of a tunnel: bytes from the inner layer, bytes to it, times that a stream had no credit, bytes
sent again after a carrier was lost."""

# What happens now and then.
_EVENTS = {
    "retries": "Times that another inner layer was asked for a request.",
    "hold_expired": "Requests that waited for an inner layer in vain.",
    "ejections": "Times that an inner layer was passed over since it could not reach a target.",
    "resumes": "Tunnels that went on with a new carrier.",
    "takeovers": "Of these, tunnels whose former carrier still looked alive.",
    "tunnels_lost": "Tunnels that were not resumed in time.",
    "datagrams_dropped": "Datagrams of UDP clients that were not passed on.",
}

# What listeners have counted, by the names of the family and of Edge's attribute.
_EDGE = {
    "proxy_headers_refused": ("headers_refused", "Connections closed for their PROXY header."),
    "tls_failures": ("handshakes_failed", "Connections that ended within the TLS handshake."),
}


def _nothing() -> int:
    return 0


class Metrics:
    """Everything counted, and a registry that exports it.

    What has a present value is read when scraped, from callables that the service puts here.
    """

    def __init__(self) -> None:
        self._targets: dict[str, _Target] = {}
        self._handshake_failures = dict.fromkeys(Refused, 0)
        self._hello_faults = dict.fromkeys(Fault, 0)
        self._ended: TunnelCount = (0, 0, 0, 0)
        self._events = dict.fromkeys(_EVENTS, 0)
        #: Open streams, connections of clients, requests that wait for an inner layer, and tunnels
        #: by identifier: those that are connected, and those that wait for a carrier.
        self.gauge_streams: Callable[[], int] = _nothing
        self.gauge_clients: Callable[[], int] = _nothing
        self.gauge_held: Callable[[], int] = _nothing
        self.gauge_tunnels: Callable[[], Mapping[str, int]] = dict
        self.gauge_suspended: Callable[[], Mapping[str, int]] = dict
        #: What the listeners share, and count.
        self.edge = Edge(lambda: 0.0)
        #: What the tunnels that stand have counted so far.
        self.live_tunnels: Callable[[], Iterable[TunnelCount]] = tuple
        #: The families below, and those of the process, the interpreter and its memory.
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def request_done(
        self, target: str, status: int, seconds: float, bytes_in: int, bytes_out: int
    ) -> None:
        """Count a request of a client.

        ``target`` is its name in the targets file, or ``"-"`` where the host names none; ``status``
        what the client got; sizes are of bodies, ``bytes_in`` from the client.
        """
        counted = self._targets.get(target)
        if counted is None:
            counted = self._new_target(target)
        statuses = counted.statuses
        statuses[status] = statuses.get(status, 0) + 1
        counted.buckets[bisect_left(_BUCKETS, seconds)] += 1
        counted.seconds += seconds
        counted.bytes_in += bytes_in
        counted.bytes_out += bytes_out

    def tunnel_ended(self, bytes_in: int, bytes_out: int, stalls: int, resent: int) -> None:
        """Keep the counts of a tunnel that no longer stands."""
        self._ended = _sum(self._ended, (bytes_in, bytes_out, stalls, resent))

    def retried(self) -> None:
        """Count a request for which another inner layer is asked."""
        self._events["retries"] += 1

    def hold_expired(self) -> None:
        """Count a request that has waited for an inner layer in vain."""
        self._events["hold_expired"] += 1

    def ejected(self) -> None:
        """Count an inner layer that is passed over from now on."""
        self._events["ejections"] += 1

    def resumed(self, taken_over: bool) -> None:
        """Count a tunnel that goes on with another carrier; the former may have looked alive."""
        self._events["resumes"] += 1
        self._events["takeovers"] += taken_over

    def tunnel_lost(self) -> None:
        """Count a tunnel that was not resumed in time."""
        self._events["tunnels_lost"] += 1

    def datagrams_dropped(self, count: int) -> None:
        """Count datagrams for which there was no room."""
        self._events["datagrams_dropped"] += count

    def handshake_failed(self, kind: Refused) -> None:
        """Count an inner layer turned away."""
        self._handshake_failures[kind] += 1

    def hello_refused(self, fault: Fault) -> None:
        """Count a client with a bad ClientHello, on a port that looks at it."""
        self._hello_faults[fault] += 1

    def _new_target(self, name: str) -> _Target:
        if len(self._targets) >= _MAX_TARGETS:
            name = "-"
        return self._targets.setdefault(name, _Target())

    def collect(self) -> Iterator[Metric]:
        """Make the families. Only for the reactor's thread, as everything that it reads."""
        requests = CounterMetricFamily(
            "sockgw_requests", "Requests of clients.", labels=["target", "status"]
        )
        durations = HistogramMetricFamily(
            "sockgw_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            labels=["target"],
        )
        bodies = CounterMetricFamily(
            "sockgw_bytes",
            "Bytes of bodies, from clients (in) and to clients (out).",
            labels=["target", "direction"],
        )
        for name, counted in self._targets.items():
            for status, count in sorted(counted.statuses.items()):
                requests.add_metric([name, str(status)], count)
            durations.add_metric([name], _cumulative(counted.buckets), counted.seconds)
            bodies.add_metric([name, "in"], counted.bytes_in)
            bodies.add_metric([name, "out"], counted.bytes_out)
        yield requests
        yield durations
        yield bodies

        yield GaugeMetricFamily("sockgw_streams", "Open streams.", self.gauge_streams())
        yield GaugeMetricFamily("sockgw_clients", "Connections of clients.", self.gauge_clients())
        yield GaugeMetricFamily(
            "sockgw_held_requests", "Requests that wait for an inner layer.", self.gauge_held()
        )
        for name, meaning, gauge in (
            ("sockgw_tunnels", "Tunnels of inner layers.", self.gauge_tunnels),
            ("sockgw_tunnels_suspended", "Tunnels without a carrier.", self.gauge_suspended),
        ):
            tunnels = GaugeMetricFamily(name, meaning, labels=["identifier"])
            for identifier, number in gauge().items():
                tunnels.add_metric([identifier], number)
            yield tunnels
        for event, meaning in _EVENTS.items():
            yield CounterMetricFamily(f"sockgw_{event}", meaning, self._events[event])

        for name, (attribute, meaning) in _EDGE.items():
            yield CounterMetricFamily(f"sockgw_{name}", meaning, getattr(self.edge, attribute))

        expiries = GaugeMetricFamily(
            "sockgw_certificate_expiry_timestamp_seconds",
            "When a certificate ends, in seconds since 1970.",
            labels=["file"],
        )
        for file, moment in self.edge.expiries().items():
            expiries.add_metric([file], moment)
        yield expiries

        bytes_in, bytes_out, stalls, resent = reduce(_sum, self.live_tunnels(), self._ended)
        yield CounterMetricFamily(
            "sockgw_credit_stalls", "Times that a stream had data and no credit.", stalls
        )
        yield CounterMetricFamily(
            "sockgw_resent_bytes", "Bytes sent again after a carrier was lost.", resent
        )
        carried = CounterMetricFamily(
            "sockgw_tunnel_bytes",
            "Bytes of tunnels, from inner layers (in) and to them (out).",
            labels=["direction"],
        )
        carried.add_metric(["in"], bytes_in)
        carried.add_metric(["out"], bytes_out)
        yield carried

        failures = CounterMetricFamily(
            "sockgw_handshake_failures", "Inner layers turned away.", labels=["reason"]
        )
        for kind, count in self._handshake_failures.items():
            failures.add_metric([kind.value], count)
        yield failures

        hellos = CounterMetricFamily(
            "sockgw_hello_failures",
            "Connections closed for their ClientHello, where one is looked at.",
            labels=["reason"],
        )
        for fault, count in self._hello_faults.items():
            hellos.add_metric([fault.value], count)
        yield hellos

        build = {"version": __version__, "build": BUILD}
        yield InfoMetricFamily("sockgw_build", "What runs here.", build)


def _sum(one: TunnelCount, other: TunnelCount) -> TunnelCount:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Return each bound with how many lie at or below it, as Prometheus wants a histogram."""
    return list(zip(_BOUNDS, accumulate(buckets), strict=True))
