"""What the metrics count and how they are exported."""

from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sockgw.outer import metrics as module
from sockgw.outer.clienthello import Fault
from sockgw.outer.metrics import Metrics
from sockgw.protocol.handshake import Refused


def scrape(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return what a scrape shows: name and label values, in the order of labels, to value."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, *dict(sorted(sample.labels.items())).values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_requests(metrics: Metrics) -> None:
    metrics.request_done("a.example", 200, 0.1, 5, 100)
    metrics.request_done("a.example", 200, 0.2, 0, 50)
    metrics.request_done("a.example", 502, 0.3, 0, 7)
    metrics.request_done("-", 404, 0.0, 0, 1)
    seen = scrape(metrics)
    assert seen["sockgw_requests_total", "200", "a.example"] == 2
    assert seen["sockgw_requests_total", "502", "a.example"] == 1
    assert seen["sockgw_requests_total", "404", "-"] == 1
    assert seen["sockgw_bytes_total", "in", "a.example"] == 5
    assert seen["sockgw_bytes_total", "out", "a.example"] == 157
    assert seen["sockgw_bytes_total", "out", "-"] == 1


@pytest.mark.parametrize(
    ("seconds", "first"),
    [(0.0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (60.0, "60.0"), (60.1, "+Inf")],
)
def test_a_duration_counts_in_every_bucket_that_holds_it(
    metrics: Metrics, seconds: float, first: str
) -> None:
    metrics.request_done("a", 200, seconds, 0, 0)
    seen = scrape(metrics)
    buckets = {
        labels[0]: value
        for (name, *labels), value in seen.items()
        if name == "sockgw_request_duration_seconds_bucket"
    }
    assert buckets["+Inf"] == seen["sockgw_request_duration_seconds_count", "a"] == 1
    assert seen["sockgw_request_duration_seconds_sum", "a"] == seconds
    assert buckets == {bound: float(float(bound) >= float(first)) for bound in buckets}


def test_gauges_are_read_when_scraped(metrics: Metrics) -> None:
    tunnels = {"office": 2}
    metrics.gauge_streams = lambda: 7
    metrics.gauge_clients = lambda: 9
    metrics.gauge_tunnels = lambda: tunnels
    metrics.gauge_held = lambda: 3
    metrics.gauge_suspended = lambda: {"mill": 4}
    tunnels["home"] = 1
    seen = scrape(metrics)
    assert seen["sockgw_held_requests",] == 3
    assert seen["sockgw_tunnels_suspended", "mill"] == 4
    assert seen["sockgw_streams",] == 7
    assert seen["sockgw_clients",] == 9
    assert seen["sockgw_tunnels", "office"] == 2
    assert seen["sockgw_tunnels", "home"] == 1


def test_counts_of_a_tunnel_outlive_it(metrics: Metrics) -> None:
    live = [(10, 20, 3, 100), (1, 2, 0, 50)]
    metrics.live_tunnels = lambda: live

    def counts() -> list[float]:
        seen = scrape(metrics)
        return [
            seen["sockgw_tunnel_bytes_total", "in"],
            seen["sockgw_tunnel_bytes_total", "out"],
            seen["sockgw_credit_stalls_total",],
            seen["sockgw_resent_bytes_total",],
        ]

    assert counts() == [11, 22, 3, 150]
    metrics.tunnel_ended(*live.pop(0))
    assert counts() == [11, 22, 3, 150]
    live[0] = (5, 5, 5, 51)
    assert counts() == [15, 25, 8, 151]
    metrics.tunnel_ended(*live.pop(0))
    assert counts() == [15, 25, 8, 151]


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (Metrics.retried, "sockgw_retries_total"),
        (Metrics.hold_expired, "sockgw_hold_expired_total"),
        (Metrics.ejected, "sockgw_ejections_total"),
        (lambda metrics: metrics.resumed(False), "sockgw_resumes_total"),
        (Metrics.tunnel_lost, "sockgw_tunnels_lost_total"),
    ],
)
def test_events(metrics: Metrics, count: Callable[[Metrics], None], name: str) -> None:
    before = scrape(metrics)
    count(metrics)
    count(metrics)
    after = scrape(metrics)
    assert (before[name,], after[name,]) == (0, 2)
    ours = {key for key in before if key[0].startswith("sockgw_")}
    assert {key for key in ours if before[key] != after[key]} == {(name,)}


def test_a_takeover_is_a_resume(metrics: Metrics) -> None:
    metrics.resumed(True)
    metrics.resumed(False)
    seen = scrape(metrics)
    assert (seen["sockgw_resumes_total",], seen["sockgw_takeovers_total",]) == (2, 1)


@pytest.mark.parametrize("kind", Refused)
def test_reasons_are_a_fixed_set(metrics: Metrics, kind: Refused) -> None:
    metrics.handshake_failed(kind)
    seen = scrape(metrics)
    counted = {key[1]: n for key, n in seen.items() if key[0] == "sockgw_handshake_failures_total"}
    assert counted == {known.value: float(known is kind) for known in Refused}


@pytest.mark.parametrize("fault", Fault)
def test_faults_of_clients_are_a_fixed_set(metrics: Metrics, fault: Fault) -> None:
    metrics.hello_refused(fault)
    seen = scrape(metrics)
    counted = {key[1]: n for key, n in seen.items() if key[0] == "sockgw_hello_failures_total"}
    assert counted == {known.value: float(known is fault) for known in Fault}


def test_targets_are_bounded(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_TARGETS", 3)
    for number in range(10):
        metrics.request_done(f"t{number}", 200, 0.1, 0, 0)
    seen = scrape(metrics)
    counted = {key[2]: n for key, n in seen.items() if key[0] == "sockgw_requests_total"}
    assert counted == {"t0": 1, "t1": 1, "t2": 1, "-": 7}


def test_nothing_has_happened(metrics: Metrics) -> None:
    seen = scrape(metrics)
    assert seen["sockgw_streams",] == seen["sockgw_credit_stalls_total",] == 0
    names = {key[0] for key in seen}
    assert {"process_resident_memory_bytes", "python_gc_collections_total", "python_info"} <= names


def test_registries_are_separate() -> None:
    one, other = Metrics(), Metrics()
    one.tunnel_ended(0, 0, 5, 0)
    assert scrape(other)["sockgw_credit_stalls_total",] == 0
