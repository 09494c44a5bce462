"""Who is there: the handshake of a tunnel, as two state machines that know no I/O and no clock.

::

    inner layer                                                              outer layer
    start()          HELLO      versions, nonce, agent, capabilities  ──▶
                ◀──  CHALLENGE  version, nonce, binding
                     PROOF      key, identifier, host, signature      ──▶    Authenticated
    Welcome     ◀──  WELCOME    version, identifier, tunnel, limits          welcome()

The signature covers both first messages as they were sent, and so both nonces, what was offered
and what was chosen: changing any bit on the way makes it worthless, and no version can be talked
down. The host that the inner layer dialled and, on direct TLS, the channel binding (RFC 9266) make
it worthless to anybody who relays it. WELCOME is not signed: the outer layer has no key but that of
its TLS certificate, which the inner layer has verified before.

Each payload is a MessagePack map with text keys. Unknown keys are ignored, so that later versions
can add some; duplicate keys, extension types and values of another type are refused. Every size is
bounded before anything is decoded. Whatever a peer sends, :class:`HandshakeError` is all that is
raised: close the carrier, tell the peer nothing, log the reason.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto, unique
from typing import Any, Final, Protocol

import msgpack

from sockgw.protocol.errors import LocalError, RemoteError

__all__ = [
    "CHALLENGE",
    "HELLO",
    "MAX_PAYLOAD",
    "NONCE_SIZE",
    "PROOF",
    "TUNNEL_ID_SIZE",
    "VERSIONS",
    "WELCOME",
    "Authenticated",
    "Frame",
    "HandshakeError",
    "InnerHandshake",
    "OuterHandshake",
    "Refused",
    "State",
    "Verifier",
    "Welcome",
    "host_name",
    "signed_message",
]

HELLO: Final = 0x01
CHALLENGE: Final = 0x02
PROOF: Final = 0x03
WELCOME: Final = 0x04

Frame = tuple[int, bytes]
"""Frame type and payload; the stream is always 0."""

VERSIONS: Final = (1,)
"""The versions of the protocol that this code speaks."""

MAX_PAYLOAD: Final = 4096  # bytes; a PROOF with an RSA-4096 signature has about 700
NONCE_SIZE: Final = 32  # bytes: no two are ever equal by chance
TUNNEL_ID_SIZE: Final = 16  # bytes

_FINGERPRINT_SIZE = 32  # bytes: SHA-256
_MAX_SIGNATURE = 2048  # bytes: RSA with 16384 bits
_MAX_IDENTIFIER = 128  # characters, as in sockgw.keys
_MAX_HOST = 255  # characters: RFC 1035, section 2.3.4
_MAX_AGENT = 128  # characters
_MAX_ITEMS = 32  # versions or capabilities
_MAX_CAPABILITY = 64  # characters
_MAX_VERSION = 0xFFFF
_MAX_STREAMS = 0x7FFFFFFF  # a stream's id has 32 bits, and the outer layer's are odd
_MAX_RESUME_WINDOW = 86400  # seconds

_TLS_EXPORTER = "tls-exporter"
_NO_BINDING = "none"

_CONTEXT = b"sockgw.1 inner layer\0"


@unique
class Refused(Enum):
    """What kind of thing was wrong with a handshake; the value is its label in metrics."""

    MALFORMED = "malformed"
    VERSION = "version"
    KEY = "key"  #: unknown
    SIGNATURE = "signature"
    HOST = "host"
    IDENTIFIER = "identifier"
    TIMEOUT = "timeout"
    LEFT = "left"  #: the peer went away before the end
    LIMIT = "limit"  #: no fault of the peer's: there are too many


class HandshakeError(RemoteError):
    """The peer is not let in.

    ``reason`` is for the operator's log, safe to print, and never for the peer. ``fingerprint`` is
    the key that the peer claimed to have (32 bytes), or None before it named one.
    """

    def __init__(
        self,
        reason: str,
        fingerprint: bytes | None = None,
        kind: Refused = Refused.MALFORMED,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.fingerprint = fingerprint


class Verifier(Protocol):
    """A public key and the identifiers that go with it, of which the first is its default."""

    @property
    def identifiers(self) -> Sequence[str]: ...

    def verify(self, message: bytes, signature: bytes, /) -> bool:
        """Return whether the signature is the key's; never raise."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """What the outer layer knows of an inner layer that has proved its key."""

    fingerprint: bytes
    identifier: str
    version: int
    agent: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the outer layer granted. ``resume_window`` is in seconds; 0: it resumes nothing."""

    version: int
    identifier: str
    tunnel: bytes
    resume_window: int
    max_streams: int
    capabilities: tuple[str, ...]


def signed_message(
    *,
    hello: bytes,
    challenge: bytes,
    fingerprint: bytes,
    identifier: str,
    host: str,
    channel_binding: bytes,
) -> bytes:
    """Return what the inner layer signs.

    The context ``"sockgw.1 inner layer"`` and a zero byte, then six fields, each preceded by its
    length in two bytes (big-endian): the payloads of HELLO and CHALLENGE as they were sent, the
    fingerprint, the identifier and the host of PROOF in UTF-8, and the channel binding: the
    ``tls-exporter`` value where CHALLENGE says so, else nothing. What a capability may add to PROOF
    one day becomes further fields: HELLO and CHALLENGE say which, and no list of fields is encoded
    as another one is.
    """
    fields = (
        hello,
        challenge,
        fingerprint,
        identifier.encode(),
        host.encode(),
        channel_binding,
    )
    return _CONTEXT + b"".join(len(field).to_bytes(2, "big") + field for field in fields)


def host_name(authority: str) -> str:
    """Return the host of an authority (``HOST[:PORT]``, ``[V6][:PORT]``, V6) as PROOF spells it.

    In lower case, without port, brackets and final dot, so that what the inner layer dialled and
    what the outer layer finds in ``Host`` compare equal.
    """
    if authority.startswith("["):
        host = authority[1:].partition("]")[0]
    elif authority.count(":") == 1:
        host = authority.partition(":")[0]
    else:
        host = authority
    return host.lower().removesuffix(".")


class State(Enum):
    """Where a side is. Only its own states occur on each."""

    NEW = auto()  #: inner layer: HELLO is not sent yet
    AWAITING_HELLO = auto()
    AWAITING_CHALLENGE = auto()
    AWAITING_PROOF = auto()
    AWAITING_WELCOME = auto()  #: inner layer: when the carrier closes now, we were refused
    AUTHENTICATED = auto()  #: outer layer: the peer is known, and the caller may still refuse it
    WELCOMED = auto()
    FAILED = auto()


_TRANSITIONS = {
    # the outer layer's
    (State.AWAITING_HELLO, HELLO): State.AWAITING_PROOF,
    (State.AWAITING_PROOF, PROOF): State.AUTHENTICATED,
    # the inner layer's
    (State.AWAITING_CHALLENGE, CHALLENGE): State.AWAITING_WELCOME,
    (State.AWAITING_WELCOME, WELCOME): State.WELCOMED,
}

_LATE = {
    State.AWAITING_HELLO: "no HELLO in time",
    State.AWAITING_CHALLENGE: "no CHALLENGE in time",
    State.AWAITING_PROOF: "challenge expired",
    State.AWAITING_WELCOME: "no WELCOME in time",
}


class _Side:
    """What both sides share: the state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def _following(self, frame_type: int) -> State:
        """Return the state to enter once the frame was found good; until then it is FAILED."""
        following = _TRANSITIONS.get((self.state, frame_type))
        state, self.state = self.state, State.FAILED
        if following is None:
            raise HandshakeError(f"frame of type {frame_type} in state {state.name}")
        return following

    def expire(self) -> HandshakeError:
        """Time is up: refuse whatever still comes, and return the error to treat as raised."""
        reason = _LATE.get(self.state, f"expired in state {self.state.name}")
        self.state = State.FAILED
        return HandshakeError(reason, kind=Refused.TIMEOUT)


