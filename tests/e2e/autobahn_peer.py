"""Autobahn as a WebSocket server or client, in a process of its own.

``server``: echoes, prints its port, and how each connection ended. ``client PORT``: sends what is
listed here and prints a line for each echo; between the two halves of the last message it waits for
a line on its standard input.
"""

import json
import os
import sys

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet import reactor, stdio
from twisted.protocols.basic import LineReceiver

LARGE = os.urandom(4 * 1024 * 1024)
TEXT = "Grüße, 世界 ".encode() * 20_000


def say(**fields):
    print(json.dumps(fields), flush=True)


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)

    def onClose(self, wasClean, code, reason):
        say(closed=code, reason=reason, clean=wasClean)


class Talker(WebSocketClientProtocol):
    """Sends one message after the other, each in its way."""

    def onOpen(self):
        self.cases = iter(
            [
                ("empty", b"", True, self.whole),
                ("text", TEXT, False, self.whole),
                ("binary", LARGE, True, self.whole),
                ("frames", LARGE, True, self.in_frames),
                ("bytewise", TEXT[:2048], False, self.in_small_frames),
                ("halves", LARGE, True, self.in_halves),
            ]
        )
        say(extensions=[each.__class__.__name__ for each in self.websocket_extensions_in_use])
        self.next()

    def next(self):
        case = next(self.cases, None)
        if case is None:
            self.sendClose(4001, "enough")
            return
        self.name, self.expected, self.binary, send = case
        send()

    def whole(self):
        self.sendMessage(self.expected, self.binary)

    def in_pieces(self, size):
        self.beginMessage(self.binary)
        for start in range(0, len(self.expected), size):
            self.sendMessageFrame(self.expected[start : start + size])
        self.endMessage()

    def in_frames(self):
        self.in_pieces(100_000)

    def in_small_frames(self):
        self.in_pieces(7)

    def in_halves(self):
        self.beginMessage(self.binary)
        self.sendMessageFrame(self.expected[: len(LARGE) // 2])
        say(half=True)

    def go_on(self):
        self.sendMessageFrame(self.expected[len(LARGE) // 2 :])
        self.endMessage()

    def onMessage(self, payload, isBinary):
        say(case=self.name, equal=payload == self.expected and isBinary == self.binary)
        self.next()

    def onClose(self, wasClean, code, reason):
        say(closed=code, reason=reason, clean=wasClean)
        reactor.stop()


class Lines(LineReceiver):
    delimiter = b"\n"

    def lineReceived(self, line):
        talker.go_on()


def accept(offers):
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


def accept_response(response):
    if isinstance(response, PerMessageDeflateResponse):
        return PerMessageDeflateResponseAccept(response)
    return None


role = sys.argv[1]
if role == "server":
    factory = WebSocketServerFactory()
    factory.protocol = Echo
    factory.setProtocolOptions(perMessageCompressionAccept=accept)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    say(port=port.getHost().port)
else:
    number = int(sys.argv[2])
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{number}/echo")
    talker = Talker()
    factory.buildProtocol = lambda addr: talker
    talker.factory = factory
    factory.setProtocolOptions(
        perMessageCompressionOffers=[PerMessageDeflateOffer()],
        perMessageCompressionAccept=accept_response,
    )
    stdio.StandardIO(Lines())
    reactor.connectTCP("127.0.0.1", number, factory)
reactor.run()
