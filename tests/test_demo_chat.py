"""The demonstration's chat: who hears what, and what a stranger cannot do."""

import json
from struct import pack

import pytest
from demo_server import Server
from http_clients import request
from wsclient import BINARY, CLOSE, TEXT, masked

from sockgw.demo import chat

PING, PONG = 9, 10


class Client(Server):
    """Somebody in the room."""

    def __init__(self, of=None, flushing=True):
        super().__init__(of=of, flushing=flushing)
        self.send(
            request(
                b"GET /chat HTTP/1.1",
                b"Connection: keep-alive, Upgrade",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        )

    def say(self, text, name="somebody"):
        self.send(masked(json.dumps({"name": name, "text": text}).encode(), TEXT))

    def frames(self):
        """Opcode and payload of what came after the 101."""
        data = self.written.partition(b"\r\n\r\n")[2]
        found = []
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4]), 4
            found.append((data[0] & 15, data[start : start + size]))
            data = data[start + size :]
        return found

    def heard(self, kind="said"):
        messages = [json.loads(payload) for opcode, payload in self.frames() if opcode == TEXT]
        return [message for message in messages if message["kind"] == kind]

    def said(self):
        return [(message["name"], message["text"]) for message in self.heard()]

    def code(self):
        """The code of the last frame, which closes."""
        opcode, payload = self.frames()[-1]
        assert opcode == CLOSE
        return int.from_bytes(payload[:2])


def test_the_handshake_is_the_standards():
    status, headers, _ = Client().answer()
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pplmbitxaq9kygzzhzrbk+xoo="  # in lower case
    assert (headers["upgrade"], headers["connection"]) == ("websocket", "upgrade")
    assert not {"server", "x-powered-by"} & set(headers)


def test_each_hears_the_others_and_who_comes_late_is_told():
    one = Client()
    other = Client(one)
    one.say("hello", "Ada")
    other.say("grüße", "Grace")
    late = Client(one)
    for client in (one, other, late):
        assert client.said() == [("Ada", "hello"), ("Grace", "grüße")]
    assert [message["count"] for message in one.heard("here")] == [1, 2, 3]
    other.transport.close_by_peer()
    assert [message["count"] for message in one.heard("here")] == [1, 2, 3, 2]


def test_only_so_much_is_kept():
    one = Client()
    for number in range(30):
        one.clock.advance(1)
        one.say(str(number))
    assert [text for _, text in Client(one).said()] == [str(number) for number in range(10, 30)]


def test_a_close_is_answered_and_the_connection_ends():
    one = Client()
    one.send(masked(pack(">H", 1000), CLOSE))
    assert one.code() == 1000
    assert one.transport.write_closing or one.transport.disconnecting
    one.clock.advance(3)
    assert one.transport.lost


def test_a_ping_is_answered():
    one = Client()
    one.send(masked(b"are you there", PING))
    assert one.frames()[-1] == (PONG, b"are you there")


@pytest.mark.parametrize(
    ("payload", "opcode", "code"),
    [
        (b"junk", TEXT, 1008),
        (b"[]", TEXT, 1008),
        (b"7", TEXT, 1008),
        (b"[" * 4000, TEXT, 1008),
        (b'{"name": 1, "text": "x"}', TEXT, 1008),
        (b'{"name": "x", "text": "  "}', TEXT, 1008),
        (b'{"name": "x", "text": "y"}', BINARY, 1008),
        (b"\xff", TEXT, 1007),
        (b" " * 5000, TEXT, 1009),
    ],
)
def test_what_is_no_message_ends_it(payload, opcode, code):
    one = Client()
    other = Client(one)
    one.send(masked(payload, opcode))
    assert one.code() == code
    one.clock.advance(3)
    assert one.transport.lost
    assert other.said() == []
    assert other.heard("here")[-1]["count"] == 1


def test_what_is_said_is_cut_to_size_and_made_printable():
    one = Client()
    one.say("y" * 600 + "\u202e", "\x1b[31m" + "x" * 30)
    one.say("y", "\x00")
    (name, text), (nobody, _) = one.said()
    assert (name, text) == ("[31m" + "x" * 20, "y" * 500)
    assert nobody == "somebody"


def test_who_speaks_too_fast_is_put_out():
    one = Client()
    for _ in range(21):
        one.say("spam")
    assert len(one.said()) == 20
    assert one.code() == 1008


def test_a_steady_speaker_is_not():
    one = Client()
    for _ in range(100):
        one.say("x")
        one.clock.advance(0.21)
    assert len(one.said()) == 100


def test_who_does_not_listen_is_put_out():
    one = Client()
    deaf = Client(one, flushing=False)
    for _ in range(200):
        one.clock.advance(1)
        one.say("z" * 500)
    assert len(one.said()) == 200
    assert deaf.transport.aborted
    assert len(deaf.written) < 70_000
    assert one.heard("here")[-1]["count"] == 1


def test_the_room_has_an_end(monkeypatch):
    monkeypatch.setattr(chat, "_MAX_VISITS", 2)
    one = Client()
    clients = [one, Client(one), Client(one)]
    assert [client.answer()[0] for client in clients] == [101, 101, 503]
    clients[1].transport.close_by_peer()
    assert Client(one).answer()[0] == 101


def test_another_upgrade_is_none():
    server = Server()
    server.send(request(b"GET /chat HTTP/1.1", b"Connection: upgrade", b"Upgrade: other"))
    assert server.answer()[0] == 426


def test_a_bad_handshake_is_refused_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(chat, "_MAX_VISITS", 1)
    server = Server()
    server.send(request(b"GET /chat HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket"))
    assert server.answer()[0] == 400
    assert Client(server).answer()[0] == 101
