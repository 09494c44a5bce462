"""How much may be on its way at a time, so that the queue stands in the tunnel and not in the net.

A sender that fills whatever buffer the network has makes every later byte wait behind it; nobody
can overtake there. A buffer in the tunnel is shared out fairly. So, as BBR does (Cardwell et al.,
ACM Queue 14(5), 2016), no more is kept in flight than the link holds, and a little:

1. A message remembers when it left, how many bytes had been delivered (acknowledged) by then, and
   since when they had. At its acknowledgement, what was delivered since that time is a sample of
   the link's rate, and the time since it left one of its round trip.
2. The rate is the largest sample of the last ``RATE_ROUNDS`` round trips. Where the sender had no
   more to send, a sample says little about the link: it counts only if it is larger.
3. The round trip is the least sample. One that was measured a while ago may no longer be true, and
   with a standing queue no better one comes: then half as much is sent for two round trips.
4. The limit is rate x (round trip + ``ACK_DELAY``) x gain. The gain is 2 at first, so that the
   rate can double in each round trip, until it has not grown for ``FULL_ROUNDS`` of them, or all
   samples of one show a queue; from then on 1.25, which still finds bandwidth that becomes free, at
   the price of a queue of a quarter of what is in flight.

Rejected: pacing as in BBR. Acknowledgements come every few milliseconds and let out as much as has
arrived, which is smooth enough; a timer for each message would cost more than the message.
"""

from collections import deque
from math import inf

__all__ = ["ACK_DELAY", "Departure", "Flight"]

ACK_DELAY = 0.005  # seconds for which a receiver may hold an acknowledgement back

FIRST_LIMIT = 262_144  # bytes, before anything is known of the link
LEAST_LIMIT = 65_536  # bytes: one message, or a fast link with a rare sender would be throttled

STARTUP_GAIN = 2.0
CRUISE_GAIN = 1.25
RATE_ROUNDS = 10  # round trips for which a rate is believed (as BBR)
FULL_ROUNDS = 3  # round trips without growth after which the link is full (as BBR)
GROWTH = 1.25  # what counts as growth (as BBR)
QUEUE = 1.5  # times the least round trip: such a round trip, and ``QUEUE_TIME`` more, has a queue
QUEUE_TIME = 0.01  # seconds
ROUND_TRIP_AGE = 10.0  # seconds for which the least round trip is believed (as BBR)
PROBE_ROUNDS = 2  # round trips for which half is sent to measure it anew

_LEAST_TIME = 1e-4  # seconds; below, a sample measures the clock and not the link


Departure = tuple[float, int, float, bool]
"""When a message left, what was delivered by then, and since when; and whether more waited."""


class Flight:
    """The estimate of one carrier's link, by one sender."""

    __slots__ = (
        "_best",
        "_delivered_at",
        "_full",
        "_least",
        "_measured_at",
        "_probe",
        "_probed",
        "_rates",
        "_round",
        "_round_ends",
        "_still",
        "delivered",
        "limit",
        "round_trip",
    )

    def __init__(self) -> None:
        #: Bytes acknowledged so far.
        self.delivered = 0
        self.reset()

    def reset(self) -> None:
        """A new carrier: nothing is known of its link."""
        #: Bytes that may be in flight.
        self.limit = FIRST_LIMIT
        #: The least round trip lately, in seconds; None before the first.
        self.round_trip: float | None = None
        self._measured_at = 0.0
        self._delivered_at = 0.0  # when it came to ``delivered``
        self._rates: deque[tuple[int, float]] = deque()  # falling; (round, bytes a second)
        self._round = 0
        self._round_ends = self.delivered
        self._best = 0.0  # the rate that has to be outgrown
        self._still = 0  # rounds without growth
        self._least = inf  # the least round trip in this round
        self._full = False
        self._probe = 0  # the round in which probing for the round trip ends; 0: it does not
        self._probed = 0.0  # the least round trip that the probe has seen

    def departed(self, now: float, idle: bool, limited: bool) -> Departure:
        """A message leaves; keep what is returned for :meth:`acknowledged`.

        ``idle``: nothing was in flight; ``limited``: more waits, for nothing but the link.
        """
        if idle:
            self._delivered_at = now
        return now, self.delivered, self._delivered_at, limited

    def acknowledged(self, size: int, now: float, departure: Departure) -> None:
        """``size`` bytes have been acknowledged; the last of them had left with that departure."""
        sent_at, delivered_then, since, limited = departure
        self.delivered += size
        self._delivered_at = now
        if delivered_then >= self._round_ends:
            self._round += 1
            self._round_ends = self.delivered
            if limited and not self._full:
                self._look_for_growth()
            self._least = inf
            if self._probe and self._round >= self._probe:
                self._probe = 0
                self.round_trip, self._measured_at = self._probed, now
        self._least = min(self._least, now - sent_at)
        self.measured(now - sent_at, now)
        rate = (self.delivered - delivered_then) / max(now - since, _LEAST_TIME)
        rates = self._rates
        if limited or not rates or rate > rates[0][1]:
            while rates and rates[-1][1] <= rate:
                rates.pop()
            rates.append((self._round, rate))
            while rates[0][0] <= self._round - RATE_ROUNDS:
                rates.popleft()
            self._set_limit()

    def measured(self, round_trip: float, now: float) -> None:
        """A round trip has been measured, by an acknowledgement or by a ping; both in seconds."""
        if self._probe:
            self._probed = min(self._probed, round_trip)
        elif self.round_trip is None or round_trip <= self.round_trip:
            self.round_trip, self._measured_at = round_trip, now
            self._set_limit()
        elif now - self._measured_at > ROUND_TRIP_AGE:
            self._probe = self._round + PROBE_ROUNDS + 1
            self._probed = round_trip
            self._set_limit()

    def _look_for_growth(self) -> None:
        rate = self._rates[0][1] if self._rates else 0.0
        if rate >= self._best * GROWTH:
            self._best = rate
            self._still = 0
        else:
            self._still += 1
            self._full = self._still >= FULL_ROUNDS
        least = self.round_trip
        if least is not None and self._least > QUEUE * least + QUEUE_TIME:
            self._full = True

    def _set_limit(self) -> None:
        if not self._rates or self.round_trip is None:
            return
        gain = CRUISE_GAIN if self._full else STARTUP_GAIN
        if self._probe:
            gain = 0.5
        link = self._rates[0][1] * (self.round_trip + ACK_DELAY)
        self.limit = max(int(gain * link), LEAST_LIMIT)
