"""What twistd looks for: the options of sockgw-outer, and how to make the service.

twistd imports this before it has chosen a reactor, and only when the service is to be run.
"""

from sockgw.daemon import choose_reactor
from sockgw.outer.config import OuterOptions as Options
from sockgw.outer.service import make_service as makeService

__all__ = ["Options", "makeService"]

choose_reactor()
