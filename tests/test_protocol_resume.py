"""Resuming: two sessions whose carriers break at any point lose nothing and repeat nothing."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from resumebench import World

from sockgw.protocol.errors import RemoteError, StreamCode, TunnelError
from sockgw.protocol.frames import FrameType, decode, encode
from sockgw.protocol.payloads import u64

BYTES = Random(3).randbytes(400_000)

sizes = st.sampled_from([1, 700, 16_384, 40_000, 90_000])
choice = st.integers(0, 1_000_000)


class Links(RuleBasedStateMachine):
    """Whatever is sent, paused, cut and resumed in whatever order."""

    @initialize(
        resend_buffer=st.sampled_from([1, 30_000, 200_000, 1 << 24]),
        pool=st.sampled_from([1, 100_000, 1 << 28]),
        promised=st.sampled_from([0, 300_000, 1 << 28]),
        eager=st.booleans(),
    )
    def begin(self, resend_buffer, pool, promised, eager):
        self.world = World(resend_buffer, promised, pool)
        self.world.eager = eager
        self.offset = 0

    def some(self, ends, number):
        return ends[number % len(ends)]

    # ------------------------------------------------------------------ streams

    @precondition(lambda self: self.world.outer.session.available)
    @rule(complete=st.booleans())
    def open(self, complete):
        self.world.open(complete)

    @precondition(lambda self: self.writers)
    @rule(number=choice, size=sizes)
    def write(self, number, size):
        offset = self.offset = (self.offset + 7_919) % (len(BYTES) - size)
        self.some(self.writers, number).write(BYTES[offset : offset + size])

    @property
    def writers(self):
        return [end for end in self.world.all_ends if end.may_write]

    @precondition(lambda self: self.silent)
    @rule(number=choice, status=st.sampled_from([103, 200, 204]))
    def respond(self, number, status):
        self.some(self.silent, number).respond(status)

    @property
    def silent(self):
        return [end for end in self.world.all_ends if end.alive and not end.responded]

    @precondition(lambda self: self.writers)
    @rule(number=choice, trailers=st.sampled_from([[], [(b"T", b"1")]]))
    def end(self, number, trailers):
        self.some(self.writers, number).end(trailers)

    @precondition(lambda self: self.living)
    @rule(number=choice, code=st.sampled_from([StreamCode.CANCELLED, StreamCode.ORIGIN_CLOSED]))
    def reset(self, number, code):
        self.some(self.living, number).abort(code)

    @property
    def living(self):
        return [end for end in self.world.all_ends if not end.stream.closed]

    @precondition(lambda self: self.living)
    @rule(number=choice, eager=st.booleans())
    def change_pace(self, number, eager):
        end = self.some(self.living, number)
        end.eager = eager
        if eager:
            end.take()

    @precondition(lambda self: self.living)
    @rule(number=choice, count=sizes)
    def take(self, number, count):
        self.some(self.living, number).take(count)

    # ------------------------------------------------------------------ the link

    @rule(side=st.integers(0, 1))
    def send(self, side):
        self.world.sides[side].pump()

    @precondition(lambda self: self.world.connected)
    @rule(side=st.integers(0, 1), count=st.integers(1, 5))
    def deliver(self, side, count):
        for _ in range(count):
            self.world.deliver(self.world.sides[side])

    @precondition(lambda self: self.world.connected)
    @rule()
    def talk(self):
        self.world.run()

    @rule(milliseconds=st.sampled_from([0, 5, 40, 2_000, 20_000]))
    def time_passes(self, milliseconds):
        self.world.later(milliseconds / 1_000)

    @precondition(lambda self: self.world.connected)
    @rule(arrived=st.tuples(st.integers(0, 6), st.integers(0, 6)))
    def cut(self, arrived):
        """Each direction at its own point."""
        for side, count in zip(self.world.sides, arrived, strict=True):
            for _ in range(count):
                self.world.deliver(side)
        self.world.cut()

    @precondition(lambda self: self.world.connected)
    @rule()
    def only_one_side_notices(self):
        self.world.notice()

    @precondition(lambda self: not self.world.connected)
    @rule(count=st.integers(1, 5))
    def the_old_carrier_still_brings_something(self, count):
        for _ in range(count):
            self.world.deliver(self.world.inner)

    @precondition(lambda self: not self.world.connected)
    @rule()
    def resume(self):
        self.world.resume()

    @precondition(lambda self: not self.world.connected)
    @rule(messages=st.integers(0, 6))
    def the_welcome_is_lost(self, messages):
        """The outer side goes on with a carrier that breaks before the inner side knows of it."""
        self.world.outer_resumes()
        for _ in range(messages):
            self.world.outer.pump()
        self.world.outer.wire.clear()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def the_books_are_in_order(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.finish()


Links.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLinks = Links.TestCase
