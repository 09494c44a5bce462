"""What goes wrong when: drawn from a seed, which repeats it.

Each fault happens after a number of bytes in one direction since the one before, mostly within a
frame of a transfer. Some follow so soon that they hit the handshake of the connection that
replaces the one before.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from control import Relay

__all__ = ["KINDS", "Done", "Fault", "disturb", "draw", "seed"]

KINDS = ("fin", "rst", "hole", "lose", "freeze", "stall")

SOON = 0.2  # part of the faults
SOON_BYTES = 3000  # within the bytes of a handshake
OVERDUE = 1.5  # seconds after which a fault happens without the bytes
FREEZE = (0.02, 0.8)  # seconds


def seed() -> int:
    """Return the environment's seed or a new one, and print it: pytest shows that on failure."""
    number = int(os.environ.get("SOCKGW_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SOCKGW_SEED={number} repeats this")
    return number


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to come."""

    kind: str
    on: str  #: the direction whose bytes are counted, "up" or "down"
    after: int  #: so many bytes
    direction: str  #: what is lost by "lose"
    seconds: float  #: how long a "freeze" lasts


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that has happened."""

    kind: str
    at: float  #: as time.monotonic() counts


def draw(seed: int, mean: int) -> Iterator[Fault]:
    """Yield faults without end, ``mean`` bytes apart on average; of six each kind comes once."""
    chance = random.Random(seed)
    while True:
        for kind in chance.sample(KINDS, len(KINDS)):
            soon = chance.random() < SOON
            yield Fault(
                kind,
                on=chance.choice(("up", "down")),
                after=chance.randint(1, SOON_BYTES if soon else 2 * mean),
                direction=chance.choice(("up", "down")),
                seconds=chance.uniform(*FREEZE),
            )


def disturb(
    relay: Relay, faults: Iterator[Fault], count: int, busy: Callable[[], bool]
) -> list[Done]:
    """Let faults happen one after the other, at most ``count``, while ``busy()``; return them."""
    done = []
    for fault in islice(faults, count):
        armed = relay.arm(fault.on, fault.after, fault.kind, fault.direction)
        overdue = time.monotonic() + OVERDUE
        while not relay.answered(armed) and busy() and time.monotonic() < overdue:
            time.sleep(0.001)
        relay.ask("disarm")
        told = relay.result(armed)
        if not told["fired"]:
            if not busy():
                break
            told = relay.ask("fail", action=fault.kind, direction=fault.direction)
        if told["hit"]:
            done.append(Done(fault.kind, told["at"]))
        if fault.kind == "freeze":
            time.sleep(fault.seconds)  # that is how long it is to last
            relay.ask("thaw")
    return done
