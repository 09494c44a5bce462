"""What twistd looks for: the options of sockgw-inner, and how to make the service."""

from sockgw.inner.config import InnerOptions as Options
from sockgw.inner.service import make_service as makeService

__all__ = ["Options", "makeService"]
