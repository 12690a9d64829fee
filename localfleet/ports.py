"""Free TCP ports on loopback."""

import random
import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"

# Below Linux's range for outgoing connections (from 32768): no client takes such a port while a
# server restarts on it.
_LOWEST = 15_000
_HIGHEST = 32_000


def free_port() -> int:
    """A port on which nobody listens right now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens right now."""
    with ExitStack() as reserved:
        return [_reserve(reserved, (0,)) for _ in range(count)]


def free_port_pair(distance: int) -> int:
    """A free port whose neighbour `distance` above it is free too."""
    with ExitStack() as reserved:
        return _reserve(reserved, (0, distance))


def _reserve(reserved: ExitStack, offsets: tuple[int, ...]) -> int:
    while True:
        port = random.randrange(_LOWEST, _HIGHEST - max(offsets))
        sockets = [reserved.enter_context(socket.socket()) for _ in offsets]
        try:
            for sock, offset in zip(sockets, offsets, strict=True):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((LOOPBACK, port + offset))
        except OSError:
            continue
        return port
