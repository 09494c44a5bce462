"""The registry: whom a request goes to."""

import random

import pytest
from twisted.internet.task import Clock

from sockgw.outer.registry import Member, Registry


class FakeTunnel:
    def __init__(self, streams=0, available=True):
        self.session = self
        self.streams = [None] * streams
        self.available = available
        self.suspended = self.leaving = False


def member(identifier, streams=0, available=True):
    return Member(FakeTunnel(streams, available), identifier, b"f" * 32, "192.0.2.1", 0.0)


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(1_000)
    return clock


@pytest.fixture
def registry(clock):
    registry = Registry(10, seconds=clock.seconds)
    clock.advance(10_000)  # nobody comes from a process before it any more
    return registry


def add(registry, *members):
    for each in members:
        registry.add(each)
    return members


def test_fewest_streams_first(registry):
    _, idle, _ = add(registry, member("a", 5), member("a", 1), member("a", 3))
    assert registry.choose(None, {}) is idle


def test_equals_take_turns(registry):
    members = add(registry, member("a"), member("a"), member("a"))
    chosen = [registry.choose(None, {}) for _ in range(6)]
    assert chosen[:3] == chosen[3:]
    assert {id(each) for each in chosen} == {id(each) for each in members}


def test_a_pool_that_is_idle_is_not_walked_through(clock):
    looks = []

    class Watched(FakeTunnel):
        def __init__(self):
            super().__init__()
            self.session = self

        @property
        def available(self):
            looks.append(self)
            return True

        @available.setter
        def available(self, value):
            pass

    registry = Registry(2_000, seconds=clock.seconds)
    pool = [Member(Watched(), "a", b"f" * 32, "192.0.2.1", 0.0) for _ in range(2_000)]
    add(registry, *pool)
    for identifiers in (None, frozenset({"a"})):
        looks.clear()
        for _ in range(100):
            registry.choose(identifiers, {}).tunnel.streams.append(None)
        assert len(looks) == 100


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_a_walk_through_all(registry, seed):
    """Fewest streams first, then who was chosen, or came, longest ago."""
    randomness = random.Random(seed)
    since = {}
    for turn in range(300):
        if len(registry) < 10 and randomness.random() < 0.2:
            new = member(randomness.choice("ab"))
            registry.add(new)
            since[new] = turn - 0.5
        elif since and randomness.random() < 0.1:
            gone = randomness.choice(list(since))
            registry.remove(gone.tunnel)
            del since[gone]
        for each in since:
            each.tunnel.available = randomness.random() < 0.8
            if each.tunnel.streams and randomness.random() < 0.3:
                each.tunnel.streams.pop()
        wanted = randomness.choice([None, frozenset("a"), frozenset("b"), frozenset("ab")])
        suitable = [
            each
            for each in since
            if each.tunnel.available and (wanted is None or each.identifier in wanted)
        ]
        chosen = registry.choose(wanted, {})
        if chosen is None:
            assert not suitable
            continue
        assert chosen is min(suitable, key=lambda each: (len(each.tunnel.streams), since[each]))
        since[chosen] = turn
        chosen.tunnel.streams.append(None)


def test_a_connection_stays_while_its_member_can_serve(registry):
    first, second = add(registry, member("a", 1), member("a", 2))
    affinity = {}
    assert registry.choose(None, affinity) is first
    first.tunnel.streams = [None] * 50
    assert registry.choose(None, affinity) is first
    first.tunnel.available = False
    assert registry.choose(None, affinity) is second
    first.tunnel.available = True
    assert registry.choose(None, affinity) is second


def test_only_the_identifiers_of_the_target(registry):
    add(registry, member("office"))
    plant = member("plant", 9)
    registry.add(plant)
    assert registry.choose(frozenset({"plant", "other"}), {}) is plant
    assert registry.choose(frozenset({"other"}), {}) is None
    assert registry.serves(frozenset({"office"}))
    assert not registry.serves(frozenset({"other"}))


def test_affinity_is_kept_for_each_set_of_identifiers(registry):
    office, plant = add(registry, member("office"), member("plant"))
    affinity = {}
    for _ in range(3):
        assert registry.choose(frozenset({"office"}), affinity) is office
        assert registry.choose(frozenset({"plant"}), affinity) is plant


def test_nobody_available_is_not_nobody_there(registry):
    add(registry, member("a", available=False))
    assert registry.choose(None, {}) is None
    assert registry.serves(None)


def test_removal_leaves_nothing(registry):
    (gone,) = add(registry, member("a"))
    assert registry.remove(gone.tunnel) is gone
    assert registry.remove(gone.tunnel) is None
    assert len(registry) == 0
    assert registry.identifiers() == {}
    assert registry.choose(None, {}) is None


