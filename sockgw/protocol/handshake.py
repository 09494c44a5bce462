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
it worthless to anybody who relays it.

Who comes back to a tunnel names it in PROOF, with the number of frames that it has received, and
proves in addition to its key that it has the tunnel's secret, which WELCOME told it when the tunnel
was new. The secret itself does not cross the wire again: a code made with it does. Where the outer
layer has the tunnel no more, WELCOME simply names a new one.

WELCOME is not signed: the outer layer has no key but that of
its TLS certificate, which the inner layer has verified before.

Each payload is a MessagePack map with text keys. Unknown keys are ignored, so that later versions
can add some; duplicate keys, extension types and values of another type are refused. Every size is
bounded before anything is decoded. Whatever a peer sends, :class:`HandshakeError` is all that is
raised: close the carrier, tell the peer nothing, log the reason.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol, TypedDict

from sockgw.protocol.errors import HandshakeError, LocalError, Refused
from sockgw.protocol.fields import MAX_PAYLOAD, Fields, pack

__all__ = [
    "CHALLENGE",
    "HELLO",
    "MAX_PAYLOAD",
    "MAX_RESUME_WINDOW",
    "NONCE_SIZE",
    "PROOF",
    "SECRET_SIZE",
    "TUNNEL_ID_SIZE",
    "VERSIONS",
    "WELCOME",
    "Authenticated",
    "Frame",
    "HandshakeError",
    "InnerHandshake",
    "OuterHandshake",
    "Refused",
    "Resumption",
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

NONCE_SIZE: Final = 32  # bytes: no two are ever equal by chance
TUNNEL_ID_SIZE: Final = 16  # bytes
SECRET_SIZE: Final = 32  # bytes: those of SHA-256, whose HMAC it is for (RFC 2104, section 3)

_FINGERPRINT_SIZE = 32  # bytes: SHA-256
_MAX_SIGNATURE = 2048  # bytes: RSA with 16384 bits
_MAX_IDENTIFIER = 128  # characters, as in sockgw.keys
_MAX_HOST = 255  # characters: RFC 1035, section 2.3.4
_MAX_AGENT = 128  # characters
_MAX_ITEMS = 32  # versions or capabilities
_MAX_CAPABILITY = 64  # characters
_MAX_VERSION = 0xFFFF
_MAX_STREAMS = 0x7FFFFFFF  # a stream's id has 32 bits, and the outer layer's are odd
MAX_RESUME_WINDOW: Final = 86400  # seconds
_MAX_COUNT = 0xFFFF_FFFF_FFFF_FFFF  # of frames: u64

_TLS_EXPORTER = "tls-exporter"
_NO_BINDING = "none"

_CONTEXT = b"sockgw.1 inner layer\0"

_RESUME = "resume"
"""The capability of going on with a tunnel whose carrier was lost."""


class Verifier(Protocol):
    """A public key and the identifiers that go with it, of which the first is its default."""

    @property
    def identifiers(self) -> Sequence[str]: ...

    def verify(self, message: bytes, signature: bytes, /) -> bool:
        """Return whether the signature is the key's; never raise."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A tunnel to go on with: its id, and how many frames of it this side has received."""

    tunnel: bytes
    received: int


@dataclass(frozen=True, slots=True)
class Authenticated:
    """What the outer layer knows of an inner layer that has proved its key.

    ``resumption``: the tunnel, known to us, of which it has proved the secret; None for a new one.
    """

    fingerprint: bytes
    identifier: str
    version: int
    agent: str
    resumption: Resumption | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the outer layer granted.

    ``resume_window`` is in seconds; 0: it resumes nothing. ``received``: how many frames it has got
    of the tunnel that is resumed; None: the tunnel is new, and ``secret`` is for resuming it.
    """

    version: int
    identifier: str
    tunnel: bytes
    resume_window: int
    max_streams: int
    capabilities: tuple[str, ...]
    secret: bytes = field(repr=False)
    received: int | None


def signed_message(
    *,
    hello: bytes,
    challenge: bytes,
    fingerprint: bytes,
    identifier: str,
    host: str,
    channel_binding: bytes,
    resumption: tuple[bytes, ...] = (),
) -> bytes:
    """Return what the inner layer signs.

    The context ``"sockgw.1 inner layer"`` and a zero byte, then six fields, each preceded by its
    length in two bytes (big-endian): the payloads of HELLO and CHALLENGE as they were sent, the
    fingerprint, the identifier and the host of PROOF in UTF-8, and the channel binding: the
    ``tls-exporter`` value where CHALLENGE says so, else nothing. Where CHALLENGE has the capability
    ``resume``, three more follow, empty where no tunnel is resumed: its id, the number of frames
    received (u64), and the code that proves its secret. HELLO and CHALLENGE say which fields there
    are, and no list of fields is encoded as another one is.
    """
    fields = (
        hello,
        challenge,
        fingerprint,
        identifier.encode(),
        host.encode(),
        channel_binding,
        *resumption,
    )
    return _CONTEXT + b"".join(len(field).to_bytes(2, "big") + field for field in fields)


def _code(secret: bytes, message: bytes) -> bytes:
    """Return the code that proves a tunnel's secret; ``message`` ends with the frames received."""
    return hmac.new(secret, message, hashlib.sha256).digest()


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


class _SignedFields(TypedDict):
    hello: bytes
    challenge: bytes
    fingerprint: bytes
    identifier: str
    host: str
    channel_binding: bytes


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


def _no_secret(tunnel: bytes) -> None:
    return None


class OuterHandshake(_Side):
    """The outer layer's side.

    ``nonce``: 32 fresh random bytes. ``hosts``: the names under which this outer layer may have
    been dialled, as :func:`host_name` returns them. ``channel_binding``: the ``tls-exporter`` value
    of the carrier's TLS connection, or None where TLS ends elsewhere. ``lookup`` returns the key
    with a fingerprint, or None. ``decoy`` is verified against where it returns None, so that the
    time of the answer does not tell whether a key is known. ``secret_of`` returns the secret of a
    tunnel that can be resumed by its id, or None.

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
        secret_of: Callable[[bytes], bytes | None] = _no_secret,
    ) -> None:
        super().__init__(State.AWAITING_HELLO)
        self._nonce = _own(nonce, NONCE_SIZE)
        self._hosts = hosts
        self._channel_binding = channel_binding
        self._lookup = lookup
        self._decoy = decoy
        self._secret_of = secret_of
        self._resumes = False  # both can
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
        hello = Fields("HELLO", payload)
        versions = hello.versions("versions")
        hello.binary("nonce", NONCE_SIZE)  # signed as a part of the payload
        self._agent = hello.text("agent", _MAX_AGENT)
        self._resumes = _RESUME in hello.texts("capabilities", _MAX_CAPABILITY)
        common = set(versions).intersection(VERSIONS)
        if not common:
            raise HandshakeError(
                f"speaks versions {list(versions)}, not {list(VERSIONS)}", kind=Refused.VERSION
            )
        self._version = max(common)
        self._hello = payload
        self._challenge = pack(
            version=self._version,
            nonce=self._nonce,
            binding=_NO_BINDING if self._channel_binding is None else _TLS_EXPORTER,
            capabilities=[_RESUME] if self._resumes else [],
        )
        return CHALLENGE, self._challenge

    def _proved(self, payload: bytes) -> Authenticated:
        proof = Fields("PROOF", payload)
        fingerprint = proof.binary("key", _FINGERPRINT_SIZE)
        identifier = proof.text("identifier", _MAX_IDENTIFIER)
        host = proof.text("host", _MAX_HOST)
        signature = proof.binary("signature", 1, _MAX_SIGNATURE)
        resumption, code = self._resumption(proof)
        fields: _SignedFields = {
            "hello": self._hello,
            "challenge": self._challenge,
            "fingerprint": fingerprint,
            "identifier": identifier,
            "host": host,
            "channel_binding": self._channel_binding or b"",
        }
        named = _named(resumption)
        message = signed_message(**fields, resumption=(*named, code) if self._resumes else ())
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
        if resumption is not None:
            secret = self._secret_of(resumption.tunnel)
            if secret is None:
                resumption = None  # it is over: a new one is what remains
            elif not hmac.compare_digest(_code(secret, signed_message(**fields, resumption=named)),
                                         code):  # fmt: skip
                raise HandshakeError("wrong secret of a tunnel", fingerprint, Refused.SIGNATURE)
        self._identifier = identifier or known.identifiers[0]
        return Authenticated(fingerprint, self._identifier, self._version, self._agent, resumption)

    def _resumption(self, proof: Fields) -> tuple[Resumption | None, bytes]:
        """Return which tunnel is to be resumed, and the code that proves its secret."""
        if not self._resumes or not proof.has("tunnel"):
            return None, b""
        tunnel = proof.binary("tunnel", TUNNEL_ID_SIZE)
        received = proof.whole("received", 0, _MAX_COUNT)
        return Resumption(tunnel, received), proof.binary("code", SECRET_SIZE)

    @property
    def resumes(self) -> bool:
        """Whether the peer could resume a tunnel; known once it has said HELLO."""
        return self._resumes

    def welcome(
        self,
        *,
        tunnel: bytes,
        max_streams: int,
        resume_window: int = 0,
        secret: bytes = b"",
        received: int | None = None,
    ) -> Frame:
        """Let the inner layer in: return WELCOME, the last frame of the handshake.

        ``tunnel``: 16 bytes; fresh random ones, with a fresh ``secret`` of 32 bytes, or those of
        the tunnel that is resumed, of which we have ``received`` so many frames. ``resume_window``
        in seconds. Raises LocalError unless :meth:`receive` has just returned
        :class:`Authenticated`.
        """
        if self.state is not State.AUTHENTICATED:
            raise LocalError(f"welcome in state {self.state.name}")
        self.state = State.WELCOMED
        return WELCOME, pack(
            version=self._version,
            identifier=self._identifier,
            tunnel=_own(tunnel, TUNNEL_ID_SIZE),
            resume_window=resume_window,
            max_streams=max_streams,
            capabilities=[],
            **({"secret": _own(secret, SECRET_SIZE)} if secret else {}),
            **({} if received is None else {"received": received}),
        )


class InnerHandshake(_Side):
    """The inner layer's side.

    ``nonce``: 32 fresh random bytes. ``fingerprint`` and ``sign`` are those of its private key.
    ``identifier``: the one to be known by, or ``""`` for the key's own. ``host``: the host that was
    dialled, as :func:`host_name` returns it. ``channel_binding``: the ``tls-exporter`` value where
    the carrier is TLS, else None. ``resumption``, with the ``secret`` of that tunnel: what to go on
    with; nothing may be received of it any more once PROOF is made.

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
        resumption: Resumption | None = None,
        secret: bytes = b"",
    ) -> None:
        super().__init__(State.NEW)
        self._nonce = _own(nonce, NONCE_SIZE)
        self._fingerprint = _own(fingerprint, _FINGERPRINT_SIZE)
        self._sign = sign
        self._identifier = identifier
        self._host = host
        self._channel_binding = channel_binding
        self._resumption = resumption
        self._secret = secret
        self._hello = pack(
            versions=list(VERSIONS), nonce=nonce, agent=agent, capabilities=[_RESUME]
        )
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
        challenge = Fields("CHALLENGE", payload)
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
        fields: _SignedFields = {
            "hello": self._hello,
            "challenge": payload,
            "fingerprint": self._fingerprint,
            "identifier": self._identifier,
            "host": self._host,
            "channel_binding": channel_binding,
        }
        resumption: tuple[bytes, ...] = ()
        further: dict[str, object] = {}
        if _RESUME in challenge.texts("capabilities", _MAX_CAPABILITY, optional=True):
            named = _named(self._resumption)
            resumption = (*named, b"")
            if self._resumption is not None:
                code = _code(self._secret, signed_message(**fields, resumption=named))
                resumption = (*named, code)
                further = {
                    "tunnel": self._resumption.tunnel,
                    "received": self._resumption.received,
                    "code": code,
                }
        message = signed_message(**fields, resumption=resumption)
        return PROOF, pack(
            key=self._fingerprint,
            identifier=self._identifier,
            host=self._host,
            signature=self._sign(message),
            **further,
        )

    def _welcomed(self, payload: bytes) -> Welcome:
        fields = Fields("WELCOME", payload)
        welcome = Welcome(
            version=fields.whole("version", 1, _MAX_VERSION),
            identifier=fields.text("identifier", _MAX_IDENTIFIER),
            tunnel=fields.binary("tunnel", TUNNEL_ID_SIZE),
            resume_window=fields.whole("resume_window", 0, MAX_RESUME_WINDOW),
            max_streams=fields.whole("max_streams", 1, _MAX_STREAMS),
            capabilities=fields.texts("capabilities", _MAX_CAPABILITY),
            secret=fields.binary("secret", SECRET_SIZE) if fields.has("secret") else b"",
            received=fields.whole("received", 0, _MAX_COUNT) if fields.has("received") else None,
        )
        if welcome.version != self._version:
            raise HandshakeError(f"WELCOME says version {welcome.version}, not {self._version}")
        resumed = self._resumption is not None and welcome.tunnel == self._resumption.tunnel
        if resumed is (welcome.received is None):
            raise HandshakeError("WELCOME resumes what was not asked for, or does not say how")
        if not welcome.identifier or self._identifier not in ("", welcome.identifier):
            raise HandshakeError(f"WELCOME is for identifier {welcome.identifier!r}")
        return welcome


def _named(resumption: Resumption | None) -> tuple[bytes, bytes]:
    """Return the fields that say what is resumed."""
    if resumption is None:
        return b"", b""
    return resumption.tunnel, resumption.received.to_bytes(8, "big")


def _own(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise LocalError(f"{size} bytes were expected, not {len(value)}")
    return value
