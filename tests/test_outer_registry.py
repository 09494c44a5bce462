"""The registry: whom a request goes to."""

import pytest

from sockgw.outer.registry import Member, Registry


class FakeTunnel:
    def __init__(self, streams=0, available=True):
        self.session = self
        self.streams = [None] * streams
        self.available = available
        self.suspended = False


def member(identifier, streams=0, available=True):
    return Member(FakeTunnel(streams, available), identifier, b"f" * 32, "192.0.2.1", 0.0)


@pytest.fixture
def registry():
    return Registry(10)


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
