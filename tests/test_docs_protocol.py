"""docs/protocol.rst: its worked examples are what the code sends and understands."""

import re
from pathlib import Path

import pytest
from test_protocol_handshake import worked_example

from sockgw.protocol.errors import StreamCode, TunnelCode
from sockgw.protocol.frames import FIN, FrameType, decode, encode
from sockgw.protocol.heads import RequestHead, ResponseHead
from sockgw.protocol.payloads import (
    Destination,
    decode_goaway,
    decode_head,
    decode_open,
    decode_reset,
    encode_goaway,
    encode_open,
    encode_reset,
    encode_response,
    encode_trailers,
    u32,
    u64,
)

SPECIFICATION = Path(__file__).parent.parent / "docs" / "protocol.rst"

REQUEST = RequestHead(b"GET", b"/hello?x=1", [(b"Host", b"a.test"), (b"X-Request-ID", b"r1")])
TO = Destination("http", "10.0.0.5", 8080)
SERVICE = Destination(service="crm")
UPGRADE = RequestHead(b"GET", b"/chat", [(b"Host", b"a.test")], b"websocket")
SWITCHED = ResponseHead(101, b"Switching Protocols", [], upgrade=b"websocket")
BYTES = RequestHead(b"CONNECT", b"", [])
DATABASE = Destination("tcp", "10.0.0.5", 5432)
RESPONSE = ResponseHead(200, b"OK", [(b"Content-Length", b"5")])
TRAILERS = [(b"X-Checksum", b"17")]

_handshake = worked_example()

EXAMPLES = {
    "HELLO": encode(FrameType.HELLO, 0, 0, _handshake["HELLO"]),
    "CHALLENGE": encode(FrameType.CHALLENGE, 0, 0, _handshake["CHALLENGE"]),
    "signed message": _handshake["signed message"],
    "PROOF": encode(FrameType.PROOF, 0, 0, _handshake["PROOF"]),
    "WELCOME": encode(FrameType.WELCOME, 0, 0, _handshake["WELCOME"]),
    "PROOF that resumes": encode(FrameType.PROOF, 0, 0, _handshake["PROOF that resumes"]),
    "WELCOME that resumes": encode(FrameType.WELCOME, 0, 0, _handshake["WELCOME that resumes"]),
    "OPEN": encode(FrameType.OPEN, FIN, 1, encode_open(REQUEST, TO)),
    "OPEN of a service": encode(FrameType.OPEN, 0, 3, encode_open(REQUEST, SERVICE)),
    "OPEN of an upgrade": encode(FrameType.OPEN, 0, 5, encode_open(UPGRADE, TO)),
    "HEAD of an upgrade": encode(FrameType.HEAD, 0, 5, encode_response(SWITCHED)),
    "OPEN of a TCP stream": encode(FrameType.OPEN, 0, 7, encode_open(BYTES, DATABASE)),
    "HEAD": encode(FrameType.HEAD, 0, 1, encode_response(RESPONSE)),
    "DATA": encode(FrameType.DATA, FIN, 1, b"hello"),
    "trailers": encode(FrameType.HEAD, FIN, 1, encode_trailers(TRAILERS)),
    "CREDIT": encode(FrameType.CREDIT, 0, 1, u32.pack(131_072)),
    "RESET": encode(
        FrameType.RESET, 0, 1, encode_reset(StreamCode.CONNECTION_REFUSED, "db:5432 refused")
    ),
    "PING": encode(FrameType.PING, 0, 0, u64.pack(7)),
    "PONG": encode(FrameType.PONG, 0, 0, u64.pack(7)),
    "ACK": encode(FrameType.ACK, 0, 0, u64.pack(3)),
    "GOAWAY": encode(FrameType.GOAWAY, 0, 0, encode_goaway(9, TunnelCode.REVOKED, "revoked")),
}


def documented():
    """Return the examples of the specification by name, from their hexadecimal columns."""
    found = {}
    pattern = r"^\.\. example: (.+)\n\n::\n\n((?:   .*\n)+)"
    for name, block in re.findall(pattern, SPECIFICATION.read_text(), re.MULTILINE):
        columns = "".join(line[3:51] for line in block.splitlines())
        found[name] = bytes.fromhex(columns)
    return found


def test_every_example_is_there():
    assert set(documented()) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_code_sends(name):
    assert documented()[name] == EXAMPLES[name]


def test_what_the_code_understands():
    payloads = {
        name: next(decode(frame))[3]
        for name, frame in documented().items()
        if name != "signed message"
    }
    assert decode_open(payloads["OPEN"]) == (REQUEST, TO)
    assert decode_open(payloads["OPEN of a service"]) == (REQUEST, SERVICE)
    assert decode_head(payloads["HEAD"]) == RESPONSE
    assert decode_open(payloads["OPEN of an upgrade"]) == (UPGRADE, TO)
    assert decode_head(payloads["HEAD of an upgrade"]) == SWITCHED
    assert decode_open(payloads["OPEN of a TCP stream"]) == (BYTES, DATABASE)
    assert decode_head(payloads["trailers"]) == TRAILERS
    assert decode_reset(payloads["RESET"]) == (StreamCode.CONNECTION_REFUSED, "db:5432 refused")
    assert decode_goaway(payloads["GOAWAY"]) == (9, TunnelCode.REVOKED, "revoked")


def test_every_frame_type_and_code_is_specified():
    text = SPECIFICATION.read_text()
    for kind in FrameType:
        assert re.search(rf"^   \* - 0x{kind:02x}\n     - {kind.name}$", text, re.MULTILINE), kind
    for code in (*StreamCode, *TunnelCode):
        assert re.search(rf"^   \* - {code:d}\n     - {code.name}$", text, re.MULTILINE), code
