"""Deadlines: one timer for all, none early, none forgotten, none left behind."""

import pytest
from twisted.internet.task import Clock

from sockgw.deadlines import Deadlines


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
