"""The port that a studio listens on: taken, or told who holds it."""

from __future__ import annotations

import errno
import socket

from regraft.studio.limits import RefusedError


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on a port; 0 takes any that is free.

    Raises:
        RefusedError: another program listens there, which is named, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise RefusedError(
                f"port {port} is taken by {holder(port)}: stop that, or name another with --port"
            ) from error
        raise RefusedError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    return made


LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a browser on it calls it by."""
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that mean every address of this machine."""


def in_address(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def names_of(host: str) -> tuple[str, ...]:
    """The names that a browser may call a studio by which listens on `host`: where that is every address of
    this machine, each of them and its name."""
    import psutil

    own: list[str] = [host]
    if host in EVERYWHERE:
        own = [socket.gethostname(), socket.getfqdn()]
        for addresses in psutil.net_if_addrs().values():
            own += [a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)]
    return tuple(dict.fromkeys((*LOOPBACK, *(in_address(one) for one in own))))


def holder(port: int) -> str:
    """Who listens on a port, as far as this system says it to this user."""
    import psutil

    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return "another program"
    for one in found:
        if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
            try:
                words = psutil.Process(one.pid).cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                words = []
            return f"process {one.pid}" + (f" ({' '.join(words)[:120]})" if words else "")
    return "another program"