class OuterHandshake(_Side):
    """The outer layer's side.

    ``nonce``: 32 fresh random bytes. ``hosts``: the names under which this outer layer may have
    been dialled, as :func:`host_name` returns them. ``channel_binding``: the ``tls-exporter`` value
    of the carrier's TLS connection, or None where TLS ends elsewhere. ``lookup`` returns the key
    with a fingerprint, or None. ``decoy`` is verified against where it returns None, so that the
    time of the answer does not tell whether a key is known.

    Give :meth:`receive` each handshake frame; send the frame that it returns, or, once it returns
    :class:`Authenticated`, what :meth:`welcome` returns. Call :meth:`expire` when time is up.
    """

    def __init__(
        self,
        *,
        nonce: bytes,
        hosts: Collection[str],
        channel_binding: bytes | None,
        lookup: Callable[[bytes], Verifier | None],
        decoy: Verifier,
    ) -> None:
        super().__init__(State.AWAITING_HELLO)
        self._nonce = _own(nonce, NONCE_SIZE)
        self._hosts = hosts
        self._channel_binding = channel_binding
        self._lookup = lookup
        self._decoy = decoy
        self._hello = b""
        self._challenge = b""
        self._version = 0
        self._agent = ""
        self._identifier = ""

    def receive(self, frame_type: int, payload: bytes) -> Frame | Authenticated:
        """Take a frame. Raises HandshakeError; nothing but closing is left to do then."""
        following = self._following(frame_type)
        outcome = self._greeted(payload) if frame_type == HELLO else self._proved(payload)
        self.state = following
        return outcome

    def _greeted(self, payload: bytes) -> Frame:
        hello = _Fields("HELLO", payload)
        versions = hello.versions("versions")
        hello.binary("nonce", NONCE_SIZE)  # signed as a part of the payload
        self._agent = hello.text("agent", _MAX_AGENT)
        hello.texts("capabilities", _MAX_CAPABILITY)  # none is defined yet
        common = set(versions).intersection(VERSIONS)
        if not common:
            raise HandshakeError(
                f"speaks versions {list(versions)}, not {list(VERSIONS)}", kind=Refused.VERSION
            )
        self._version = max(common)
        self._hello = payload
        self._challenge = _pack(
            version=self._version,
            nonce=self._nonce,
            binding=_NO_BINDING if self._channel_binding is None else _TLS_EXPORTER,
        )
        return CHALLENGE, self._challenge

    def _proved(self, payload: bytes) -> Authenticated:
        proof = _Fields("PROOF", payload)
        fingerprint = proof.binary("key", _FINGERPRINT_SIZE)
        identifier = proof.text("identifier", _MAX_IDENTIFIER)
        host = proof.text("host", _MAX_HOST)
        signature = proof.binary("signature", 1, _MAX_SIGNATURE)
        message = signed_message(
            hello=self._hello,
            challenge=self._challenge,
            fingerprint=fingerprint,
            identifier=identifier,
            host=host,
            channel_binding=self._channel_binding or b"",
        )
        known = self._lookup(fingerprint)
        genuine = (self._decoy if known is None else known).verify(message, signature)
        if known is None:
            raise HandshakeError("unknown key", fingerprint, Refused.KEY)
        if not genuine:
            raise HandshakeError("wrong signature", fingerprint, Refused.SIGNATURE)
        # From here on the peer is who it says, and the reasons can be believed.
        if host not in self._hosts:
            raise HandshakeError(
                f"dialled {host!r}, which is not our name", fingerprint, Refused.HOST
            )
        if not known.identifiers or (identifier and identifier not in known.identifiers):
            raise HandshakeError(
                f"identifier {identifier!r} is not of its key", fingerprint, Refused.IDENTIFIER
            )
        self._identifier = identifier or known.identifiers[0]
        return Authenticated(fingerprint, self._identifier, self._version, self._agent)

    def welcome(self, *, tunnel: bytes, max_streams: int, resume_window: int = 0) -> Frame:
        """Let the inner layer in: return WELCOME, the last frame of the handshake.

        ``tunnel``: 16 fresh random bytes. Raises LocalError unless :meth:`receive` has just
        returned :class:`Authenticated`.
        """
        if self.state is not State.AUTHENTICATED:
            raise LocalError(f"welcome in state {self.state.name}")
        self.state = State.WELCOMED
        return WELCOME, _pack(
            version=self._version,
            identifier=self._identifier,
            tunnel=_own(tunnel, TUNNEL_ID_SIZE),
            resume_window=resume_window,
            max_streams=max_streams,
            capabilities=[],
        )


