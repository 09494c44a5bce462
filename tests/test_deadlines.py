"""Deadlines: one timer for all, none early, none forgotten, none left behind."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sockgw.deadlines import NEAR, Deadlines


class Item:
    def __init__(self, deadline=None):
        self.deadline = deadline
        self.times = 0

    def expired(self):
        self.times += 1
        self.deadline = None


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def deadlines(clock):
    return Deadlines(clock, 0.25)


def test_never_early_and_at_most_two_ticks_late(clock, deadlines):
    item = Item()
    deadlines.watch(item)
    clock.advance(0.1)
    item.deadline = deadlines.after(1.0)
    clock.pump([0.05] * 19)  # 1.05 s
    assert item.times == 0
    clock.pump([0.05] * 12)
    assert item.times == 1


def test_the_time_is_right_also_after_a_calm_in_which_nothing_was_watched(clock, deadlines):
    clock.advance(3600)
    item = Item(deadlines.after(1.0))  # as everybody does it: first the deadline, then watch()
    deadlines.watch(item)
    clock.pump([0.25] * 3)
    assert item.times == 0
    clock.pump([0.25] * 3)
    assert item.times == 1


def test_patience_counts_from_now_also_for_what_was_far_off(clock, deadlines):
    short, long = deadlines.patience(1.0), deadlines.patience(300.0)
    items = [Item() for _ in range(100)]
    for item in items:
        item.deadline = deadlines.now + long
        deadlines.watch(item)
    clock.pump([0.25] * 100)
    for item in items:
        item.deadline = deadlines.now + short
    clock.pump([0.25] * 4)
    assert {item.times for item in items} == {0}
    clock.pump([0.25] * 2)
    assert {item.times for item in items} == {1}


def test_a_moved_deadline_counts(clock, deadlines):
    item = Item()
    deadlines.watch(item)
    for _ in range(10):
        item.deadline = deadlines.after(1.0)
        clock.pump([0.25] * 3)
    assert item.times == 0


def test_one_timer_for_all_and_none_when_idle(clock, deadlines):
    items = [Item() for _ in range(50)]
    for item in items:
        deadlines.watch(item)
    assert len(clock.getDelayedCalls()) == 1
    for item in items:
        deadlines.discard(item)
    clock.advance(1)
    assert clock.getDelayedCalls() == []


def test_an_item_that_another_discards_is_left_alone(clock, deadlines):
    first, second = Item(0.1), Item(0.1)
    for item, other in ((first, second), (second, first)):

        def expired(item=item, other=other):
            item.times += 1
            deadlines.discard(other)
            deadlines.discard(item)

        item.expired = expired
        deadlines.watch(item)
    clock.advance(0.25)
    assert first.times + second.times == 1


def test_watching_again_after_idleness_reads_the_clock(clock, deadlines):
    clock.advance(1000)
    item = Item()
    deadlines.watch(item)
    item.deadline = deadlines.after(1.0)
    clock.advance(0.25)
    assert item.times == 0


def test_stop_leaves_no_timer(clock, deadlines):
    deadlines.watch(Item())
    deadlines.stop()
    assert clock.getDelayedCalls() == []


def looked_at(items):
    return sum(item.looks for item in items)


class Counted(Item):
    """Counts how often its deadline is looked at."""

    looks = 0

    @property
    def deadline(self):
        self.looks += 1
        return self._deadline

    @deadline.setter
    def deadline(self, value):
        self._deadline = value


def test_those_that_are_far_off_are_hardly_looked_at(clock, deadlines):
    items = [Counted(3600.0) for _ in range(1000)]
    for item in items:
        deadlines.watch(item)
    clock.pump([0.25] * 4)
    for item in items:
        item.looks = 0
    clock.pump([0.25] * 400)  # 100 s
    assert looked_at(items) < 1000 * 50  # and not 400 times each
    assert all(item.looks for item in items)


@given(st.integers(0, 2**32), st.sampled_from([0.25, 0.1, 1.0]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_is_set_when_it_is_met_in_time(seed, tick, unnamed):
    random = Random(seed)
    clock = Clock()
    deadlines = Deadlines(clock, tick)
    items = [Item(deadlines.after(random.choice([0.5, 75.0]))) for _ in range(20)]
    for item in items:
        deadlines.watch(item)
    for _ in range(600):
        clock.advance(random.choice([0.05, 0.1, tick]))
        now = clock.seconds()
        for item in random.sample(items, random.choice([0, 0, 1])):
            choice = random.random()
            if choice < 0.2:
                item.deadline = None
            elif choice < 0.5:
                item.deadline = deadlines.after(random.uniform(NEAR, NEAR + 2.0))
            elif choice < 0.7:
                item.deadline = deadlines.after(random.uniform(0.0, NEAR), item)
            elif choice < 0.8 and unnamed:
                item.deadline = deadlines.after(random.uniform(0.0, NEAR))
        for item in items:
            assert item.deadline is None or item.deadline > now - 2 * tick - 0.01
    for item in items:
        item.times = 0
        item.deadline = deadlines.after(random.uniform(NEAR, 30.0))
    clock.pump([tick / 2] * int(100 / tick))
    assert [item.times for item in items] == [1] * len(items)


def test_one_that_fails_when_it_is_far_off_is_forgotten(clock, deadlines):
    item = Item(3600.0)
    deadlines.watch(item)
    clock.pump([0.25] * 4)
    deadlines.discard(item)
    clock.advance(0.25)
    assert clock.getDelayedCalls() == []
