"""What twistd looks for: the options of sockgw-outer, and how to make the service."""

from sockgw.outer.config import OuterOptions as Options
from sockgw.outer.service import make_service as makeService

__all__ = ["Options", "makeService"]
