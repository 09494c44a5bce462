"""Who the client is, by the word of trusted proxies only, and how the origin is told.

Every proxy appends the address of its own peer to ``X-Forwarded-For``, so the list is read from the
right, as Express does: an entry is believed while everything to its right is a trusted proxy. The
first that is none is the client. What stands further left is hearsay; it is passed on, as proxies
do, but decides nothing.

Only ``X-Forwarded-*`` are believed. Many proxies let a client's own ``Forwarded`` (RFC 7239) pass
although they set ``X-Forwarded-For``: where both come, ``Forwarded`` is written anew from
``X-Forwarded-For``, so that the origin reads the same in both. One that comes alone is passed on
with our element appended, and decides nothing.

From peers that are not trusted nothing is believed and nothing is passed on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sockgw.http.networks import UNIX_PEER, Networks, canonical
from sockgw.protocol.heads import Headers

__all__ = ["STRIPPED", "ClientView", "Forwarding", "is_protected", "names_a_method", "with_prefix"]

#: Lower-case names of the fields that this gateway writes itself: the client's own never pass.
STRIPPED = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    )
)

# Of these only the one true spelling may pass: an origin that takes ``Content_Length`` for
# ``Content-Length`` (CGI makes them one variable) would read another message than we did.
_TRUE_SPELLING_ONLY = frozenset((b"host", b"content-length", b"transfer-encoding"))

_METHOD_OVERRIDES = frozenset((b"x-http-method", b"x-http-method-override", b"x-method-override"))

_PREFIX = b"x-forwarded-prefix"
_PATH = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+:=@%-]+)*/?")

_OTHER_FORWARDED = b"x-forwarded-"  # -prefix, -server, -user, ...: believed by many origins

# Some frameworks serve what these name in place of the request's target, past any policy here.
_REROUTING = frozenset((b"x-original-url", b"x-rewrite-url"))

# CGI and its heirs turn whatever is no letter or digit into "_", some of them each on its own:
# every sign that a token may have (RFC 9110, section 5.6.2) counts as "-" here.
_SIGNS = b"!#$%&'*+.^_`|~"
_AS_HYPHENS = bytes.maketrans(_SIGNS, b"-" * len(_SIGNS))

_UNKNOWN = "unknown"  # RFC 7239, section 6.2

MAX_HOPS = 32  # entries of a chain, from its right end; real ones have fewer than ten

_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}
# Some proxies (traefik) name the scheme of the WebSocket that is asked for.
_PROTOCOLS = {b"http": b"http", b"https": b"https", b"ws": b"http", b"wss": b"https"}

_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:@=+/-]{1,128}")
# An entry of X-Forwarded-For: the address alone or, from some proxies, with its port.
_HOP = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}|([^\[\]]+)")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 7239, section 4: what may stand before our own element.
_PAIR = rb"%b=(?:%b|\"(?:[^\"\\]|\\.)*\")" % (_TOKEN.pattern, _TOKEN.pattern)
_ELEMENT = rb"%b(?:;%b)*" % (_PAIR, _PAIR)
_FORWARDED = re.compile(rb"%b(?:[ \t]*,[ \t]*%b){0,%d}" % (_ELEMENT, _ELEMENT, MAX_HOPS - 1))


def is_protected(lower_name: bytes, trusted: bool = False) -> bool:
    """Tell whether a request's field of that name, given in lower case, must be dropped.

    Dropped are those of :data:`STRIPPED`, the other ``X-Forwarded-…``, ``X-Original-URL`` and
    ``X-Rewrite-URL`` unless a trusted proxy sent them, and, from anybody, names that an origin may
    take for one of these, or for ``Host``, ``Content-Length`` or ``Transfer-Encoding``:
    ``x_forwarded_for``, ``content.length``.
    """
    plain = lower_name.translate(_AS_HYPHENS)
    if plain in STRIPPED:
        return True
    if plain in _REROUTING or plain.startswith(_OTHER_FORWARDED):
        return not trusted or plain != lower_name
    return plain in _TRUE_SPELLING_ONLY and plain != lower_name


def names_a_method(lower_name: bytes) -> bool:
    """Tell whether a field of that name, in lower case, makes frameworks take another method."""
    return lower_name[:1] == b"x" and lower_name.translate(_AS_HYPHENS) in _METHOD_OVERRIDES


def with_prefix(headers: Headers, prefix: bytes) -> Headers:
    """Return a request's fields with ``X-Forwarded-Prefix``: what was taken off its path.

    The fields are those that may pass: one among them is from a trusted proxy that took its own
    prefix off before, which then comes first. Where that makes no sense it counts as absent.
    """
    told = b""
    result = []
    for field in headers:
        if field[0].lower() == _PREFIX:
            told = field[1] if _PATH.fullmatch(field[1]) else b""
        else:
            result.append(field)
    result.append((b"X-Forwarded-Prefix", told.removesuffix(b"/") + prefix))
    return result


@dataclass(slots=True)
class ClientView:
    """A request as its client sees it, as far as that can be believed."""

    address: str  #: of the client: canonical text, no zone, no brackets; else ``unknown``
    proto: bytes  #: ``http`` or ``https``
    host: bytes  #: host[:port] as the client asked for it; empty where HTTP/1.0 named none
    port: bytes  #: of the public URL, in digits
    trusted: bool  #: the peer is a trusted proxy
    request_id: bytes = b""  #: what a trusted proxy calls this request; empty: make one up
    peer: str = ""  #: the address of the TCP peer, canonical
    chain: Sequence[str] = ()  #: X-Forwarded-For of a trusted peer: its well-formed end
    forwarded: bytes = b""  #: what comes before our own element in Forwarded

    def authority(self) -> bytes:
        """Return the authority of the public URL: the host, with the port unless it is default."""
        host = self.host
        has_port = b":" in host.rpartition(b"]")[2]
        if not host or has_port or self.port == _DEFAULT_PORTS[self.proto]:
            return host
        return host + b":" + self.port


class Forwarding:
    """Finds the client behind trusted proxies and describes it to the origin."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted

    def client_of(
        self, peer_address: str, secure: bool, local_port: int, host: bytes, headers: Headers
    ) -> ClientView:
        """Return what is believed about the client of a request.

        ``peer_address`` is IP text (empty or ``unix`` for a Unix socket, which counts as
        loopback), ``host`` the authority that the request names, ``secure`` whether it came by
        TLS, ``headers`` its fields as they came. Never raises: a trusted proxy's value that makes
        no sense counts as absent, and a chain ends where it stops making sense.

        The port is the one in the public URL: ``X-Forwarded-Port``, else that of the host, else
        the default of the scheme. ``local_port`` stands in only where the request names no host:
        the port that is listened on says nothing about the URL behind a port mapping.
        """
        trusted = self._trusted.contains(peer_address)
        try:
            peer = canonical(UNIX_PEER if peer_address in ("", "unix") else peer_address)
        except ValueError:
            peer = _UNKNOWN
        proto = b"https" if secure else b"http"
        if trusted:
            return self._as_told(peer, proto, local_port, host, headers)
        port = _public_port(host, proto, local_port)
        return ClientView(peer, proto, host, port, False, b"", peer)

    def _as_told(
        self, peer: str, proto: bytes, local_port: int, host: bytes, headers: Headers
    ) -> ClientView:
        """Return what a trusted proxy says. Of a list, but for the chain, the leftmost counts."""
        told: dict[bytes, bytes] = {}
        for name, value in headers:
            key = name.lower()
            if key in STRIPPED:
                told[key] = told[key] + b"," + value if key in told else value

        chain = _chain(told.get(b"x-forwarded-for", b""))
        address = peer
        for hop in reversed(chain):
            address = hop
            if not self._trusted.contains(hop):
                break

        proto = _PROTOCOLS.get(_first(told, b"x-forwarded-proto").lower(), proto)
        told_host = _first(told, b"x-forwarded-host")
        if _HOST.fullmatch(told_host):
            host = told_host
        port = _valid_port(_first(told, b"x-forwarded-port"))
        request_id = told.get(b"x-request-id", b"").strip(b" \t")

        if b"x-forwarded-for" in told:
            forwarded = b", ".join([_for(hop) for hop in chain])
        else:
            forwarded = told.get(b"forwarded", b"").strip(b" \t")
            if not _FORWARDED.fullmatch(forwarded):
                forwarded = b""
        return ClientView(
            address,
            proto,
            host,
            port or _public_port(host, proto, local_port),
            True,
            request_id if _REQUEST_ID.fullmatch(request_id) else b"",
            peer,
            chain,
            forwarded,
        )

    def headers_for(self, view: ClientView) -> Headers:
        """Return the fields that tell the origin about the client.

        They take the place of all fields for which :func:`is_protected` holds.
        """
        hops = b""
        if view.chain:
            hops = ", ".join(view.chain).encode() + b", "
        element = _for(view.peer) + b";proto=" + view.proto
        fields = [
            (b"X-Forwarded-For", hops + view.peer.encode()),
            (b"X-Forwarded-Port", view.port),
            (b"X-Forwarded-Proto", view.proto),
            (b"X-Real-IP", view.address.encode()),
        ]
        if view.host:
            fields.append((b"X-Forwarded-Host", view.host))
            element += b";host=" + _quoted(view.host)
        if view.forwarded:
            element = view.forwarded + b", " + element
        fields.append((b"Forwarded", element))
        return fields


