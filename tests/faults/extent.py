"""How much the tests do: a little with all others, more of everything in ``make faults``."""

import os

__all__ = ["FULL", "MIB"]

FULL = os.environ.get("SOCKGW_FAULTS") == "full"
MIB = 1 << 20
