"""Which requests may be performed twice."""

__all__ = ["IDEMPOTENT"]

# RFC 9110, section 9.2.2.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
