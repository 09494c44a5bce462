"""What sockgw's speed is set against beside its peers: no way at all, and one hop of nginx."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contestants import Address, Contestant, Room, Route, version_of
from bench.origins import nginx_settings

__all__ = ["NginxHop", "OriginAlone"]


class OriginAlone(Contestant):
    """The origin as clients would reach it if it were public."""

    name = "origin alone"

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        return {name: Route(address) for name, address in origins.items()}


_HOP = """\
{settings}
    proxy_http_version 1.1;
    # Bodies are passed on as they come: on disk they would be measured instead.
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_read_timeout 1h;
    map $http_upgrade $upgrading {{ default upgrade; "" ""; }}
    proxy_set_header Connection $upgrading;
    proxy_set_header Upgrade $http_upgrade;
{servers}
}}
"""

_SERVER = """\
    upstream {name} {{ server {origin}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen {address} backlog=4096;
        location / {{ proxy_pass http://{name}; }}
    }}
"""


class NginxHop(Contestant):
    """nginx as a plain reverse proxy: one process, one hop, no tunnel: the practical limit.

    Connections to the origin are kept. Buffers have nginx's own default sizes.
    """

    name = "nginx one hop"
    needs = ("nginx",)

    def versions(self) -> dict[str, str]:
        return {"nginx": version_of(self.program("nginx"), "-v")}

    def launch(self, room: Room, origins: Mapping[str, Address]) -> Mapping[str, Route]:
        routes = {name: Route(Address(room.port())) for name in origins}
        servers = "".join(
            _SERVER.format(name=name, origin=origin, address=routes[name].address)
            for name, origin in origins.items()
        )
        text = _HOP.format(settings=nginx_settings(), servers=servers)
        configuration = room.write("nginx.conf", text)
        nginx = self.program("nginx")
        room.start("proxy", [nginx, "-e", "stderr", "-p", room.directory, "-c", configuration])
        return routes