class InnerHandshake(_Side):
    """The inner layer's side.

    ``nonce``: 32 fresh random bytes. ``fingerprint`` and ``sign`` are those of its private key.
    ``identifier``: the one to be known by, or ``""`` for the key's own. ``host``: the host that was
    dialled, as :func:`host_name` returns it. ``channel_binding``: the ``tls-exporter`` value where
    the carrier is TLS, else None.

    Send what :meth:`start` returns; give :meth:`receive` each handshake frame and send the frame
    that it returns, until it returns :class:`Welcome`.
    """

    def __init__(
        self,
        *,
        nonce: bytes,
        fingerprint: bytes,
        sign: Callable[[bytes], bytes],
        identifier: str,
        host: str,
        channel_binding: bytes | None,
        agent: str,
    ) -> None:
        super().__init__(State.NEW)
        self._nonce = _own(nonce, NONCE_SIZE)
        self._fingerprint = _own(fingerprint, _FINGERPRINT_SIZE)
        self._sign = sign
        self._identifier = identifier
        self._host = host
        self._channel_binding = channel_binding
        self._hello = _pack(versions=list(VERSIONS), nonce=nonce, agent=agent, capabilities=[])
        self._version = 0

    def start(self) -> Frame:
        """Return HELLO, to be sent first. Raises LocalError the second time."""
        if self.state is not State.NEW:
            raise LocalError(f"start in state {self.state.name}")
        self.state = State.AWAITING_CHALLENGE
        return HELLO, self._hello

    def receive(self, frame_type: int, payload: bytes) -> Frame | Welcome:
        """Take a frame. Raises HandshakeError; nothing but closing is left to do then."""
        following = self._following(frame_type)
        outcome = self._challenged(payload) if frame_type == CHALLENGE else self._welcomed(payload)
        self.state = following
        return outcome

    def _challenged(self, payload: bytes) -> Frame:
        challenge = _Fields("CHALLENGE", payload)
        self._version = challenge.whole("version", 1, _MAX_VERSION)
        nonce = challenge.binary("nonce", NONCE_SIZE)
        binding = challenge.text("binding", len(_TLS_EXPORTER))
        if self._version not in VERSIONS:
            raise HandshakeError(f"chose version {self._version}, which we did not offer")
        if nonce == self._nonce:
            raise HandshakeError("CHALLENGE reflects our nonce")
        if binding == _NO_BINDING:
            # TLS may end at a proxy in front of the outer layer, even where it is direct for us.
            channel_binding = b""
        elif binding != _TLS_EXPORTER:
            raise HandshakeError(f"asks for the unknown channel binding {binding!r}")
        elif self._channel_binding is None:
            raise HandshakeError("asks for a channel binding, but we have no TLS")
        else:
            channel_binding = self._channel_binding
        message = signed_message(
            hello=self._hello,
            challenge=payload,
            fingerprint=self._fingerprint,
            identifier=self._identifier,
            host=self._host,
            channel_binding=channel_binding,
        )
        return PROOF, _pack(
            key=self._fingerprint,
            identifier=self._identifier,
            host=self._host,
            signature=self._sign(message),
        )

    def _welcomed(self, payload: bytes) -> Welcome:
        fields = _Fields("WELCOME", payload)
        welcome = Welcome(
            version=fields.whole("version", 1, _MAX_VERSION),
            identifier=fields.text("identifier", _MAX_IDENTIFIER),
            tunnel=fields.binary("tunnel", TUNNEL_ID_SIZE),
            resume_window=fields.whole("resume_window", 0, _MAX_RESUME_WINDOW),
            max_streams=fields.whole("max_streams", 1, _MAX_STREAMS),
            capabilities=fields.texts("capabilities", _MAX_CAPABILITY),
        )
        if welcome.version != self._version:
            raise HandshakeError(f"WELCOME says version {welcome.version}, not {self._version}")
        if not welcome.identifier or self._identifier not in ("", welcome.identifier):
            raise HandshakeError(f"WELCOME is for identifier {welcome.identifier!r}")
        return welcome


