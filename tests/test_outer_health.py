"""Passive ejection: who cannot reach a target that others reach."""

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from sockgw.outer import health as module
from sockgw.outer.health import NOT_REACHED, Health
from sockgw.outer.registry import Member
from sockgw.outer.targetsfile import parse_targets
from sockgw.protocol.errors import StreamCode

REFUSED = StreamCode.CONNECTION_REFUSED
TARGET, OTHER = parse_targets("targets: {a: {hostname: x}, b: {hostname: x}}", "t")


class FakeTunnel:
    available = True


class Bench:
    def __init__(self, after=3, pause=10.0, max_pause=60.0):
        self.clock = Clock()
        self.members = [self.member() for _ in range(3)]
        self.ejections = 0
        self.health = Health(
            self.clock.seconds,
            lambda identifiers: iter(self.members),
            self.ejected,
            after=after,
            pause=pause,
            max_pause=max_pause,
        )

    def member(self):
        return Member(FakeTunnel(), "office", b"f" * 32, "192.0.2.1", 0.0)

    def ejected(self):
        self.ejections += 1

    def fail(self, member, times=1, target=TARGET):
        for _ in range(times):
            self.health.unreached(target, member, REFUSED)

    @property
    def passed_over(self):
        return list(self.health.passed_over("a"))


@pytest.fixture
def bench():
    return Bench()


def test_nothing_is_kept_while_nothing_fails(bench):
    bench.health.reached("a", bench.members[0])
    assert bench.health.failing == {}
    assert bench.passed_over == []


def test_three_times_in_a_row(bench):
    first = bench.members[0]
    bench.fail(first, 2)
    assert bench.passed_over == []
    bench.health.reached("a", first)
    assert bench.health.failing == {}
    bench.fail(first, 2)
    assert bench.passed_over == []
    bench.fail(first)
    assert bench.passed_over == [first]
    assert bench.ejections == 1
    assert bench.health.targets_without(first) == ["a"]


def test_each_target_for_itself(bench):
    first = bench.members[0]
    bench.fail(first, 2)
    bench.fail(first, 2, OTHER)
    assert bench.health.passed_over("a") == bench.health.passed_over("b") == []
    bench.fail(first, 1, OTHER)
    assert bench.health.passed_over("a") == []
    assert bench.health.passed_over("b") == [first]


def test_it_comes_back_and_the_pause_doubles_up_to_the_longest(bench):
    first = bench.members[0]
    bench.fail(first, 3)
    for pause in (10, 20, 40, 60, 60):
        bench.clock.advance(pause - 0.5)
        assert bench.passed_over == [first]
        bench.clock.advance(1)
        assert bench.passed_over == []
        bench.fail(first)
    assert bench.ejections == 6


def test_what_was_under_way_does_not_prolong_it(bench):
    first = bench.members[0]
    bench.fail(first, 50)
    assert bench.ejections == 1
    bench.clock.advance(10)
    assert bench.passed_over == []


def test_a_success_forgets_everything(bench):
    first = bench.members[0]
    bench.fail(first, 3)
    bench.clock.advance(11)
    bench.fail(first)
    bench.health.reached("a", first)
    assert bench.health.failing == {}
    bench.fail(first, 3)
    bench.clock.advance(10)
    assert bench.passed_over == [], "ten seconds again"


def test_a_target_that_nobody_reaches_ejects_nobody(bench):
    for _ in range(10):
        for member in bench.members:
            bench.fail(member)
    assert bench.passed_over == []
    # Until another one does.
    bench.health.reached("a", bench.members[2])
    bench.fail(bench.members[0])
    assert bench.passed_over == [bench.members[0]]


def test_who_is_alone_is_not_ejected(bench):
    first, *others = bench.members
    bench.members = [first]
    bench.fail(first, 10)
    assert bench.passed_over == []
    bench.members = [first, *others]
    for other in others:
        other.tunnel.available = False
    bench.fail(first)
    assert bench.passed_over == []
    others[0].tunnel.available = True
    bench.fail(first)
    assert bench.passed_over == [first]


def test_switched_off():
    bench = Bench(after=0)
    bench.fail(bench.members[0], 10)
    assert bench.health.failing == {}


def test_who_goes_is_forgotten_and_so_is_all_when_targets_change(bench):
    first, second, _ = bench.members
    bench.fail(first, 3)
    bench.fail(first, 3, OTHER)
    bench.fail(second)
    bench.health.forget(first)
    assert list(bench.health.failing) == ["a"]
    assert bench.passed_over == []
    bench.health.clear()
    assert bench.health.failing == {}
    assert bench.health._size == 0


def test_it_is_bounded(bench, monkeypatch):
    monkeypatch.setattr(module, "_MAX_FAILING", 2)
    bench.fail(bench.members[0])
    bench.fail(bench.members[1])
    bench.fail(bench.members[2], 5)
    bench.fail(bench.members[0], 1, OTHER)
    assert [list(records) for records in bench.health.failing.values()] == [bench.members[:2]]
    bench.health.forget(bench.members[0])
    bench.fail(bench.members[2], 3)
    assert bench.ejections == 1


def test_the_log_says_who_goes_and_who_comes_back(bench):
    seen = []
    globalLogPublisher.addObserver(seen.append)
    first = bench.members[0]
    bench.fail(first, 4)
    bench.clock.advance(60)
    bench.health.reached("a", first)
    bench.fail(first)
    bench.health.reached("a", first)
    globalLogPublisher.removeObserver(seen.append)
    assert [event["log_format"].format(**event) for event in seen] == [
        "inner layer office is passed over for a for 10 s: connection refused, 3 times in a row"
        " address=192.0.2.1",
        "inner layer office reaches a again address=192.0.2.1",
    ]


def test_a_request_that_reached_an_origin_is_no_failure_to_reach_it():
    assert not NOT_REACHED & {
        StreamCode.TUNNEL_LOST,
        StreamCode.ORIGIN_CLOSED,
        StreamCode.ORIGIN_MALFORMED,
        StreamCode.RESPONSE_TIMEOUT,
        StreamCode.IDLE_TIMEOUT,
        StreamCode.TOO_LARGE,
        StreamCode.INTERNAL_ERROR,
        StreamCode.REFUSED,
    }
