"""Many inner layers in one process: ``fleet.py URL PRIVATE_KEY COUNT``. Ends with SIGTERM.

Each is what an inner layer has between its service and its socket: a connector with its lines.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from twisted.internet import reactor as installed
from twisted.logger import globalLogBeginner

from sockgw.config import load
from sockgw.inner.config import InnerConfig
from sockgw.inner.connector import Connector
from sockgw.inner.outerlayer import OuterLayer
from sockgw.keys import load_private_key

reactor: Any = installed


def main(url: str, key_file: str, count: int) -> None:
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    reactor.seconds = time.monotonic
    config = load(InnerConfig, {"private-key": [key_file], "outer-layer": [url]}, {})
    assert isinstance(config, InnerConfig)
    outer_layer = OuterLayer.parse(url)
    key = load_private_key(key_file)

    def opened(*arguments: Any) -> Any:
        raise AssertionError("nobody asks anything")

    fleet = [
        Connector(config, reactor, outer_layer, key, opened, random.random) for _ in range(count)
    ]
    for number, connector in enumerate(fleet):
        # The first time not all at once either.
        reactor.callLater(2 * number / count, connector.startService)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
