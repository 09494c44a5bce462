"""Many inner layers in one process: ``tunnels.py PORT KEY COUNT``. They refuse every stream."""

import random
import sys

from twisted.internet import reactor

from sockgw.config import load
from sockgw.inner.config import InnerConfig
from sockgw.inner.connector import Connector
from sockgw.inner.outerlayer import OuterLayer
from sockgw.keys import load_private_key
from sockgw.protocol.errors import StreamCode

AT_ONCE = 20  # handshakes under way


class Refused:
    """Handles a stream that is refused."""

    def head_received(self, head):
        pass

    def data_received(self, data):
        pass

    def ended(self, trailers):
        pass

    def reset(self, code, detail):
        pass

    def drained(self):
        pass


def refuse(tunnel, stream, head, to, complete):
    stream.reset(StreamCode.REFUSED)
    return Refused()


def main(port, key_file, count):
    url = f"ws://127.0.0.1:{port}"
    settings = {"private-key": [key_file], "outer-layer": [url], "identifier": ["crowd"]}
    config = load(InnerConfig, settings, {})
    key = load_private_key(key_file)
    outer_layer = OuterLayer.parse(
        url,
        ca_file=None,
        certificate=None,
        private_key_path=key_file,
        insecure=False,
        proxy=None,
    )
    connectors = []

    def more():
        standing = sum(connector.tunnel is not None for connector in connectors)
        while len(connectors) < min(count, standing + AT_ONCE):
            connector = Connector(config, reactor, outer_layer, key, refuse, random.random)
            connectors.append(connector)
            connector.startService()
        if standing == count:
            print(f"{count} tunnels", flush=True)
        else:
            reactor.callLater(0.02, more)

    reactor.callWhenRunning(more)
    reactor.run()


main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
