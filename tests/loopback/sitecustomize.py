"""Refuse, in this process and every Python child, each connection that does not stay on this machine.

Found by children because tests/conftest.py puts this folder first in PYTHONPATH. Refusals are written down, so that one
that somebody swallows still fails the suite.
"""

import ipaddress
import os
import sys
from pathlib import Path

LOG = "HEARKEN_REFUSED_CONNECTIONS"


def is_local(host: object) -> bool:
    """Whether a host is this machine: no name look-up is made for it."""
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        name = host.decode() if isinstance(host, bytes) else str(host)
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def guard(event: str, arguments: tuple) -> None:
    """Audit hook: `socket.connect`, `socket.sendto` and `socket.getaddrinfo` to elsewhere raise."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if not is_local(host):
        log = os.environ.get(LOG)
        if log:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{event} {host!r} by {' '.join(sys.argv[:3])}\n")
        raise ConnectionRefusedError(f"{event} to {host!r}: the suite stays on this machine")


sys.addaudithook(guard)
