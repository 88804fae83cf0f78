"""Two network namespaces and a veth pair between them, as an engine would make it; programs that talk over it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT4, IN4, OUT6, IN6 = "10.79.0.1", "10.79.0.2", "fd79::1", "fd79::2"


class Link:
    """``outer`` and ``inner`` are the namespaces; the latter has eth0, and is the container's."""

    def __init__(self) -> None:
        name = f"kn{uuid.uuid4().hex[:8]}"
        self.outer, self.inner = f"{name}o", f"{name}i"
        self.path = f"/run/netns/{self.inner}"

    def make(self, *, mtu: int = 1500, devices: int = 1) -> None:
        for name in (self.outer, self.inner):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number in range(devices):
            ip("-n", self.outer, "link", "add", f"v{number}", "type", "veth", "peer", "name", f"eth{number}")
            ip("-n", self.outer, "link", "set", f"eth{number}", "netns", self.inner)
            for where, device in ((self.outer, f"v{number}"), (self.inner, f"eth{number}")):
                ip("-n", where, "link", "set", device, "mtu", str(mtu), "up")
        self.address()

    def address(self) -> None:
        """Give the first pair its addresses."""
        for where, device, four, six in ((self.outer, "v0", OUT4, OUT6), (self.inner, "eth0", IN4, IN6)):
            ip("-n", where, "address", "replace", f"{four}/24", "dev", device)
            ip("-n", where, "address", "replace", f"{six}/64", "dev", device, "nodad")
        ip("-n", self.inner, "route", "replace", "default", "via", OUT4)

    def remove(self) -> None:
        for name in (self.outer, self.inner):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def python(self, text: str, *words: str) -> subprocess.Popen[str]:
        """A program beside the container; it has said ``up`` on return."""
        command = ["ip", "netns", "exec", self.outer, sys.executable, "-I", "-c", text, *words]
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        return started


def ip(*words: str) -> str:
    """The program ip."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@contextmanager
def link(*, mtu: int = 1500, devices: int = 1) -> Iterator[Link]:
    made = Link()
    try:
        made.make(mtu=mtu, devices=devices)
        yield made
    finally:
        made.remove()


STREAMS = """
import zlib, socket, sys
server = socket.create_server((sys.argv[1], 7000), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.settimeout(60)
print("up", flush=True)
count = int(sys.argv[2])
other, _ = server.accept()
other.settimeout(60)
found = 0
while piece := other.recv(1 << 18):
    found = zlib.crc32(piece, found)
print(found, flush=True)
other.close()
other, _ = server.accept()
other.settimeout(60)
other.sendall(bytes(range(256)) * (count // 256))
other.close()
"""
"""Takes a stream and says its CRC-32, then sends one: argv is an address and how many bytes."""

NAMES = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
server.settimeout(60)
print("up", flush=True)
while True:
    data, who = server.recvfrom(4096)
    kind = data[12:].partition(b"\\0")[2][:2]
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x09\\0\\4" + bytes((192, 0, 2, 77)) if kind == b"\\0\\1" else b""
    head = data[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if answer else b"\\0\\0") + bytes(4)
    server.sendto(head + data[12:] + answer, who)
"""
"""Answers each question for an A record with 192.0.2.77 (RFC 1035): argv is an address and a port."""

CALL = """
import socket, sys, time
print("up", flush=True)
for _ in range(100):
    try:
        other = socket.create_connection((sys.argv[1], 7002), 10)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
other.sendall(b"from outside")
other.shutdown(socket.SHUT_WR)
print(other.recv(100).decode(), flush=True)
"""
"""Connects to the container and says what comes back."""

PAGE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"a page")
    def log_message(self, *words):
        pass
server = http.server.HTTPServer((sys.argv[1], 7080), Handler)
print("up", flush=True)
server.serve_forever()
"""
"""Serves one page: argv is an address."""
