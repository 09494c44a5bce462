"""In responses, the target's origin becomes the public one wherever a header field names it.

An origin is named by a URI-reference that begins with exactly this scheme, host and port (RFC 6454;
scheme and host in any case, the default port written or not), or with ``//`` and the same authority
(RFC 3986, section 4.2). Everything else merely looks alike and stays: relative references, the
origin as text in a path or query, longer host names, user information before the host, and the
other scheme on the same host, which is another origin that the public one does not stand for.

Where a gateway changes the beginning of paths, that is undone: in references to the origin, in
those that are a path alone, and in the ``Path`` of cookies. Relative ones need nothing. A path that
has the public beginning already stays, since origins that are told of it (``X-Forwarded-Prefix``)
write it themselves. One that no request can have, because it lies outside of what the gateway adds,
has no public form and stays, too.
"""

import re
from collections.abc import Set
from dataclasses import dataclass

from sockgw.http.headers import lower
from sockgw.http.networks import canonical
from sockgw.protocol.heads import Headers

__all__ = ["Prefixes", "Rewriter", "concerns"]

_DEFAULT_PORTS = {b"http": 80, b"https": 443}

_CSPS = frozenset((b"content-security-policy", b"content-security-policy-report-only"))
_REFERENCES = frozenset((b"location", b"content-location"))
_REWRITTEN = _REFERENCES | {b"refresh", b"link", b"set-cookie"}
_REWRITTEN_OR_REMOVED = _REWRITTEN | _CSPS


def concerns(names: Set[bytes], remove_csps: bool) -> bool:
    """Whether :meth:`Rewriter.rewrite` looks at any field of these names, given in lower case."""
    wanted = _REWRITTEN_OR_REMOVED if remove_csps else _REWRITTEN
    return not wanted.isdisjoint(names)