def _first(told: dict[bytes, bytes], name: bytes) -> bytes:
    return told.get(name, b"").partition(b",")[0].strip(b" \t")


def _chain(value: bytes) -> list[str]:
    """Return the addresses at the end of X-Forwarded-For, up to the first that is none."""
    hops: list[str] = []
    for entry in reversed(value.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]):
        text = entry.decode("latin-1").strip(" \t")
        if not text:
            continue  # an empty list element says nothing (RFC 9110, section 5.6.1.2)
        match = _HOP.fullmatch(text)
        if match is None or match.lastindex is None:
            break
        try:
            hops.append(canonical(match[match.lastindex]))
        except ValueError:
            break
    hops.reverse()
    return hops


def _valid_port(text: bytes) -> bytes:
    """Return a port number from 1 to 65535 without leading zeros, empty for anything else."""
    if text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return text.lstrip(b"0")
    return b""


def _port_of(host: bytes) -> bytes:
    _, colon, port = host.rpartition(b":")
    return _valid_port(port) if colon else b""


def _public_port(host: bytes, proto: bytes, local_port: int) -> bytes:
    if not host:
        return b"%d" % local_port
    return _port_of(host) or _DEFAULT_PORTS[proto]


def _for(address: str) -> bytes:
    """Return the ``for`` parameter (RFC 7239, section 6)."""
    if ":" in address:
        return b'for="[' + address.encode() + b']"'
    return b"for=" + address.encode()


def _quoted(value: bytes) -> bytes:
    """Return a value as a token, or as a quoted-string where it is none (RFC 9110, 5.6.4)."""
    if _TOKEN.fullmatch(value):
        return value
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
