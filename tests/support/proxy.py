"""A real HTTP proxy, tinyproxy, as a process on a port of this machine; and a certificate for what lies behind it."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BEHIND = "0.0.0.0"
"""A host that is this machine, and that nothing takes for it: what is known to be local is never asked of a proxy."""


class TinyProxy(NamedTuple):
    """A running proxy: `port` on 127.0.0.1, and the file in which it logs each request."""

    port: int
    log: Path

    @property
    def asked(self) -> list[str]:
        """The request lines that it was sent, CONNECT and host."""
        lines = self.log.read_text().splitlines()
        return [line.partition("): ")[2] for line in lines if "Request (file descriptor" in line]


@contextlib.contextmanager
def open_proxy(folder: Path, *, user: str | None = None) -> Iterator[TinyProxy]:
    """Run it; with `user` ("name password") it lets in nobody else. Leaving ends it."""
    for _ in range(5):
        port = _free_port()
        lines = [
            f"Port {port}",
            "Listen 127.0.0.1",
            "Timeout 60",
            f'LogFile "{folder / "proxy.log"}"',
            "LogLevel Connect",
        ]
        lines += [f"BasicAuth {user}"] if user else []
        (folder / "proxy.conf").write_text("\n".join([*lines, ""]))
        with subprocess.Popen(
            ["tinyproxy", "-d", "-c", str(folder / "proxy.conf")], stdout=subprocess.DEVNULL
        ) as process:
            try:
                if _answers(port, process):
                    yield TinyProxy(port, folder / "proxy.log")
                    return
            finally:
                process.kill()
    raise AssertionError("tinyproxy does not start")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until it listens. False: it has ended, as where another process took the port meanwhile."""
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def make_certificate(folder: Path, name: str) -> Path:
    """A certificate that signs itself for this subject alternative name (DNS:x, IP:y), and its key, in one file."""
    path = folder / "both.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command = [*make.split(), "-addext", f"subjectAltName={name}", "-keyout", "-", "-out", "-"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path
