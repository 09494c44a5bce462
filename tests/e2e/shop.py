"""A WSGI application that was written for the root of a host, and one page that knows its prefix.

Its answers say who it is, and what it was asked.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

Start = Callable[[str, list[tuple[str, str]]], object]


def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    signed_in = "sid=secret" in environ.get("HTTP_COOKIE", "")
    if path == "/login":
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return _redirect(
            start, "/account?from=login", ("Set-Cookie", "sid=secret; Path=/; HttpOnly")
        )
    if path == "/account" and not signed_in:
        return _redirect(start, "/login")
    if path == "/logout":
        # As some frameworks do: the whole URL, with the host and scheme that they see.
        url = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}/"
        return _redirect(start, url, ("Set-Cookie", "sid=; Path=/; Max-Age=0"))
    if path == "/aware":
        return _redirect(start, environ.get("HTTP_X_FORWARDED_PREFIX", "") + "/account")
    if path == "/deep/relative":
        return _redirect(start, "../account")
    body = json.dumps(
        {
            "app": "shop",
            "path": environ["RAW_URI"],
            "host": environ["HTTP_HOST"],
            "prefix": environ.get("HTTP_X_FORWARDED_PREFIX"),
            "cookie": environ.get("HTTP_COOKIE"),
        }
    ).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _redirect(start: Start, where: str, *fields: tuple[str, str]) -> list[bytes]:
    start("302 Found", [("Location", where), ("Content-Length", "0"), *fields])
    return []
