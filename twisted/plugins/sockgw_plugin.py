"""The two services for ``twistd``."""

from twisted.application.service import ServiceMaker

outer = ServiceMaker(
    "sockgw: outer layer", "sockgw.outer.tap", "the public side of a sockgw gateway", "sockgw-outer"
)
inner = ServiceMaker(
    "sockgw: inner layer",
    "sockgw.inner.tap",
    "the private side of a sockgw gateway",
    "sockgw-inner",
)
