"""Programs that others take for the same purpose, one small file each."""

from bench.contestants import Contestant
from bench.peers.openssh import OpenSsh

__all__ = ["PEERS"]

PEERS: tuple[type[Contestant], ...] = (OpenSsh,)
