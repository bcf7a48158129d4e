"""The guard that keeps the suite on this machine really guards, here and in child processes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ELSEWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): nobody is there


def test_a_connection_to_elsewhere_is_refused_here(refused: Path) -> None:
    before = refused.read_text() if refused.exists() else ""
    with pytest.raises(ConnectionRefusedError, match="stays on this machine"), socket.socket() as sock:
        sock.connect((ELSEWHERE, 80))
    assert ELSEWHERE in refused.read_text()
    refused.write_text(before)


def test_a_connection_to_elsewhere_is_refused_in_a_child(refused: Path) -> None:
    before = refused.read_text() if refused.exists() else ""
    code = f"import socket; socket.getaddrinfo('{ELSEWHERE}', 80)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "stays on this machine" in result.stderr
    assert "getaddrinfo" in refused.read_text()
    refused.write_text(before)


def test_loopback_is_allowed() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