def test_counts():
    registry = Registry(2)
    add(registry, member("a", 2), member("b", 3))
    assert registry.room_for(b"g" * 32) == "max-tunnels"
    assert registry.streams() == 5
    assert registry.identifiers() == {"a": 1, "b": 1}


def test_one_key_takes_no_more_than_its_share():
    registry = Registry(10, max_per_key=2)
    mine = [member("a"), member("b")]
    add(registry, *mine)
    assert registry.room_for(b"f" * 32) == "max-tunnels-per-key"
    assert registry.room_for(b"g" * 32) == ""
    registry.remove(mine[0].tunnel)
    assert registry.room_for(b"f" * 32) == ""


# ---------------------------------------------------------------------- who has failed


def test_who_was_tried_is_never_chosen_and_who_is_passed_over_only_in_need(registry):
    first, second, third = add(registry, member("a", 1), member("a", 2), member("a", 3))
    affinity = {None: first}
    assert registry.choose(None, affinity, (first,)) is second
    affinity = {None: first}
    assert registry.choose(None, affinity, (), [first]) is second
    assert registry.choose(None, affinity, (), [first]) is second, "and stays there"
    assert registry.choose(None, {}, (second,), [first]) is third
    assert registry.choose(None, {}, (second, third), [first]) is first
    assert registry.choose(None, {}, (), [first, second, third]) is first, "as if none was"
    assert registry.choose(None, {}, (first, second, third), [first]) is None


# ---------------------------------------------------------------------- who was there


def suspend(registry, member):
    member.tunnel.suspended = True
    member.tunnel.available = False
    assert registry.suspended(member.tunnel) is member


def resume(registry, member):
    member.tunnel.suspended = False
    member.tunnel.available = True
    registry.resumed(member)


def test_who_never_was_there(registry):
    assert not registry.served_within(None, 9_999)
    assert not registry.served_within(frozenset({"a"}), 9_999)
    assert registry.served_within(None, 10_000), "as far as a new process can know"


def test_who_went_was_there_until_then(registry, clock):
    (gone,) = add(registry, member("a"))
    clock.advance(100)
    registry.remove(gone.tunnel)
    clock.advance(5)
    for identifiers in (None, frozenset({"a"}), frozenset({"a", "b"})):
        assert registry.served_within(identifiers, 5)
        assert not registry.served_within(identifiers, 4.9)
    assert not registry.served_within(frozenset({"b"}), 5)


def test_who_is_suspended_was_there_until_then(registry, clock):
    (paused,) = add(registry, member("a"))
    assert registry.ready
    suspend(registry, paused)
    assert not registry.ready
    assert registry.identifiers() == {}
    assert registry.suspended_identifiers() == {"a": 1}
    assert len(registry) == 1
    clock.advance(5)
    assert not registry.serves(None)
    assert registry.served_within(None, 5)
    assert not registry.served_within(None, 4.9)
    clock.advance(25)
    registry.remove(paused.tunnel)
    assert not registry.served_within(None, 29), "not until it was given up"
    assert registry.served_within(None, 30)


def test_who_is_suspended_hides_nobody_that_went_later(registry, clock):
    paused, other = add(registry, member("a"), member("a"))
    suspend(registry, paused)
    clock.advance(20)
    registry.remove(other.tunnel)
    clock.advance(1)
    assert registry.served_within(frozenset({"a"}), 1)
    registry.remove(paused.tunnel)
    assert registry.served_within(frozenset({"a"}), 1)


def test_who_leaves_was_there_until_somebody_asked(registry, clock):
    (leaving,) = add(registry, member("a"))
    leaving.tunnel.leaving = True
    assert registry.ready, "its streams go on"
    assert not registry.serves(None)
    assert registry.served_within(None, 5)
    clock.advance(6)
    assert not registry.served_within(None, 5)


def test_who_is_there_again_is_told(registry, clock):
    told, removed = [], []
    registry.on_there = lambda *event: told.append(event)
    registry.on_removed = removed.append
    (paused,) = add(registry, member("a"))
    suspend(registry, paused)
    clock.advance(3)
    resume(registry, paused)
    resume(registry, paused)  # taken over: it was never away
    registry.remove(paused.tunnel)
    assert told == [(paused, 0), (paused, 3), (paused, 0)]
    assert removed == [paused]


def test_memories_are_bounded(clock):
    registry = Registry(3, seconds=clock.seconds)
    for number in range(10):
        (gone,) = add(registry, member(f"i{number}"))
        registry.remove(gone.tunnel)
    assert list(registry._last_there) == ["i7", "i8", "i9"]
