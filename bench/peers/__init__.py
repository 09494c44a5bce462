"""Programs that others take for the same purpose, one small file each."""

from bench.contestants import Contestant
from bench.peers.bore import Bore
from bench.peers.chisel import Chisel
from bench.peers.cloudflared import Cloudflared
from bench.peers.frp import Frp
from bench.peers.openssh import OpenSsh
from bench.peers.piko import Piko
from bench.peers.rathole import Rathole, RatholeNoise
from bench.peers.socketgateway import SocketGateway
from bench.peers.wstunnel import Wstunnel

__all__ = ["PEERS"]

PEERS: tuple[type[Contestant], ...] = (
    SocketGateway,
    OpenSsh,
    Chisel,
    Frp,
    Rathole,
    RatholeNoise,
    Wstunnel,
    Piko,
    Bore,
    Cloudflared,
)
