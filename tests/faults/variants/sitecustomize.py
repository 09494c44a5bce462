"""Leaves something out of the layers that start with this directory on their path."""

import os

variant = os.environ.get("LEFT_OUT", "")

if "flight" in variant:
    from sockgw.protocol import flight

    flight.FIRST_LIMIT = 1 << 40
    flight.Flight._set_limit = lambda self: None  # type: ignore[method-assign]
if "kernel" in variant:
    from sockgw.tunnel import carrier

    carrier._CarrierMixin._keep_the_kernels_queue_short = lambda self: None  # type: ignore[method-assign]
if "fresh" in variant:
    from sockgw.protocol.turns import Turns

    add = Turns.add
    Turns.add = lambda self, stream, fresh: add(self, stream, False)  # type: ignore[method-assign]
if "window" in variant:
    from sockgw.protocol import windows

    windows.WINDOW = 12 << 20
    windows.SendWindow.__init__.__defaults__ = (windows.WINDOW,)  # type: ignore[misc]
if "numbers" in variant:  # a tunnel has some 500 of them instead of a milliard
    from sockgw.protocol import session

    session.SPARE_IDS = (session.MAX_STREAM_ID >> 1) - 500
if "frames" in variant:
    from sockgw.protocol import turns

    turns.SHARED_FRAME = 65_536
    # A message would cut them.
    from sockgw.protocol import session

    session.LEAST_MESSAGE = 65_536