# What may be written in place of the target's authority. The public one was chosen by the client.
_AUTHORITY = re.compile(rb"([A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# HTML, section 4.2.5.3 "shared declarative refresh steps": all before the URL and its quote.
_REFRESH = re.compile(
    rb"[ \t]*[0-9.]+(?=[;, \t])[ \t]*+[;,]?[ \t]*+(?:url[ \t]*+=[ \t]*+)?([\"']?)", re.IGNORECASE
)
# RFC 8288, section 3: a target between angle brackets; quoted parameters are passed over whole.
_LINK = re.compile(rb"\"(?:[^\"\\]++|\\.)*+\"?|<([^<>]*+)>")
# RFC 6265, section 5.2: all up to the first ";". Here also a quoted value that contains one, which
# older user agents read whole (RFC 2109).
_COOKIE = re.compile(rb"[^=;]*=[ \t]*\"[^\"]*\"|[^;]*")


# Reads as `/`, to browsers at least, or as nothing: before a slash it makes a path a host's name.
_SLASHES = b"/\\\t"
_PATH = re.compile(rb"[^?#]*")
_DOTS = re.compile(rb"[^?#]*/(?:\.|%2e){1,2}(?=[/?#]|\Z)", re.IGNORECASE)
_ESCAPED_DOT = re.compile(rb"%2e", re.IGNORECASE)
# What ends a segment, and a path.
_BOUNDARIES = (b"", b"/", b"?", b"#")
# RFC 6265bis, section 4.1.3: user agents take such a cookie with Path=/ only.
_HOST_COOKIE = b"__host-"


@dataclass(frozen=True, slots=True)
class Prefixes:
    """How the paths of clients and of the origin differ: in what they begin with.

    Absolute paths without a final slash; empty where nothing stands in place of the other.
    """

    public: bytes
    origin: bytes

    def reference(self, path: bytes) -> bytes:
        """Return an absolute path of the origin, with query and fragment, as clients know it."""
        if _DOTS.match(path):
            end = _PATH.match(path).end()  # type: ignore[union-attr]
            path = _without_dots(path[:end]) + path[end:]
        if not _begins(path, self.origin):
            return path
        if not self.origin and _begins(path, self.public):
            return path
        rest = path[len(self.origin) :]
        if self.public:
            return self.public + rest
        return b"/" + rest.lstrip(_SLASHES)  # `//` would begin the name of a host

    def cookie_path(self, path: bytes) -> bytes:
        """Return the ``Path`` of a cookie of the origin as clients know it."""
        if path[:1] != b"/":
            return path  # as if there were none (RFC 6265, section 5.2.4)
        if self.origin and _begins(self.origin, path.rstrip(b"/")):
            return self.public or b"/"  # all that clients see of the origin
        if not _begins(path, self.origin) or (not self.origin and _begins(path, self.public)):
            return path
        if path == b"/":
            return self.public
        return self.public + path[len(self.origin) :]


def _begins(path: bytes, prefix: bytes) -> bool:
    """Whether the path's first segments are those of the prefix."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in _BOUNDARIES


def _without_dots(path: bytes) -> bytes:
    """Return an absolute path as a client reads it (RFC 3986, section 5.2.4)."""
    kept: list[bytes] = []
    plain = b""
    for segment in path.split(b"/")[1:]:
        plain = _ESCAPED_DOT.sub(b".", segment)
        if plain == b"..":
            if kept:
                kept.pop()
        elif plain != b".":
            kept.append(segment)
    if plain in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


class Rewriter:
    """Rewrites what the responses of one target say about where they come from."""

    def __init__(
        self,
        target_scheme: bytes,
        target_host: bytes,
        target_port: int,
        prefixes: Prefixes | None = None,
    ) -> None:
        """``target_host`` is a host name or an IP address, IPv6 with or without brackets.

        Empty where it is not known: then only paths are rewritten.
        """
        self._prefixes = prefixes
        host = target_host.lower()
        if b":" in host and not host.startswith(b"["):
            host = b"[" + host + b"]"
        port = b":0*%d" % target_port
        if target_port == _DEFAULT_PORTS.get(target_scheme):
            port = b"(?::0*%d|:)?" % target_port
        self._origin = re.compile(
            rb"(%b:)?//%b%b(?=[/?#]|[ \t]*\Z)" % (re.escape(target_scheme), re.escape(host), port)
            if host
            else rb"(?!)(x)",
            re.IGNORECASE,
        )
        self._host = host
        labels = [] if _is_address(host) else host.split(b".")
        self._parents = frozenset(b".".join(labels[i:]) for i in range(1, len(labels)))

    def rewrite(
        self, headers: Headers, public_scheme: bytes, public_host: bytes, remove_csps: bool
    ) -> Headers:
        """Return the fields as the client should see them; the same list if nothing changes.

        ``public_host`` is the authority of the public URL, host[:port]. Where it is none (empty, or
        with signs that no host has) paths alone are rewritten. ``remove_csps`` takes the content
        security policies away, which may name the target in ways that no rewriting finds.
        """
        if concerns({lower(name) for name, _ in headers}, remove_csps):
            return self._rewrite(headers, public_scheme, public_host, remove_csps)
        return headers

    def _rewrite(self, headers: Headers, scheme: bytes, authority: bytes, csps: bool) -> Headers:
        public = _AUTHORITY.fullmatch(authority)
        if public is None:
            authority = b""
        rewritable = public is not None or self._prefixes is not None
        result: Headers = []
        changed = False
        for field in headers:
            name, value = field
            key = name.lower()
            if csps and key in _CSPS:
                changed = True
                continue
            if rewritable and key in _REWRITTEN:
                if key in _REFERENCES:
                    new = self._reference(value, scheme, authority)
                elif key == b"set-cookie":
                    new = self._cookie(value, b"" if public is None else public[1].lower())
                elif key == b"link":
                    new = self._link(value, scheme, authority)
                else:
                    new = self._refresh(value, scheme, authority)
                if new != value:
                    changed = True
                    field = (name, new)
            result.append(field)
        return result if changed else headers

    def _reference(self, value: bytes, scheme: bytes, authority: bytes) -> bytes:
        match = self._origin.match(value) if authority else None
        prefixes = self._prefixes
        if match is None:
            if prefixes is None or value[:1] != b"/" or value[1:2] == b"/":
                return value
            return prefixes.reference(value)
        rest = value[match.end() :]
        if prefixes is not None:
            rest = prefixes.reference(rest if rest[:1] == b"/" else b"/" + rest)
        return (scheme + b"://" if match[1] else b"//") + authority + rest

    def _refresh(self, value: bytes, scheme: bytes, authority: bytes) -> bytes:
        match = _REFRESH.match(value)
        if match is None:
            return value
        start = match.end()
        end = value.find(match[1], start) if match[1] else -1
        if end < 0:
            end = len(value)
        return value[:start] + self._reference(value[start:end], scheme, authority) + value[end:]

    def _link(self, value: bytes, scheme: bytes, authority: bytes) -> bytes:
        pieces: list[bytes] = []
        done = 0
        for match in _LINK.finditer(value):
            if match[1]:
                start, end = match.span(1)
                pieces += (value[done:start], self._reference(match[1], scheme, authority))
                done = end
        return b"".join(pieces) + value[done:]

    def _cookie(self, value: bytes, public_host: bytes) -> bytes:
        """Rewrite ``Domain`` and ``Path`` (RFC 6265, section 5.2), never the name or the value.

        The target's own name becomes the public one; where that can have no subdomains (an address,
        a name without a dot) the attribute goes, which leaves the cookie to this host. A parent
        domain of the target goes too, unless the public host lies in it: the client would refuse
        the cookie.
        """
        pair = _COOKIE.match(value)
        end = pair.end() if pair is not None else 0
        prefixes = self._prefixes
        if value.lstrip(b" \t")[: len(_HOST_COOKIE)].lower() == _HOST_COOKIE:
            prefixes = None
        kept = []
        for attribute in value[end:].split(b";"):
            name, _, text = attribute.partition(b"=")
            if name.strip(b" \t").lower() == b"domain":
                domain = text.strip(b' \t"').removeprefix(b".").lower()
                if domain == self._host:
                    if b"." not in public_host or _is_address(public_host):
                        continue
                    attribute = name + b"=" + public_host
                elif domain in self._parents and not _within(public_host, domain):
                    continue
            elif prefixes is not None and name.strip(b" \t").lower() == b"path":
                path = text.strip(b" \t")
                public_path = prefixes.cookie_path(path)
                if public_path != path:
                    attribute = name + b"=" + public_path
            kept.append(attribute)
        return value[:end] + b";".join(kept)


def _within(host: bytes, domain: bytes) -> bool:
    return host == domain or host.endswith(b"." + domain)


def _is_address(host: bytes) -> bool:
    try:
        canonical(host.decode("latin-1").strip("[]"))
    except ValueError:
        return False
    return True