class _Fields:
    """The decoded fields of a payload; each method returns one of them, of exactly that type."""

    def __init__(self, name: str, payload: bytes) -> None:
        self._name = name
        if len(payload) > MAX_PAYLOAD:
            raise HandshakeError(f"{name} has {len(payload)} bytes, over {MAX_PAYLOAD}")
        try:
            fields = msgpack.unpackb(payload, object_pairs_hook=_unique, max_ext_len=0)
        except (ValueError, RecursionError):  # the latter from msgpack's pure Python version
            raise HandshakeError(f"{name} is not the MessagePack expected") from None
        if type(fields) is not dict:
            raise HandshakeError(f"{name} is no map")
        self._fields: dict[str, Any] = fields

    def _wrong(self, key: str) -> HandshakeError:
        return HandshakeError(f"{self._name} has no proper {key!r}")

    def binary(self, key: str, shortest: int, longest: int | None = None) -> bytes:
        """Bytes of a length; of exactly ``shortest`` without ``longest``."""
        value = self._fields.get(key)
        if type(value) is not bytes or not shortest <= len(value) <= (longest or shortest):
            raise self._wrong(key)
        return value

    def text(self, key: str, longest: int) -> str:
        return self._text(key, self._fields.get(key), longest)

    def _text(self, key: str, value: object, longest: int) -> str:
        # Printable only: it goes into logs and pages.
        if type(value) is not str or len(value) > longest or not value.isprintable():
            raise self._wrong(key)
        return value

    def whole(self, key: str, lowest: int, highest: int) -> int:
        return self._whole(key, self._fields.get(key), lowest, highest)

    def _whole(self, key: str, value: object, lowest: int, highest: int) -> int:
        # Not isinstance: True is no number here.
        if type(value) is not int or not lowest <= value <= highest:
            raise self._wrong(key)
        return value

    def _list(self, key: str) -> list[object]:
        value = self._fields.get(key)
        if type(value) is not list or len(value) > _MAX_ITEMS:
            raise self._wrong(key)
        return value

    def texts(self, key: str, longest: int) -> tuple[str, ...]:
        return tuple(self._text(key, item, longest) for item in self._list(key))

    def versions(self, key: str) -> tuple[int, ...]:
        return tuple(self._whole(key, item, 1, _MAX_VERSION) for item in self._list(key))


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    """Build a map, where two readers of one payload must not see different values."""
    fields = dict(pairs)
    if len(fields) != len(pairs) or not all(type(key) is str for key in fields):
        raise ValueError("a key is there twice, or is no text")
    return fields


def _pack(**fields: object) -> bytes:
    payload: bytes = msgpack.packb(fields)
    return payload


def _own(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise LocalError(f"{size} bytes were expected, not {len(value)}")
    return value
