"""In responses, the target's origin becomes the public one wherever a header field names it.

An origin is named by a URI-reference that begins with exactly this scheme, host and port (RFC 6454;
scheme and host in any case, the default port written or not), or with ``//`` and the same authority
(RFC 3986, section 4.2). Everything else merely looks alike and stays: relative references, the
origin as text in a path or query, longer host names, user information before the host, and the
other scheme on the same host, which is another origin that the public one does not stand for.
"""

import re

from sockgw.http.networks import canonical
from sockgw.protocol.heads import Headers

__all__ = ["Rewriter"]

_DEFAULT_PORTS = {b"http": 80, b"https": 443}

_CSPS = frozenset((b"content-security-policy", b"content-security-policy-report-only"))
_REFERENCES = frozenset((b"location", b"content-location"))
_REWRITTEN = _REFERENCES | {b"refresh", b"link", b"set-cookie"}
_REWRITTEN_OR_REMOVED = _REWRITTEN | _CSPS

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


class Rewriter:
    """Rewrites what the responses of one target say about where they come from."""

    def __init__(self, target_scheme: bytes, target_host: bytes, target_port: int) -> None:
        """``target_host`` is a host name or an IP address, IPv6 with or without brackets."""
        host = target_host.lower()
        if b":" in host and not host.startswith(b"["):
            host = b"[" + host + b"]"
        port = b":0*%d" % target_port
        if target_port == _DEFAULT_PORTS.get(target_scheme):
            port = b"(?::0*%d|:)?" % target_port
        self._origin = re.compile(
            rb"(%b:)?//%b%b(?=[/?#]|[ \t]*\Z)" % (re.escape(target_scheme), re.escape(host), port),
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
        with signs that no host has) nothing is rewritten. ``remove_csps`` takes the content
        security policies away, which may name the target in ways that no rewriting finds.
        """
        wanted = _REWRITTEN_OR_REMOVED if remove_csps else _REWRITTEN
        for name, _ in headers:
            if name.lower() in wanted:
                return self._rewrite(headers, public_scheme, public_host, remove_csps)
        return headers

    def _rewrite(self, headers: Headers, scheme: bytes, authority: bytes, csps: bool) -> Headers:
        public = _AUTHORITY.fullmatch(authority)
        result: Headers = []
        changed = False
        for field in headers:
            name, value = field
            key = name.lower()
            if csps and key in _CSPS:
                changed = True
                continue
            if public is not None and key in _REWRITTEN:
                if key in _REFERENCES:
                    new = self._reference(value, scheme, authority)
                elif key == b"set-cookie":
                    new = self._cookie(value, public[1].lower())
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
        match = self._origin.match(value)
        if match is None:
            return value
        return (scheme + b"://" if match[1] else b"//") + authority + value[match.end() :]

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
        """Rewrite ``Domain`` (RFC 6265, section 5.2.3), never the cookie's name or value.

        The target's own name becomes the public one; where that can have no subdomains (an address,
        a name without a dot) the attribute goes, which leaves the cookie to this host. A parent
        domain of the target goes too, unless the public host lies in it: the client would refuse
        the cookie.
        """
        pair = _COOKIE.match(value)
        end = pair.end() if pair is not None else 0
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
