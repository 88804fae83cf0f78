"""A machine's network of the test's own: a namespace with an address, routes and a resolver; scripts that run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from enginekit import Person

HOST4, HOST6 = "10.77.0.2", "fd77::2"
"""Addresses of the machine's that pasta does not give to the container."""

# Run as root in fresh namespaces, then as the person: nothing of the machine's network is touched.
_MACHINE = f"""
set -e
mount --make-rprivate /
mount --bind "$1" /etc/resolv.conf
shift
ip link set lo up
ip link add outside type veth peer name other
ip address add 10.77.0.1/24 dev outside
ip -6 address add fd77::1/64 dev outside nodad
ip address add {HOST4}/32 dev other
ip -6 address add {HOST6}/128 dev other nodad
ip link set outside up
ip link set other up
ip route add default via 10.77.0.254
ip -6 route add default via fd77::fe
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start
exec "$@"
"""

PRELUDE = f"""
import os, socket, subprocess, sys, threading, time, urllib.request
import knarr
from knarr.base.errors import KnarrError
HOST4, HOST6 = {HOST4!r}, {HOST6!r}
print(os.stat("/proc/self/ns/net").st_ino, flush=True)

def serve(address, text=b"from here", port=0):
    "A server that sends a text to whoever calls, by TCP, and answers datagrams with it; its port."
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp, udp = socket.socket(family), socket.socket(family, socket.SOCK_DGRAM)
    tcp.bind((address, port))
    tcp.listen()
    udp.bind((address, tcp.getsockname()[1]))
    def stream(other):
        try:
            other.sendall(text)
            other.recv(1)
        except OSError:
            pass
        other.close()
    def streams():
        while True:
            threading.Thread(target=stream, args=(tcp.accept()[0],), daemon=True).start()
    def datagrams():
        while True:
            udp.sendto(text, udp.recvfrom(1000)[1])
    for each in (streams, datagrams):
        threading.Thread(target=each, daemon=True).start()
    return tcp.getsockname()[1]

def until(action, seconds=10):
    "What an action gives as soon as it gives something, whatever it raises before."
    end = time.monotonic() + seconds
    while True:
        try:
            got = action()
        except OSError:
            got = None
        if got or time.monotonic() > end:
            return got
        time.sleep(0.05)

def get(port, address="127.0.0.1"):
    return urllib.request.urlopen(f"http://{{address}}:{{port}}/", timeout=3).read()
"""


def caller(network: str) -> str:
    """A shell function ``call ADDRESS PORT`` that says what the server of PRELUDE says.

    Streams through pasta of March 2023 (Debian 12's) lose and repeat bytes under Linux 6.18, called by hand too: of it
    is only asked that there is a way.
    """
    tries, pattern = ("1 2 3 4 5 6 7 8", '"from here"*') if network == "pasta" else ("1", '"from here"')
    return f"""
call() {{
    for i in {tries}; do
        case "$(busybox timeout 1 busybox nc $1 $2 </dev/null 2>/dev/null)" in {pattern}) echo "from here"; return ;; esac
    done
}}
"""


def need(program: str) -> None:
    """Skip where a program is not installed, or a namespace like this cannot be made."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    if os.geteuid():
        pytest.skip("needs root: a network namespace with a network of its own")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun")


def on_own_machine(person: Person) -> Person:
    """The person, on a machine with a network of its own."""
    resolvers = person.folder / "resolv.conf"
    resolvers.write_text(f"search some.test\nnameserver {HOST4}\noptions timeout:1\n")
    person.prefix = ["unshare", "-n", "-m", "sh", "-c", _MACHINE, "sh", str(resolvers), *person.prefix]
    return person


ECHO = """
#include <arpa/inet.h>
#include <sys/socket.h>
int main(void)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(81)}, other;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    char data[1000];
    if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
        return 1;
    for (;;) {
        socklen_t size = sizeof other;
        long got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&other, &size);
        sendto(fd, data, got, 0, (struct sockaddr *)&other, size);
    }
}
"""


def echo_server(folder: Path) -> Path:
    """A program that answers each datagram at port 81 with itself."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for a server of datagrams")
    program = folder / "echo"
    (folder / "echo.c").write_text(ECHO)
    subprocess.run([compiler, "-static", "-o", str(program), str(folder / "echo.c")], check=True)
    return program


def does(person: Person, script: str, timeout: float = 60) -> str:
    """Run a script there; what it prints. Nothing that is in its network namespace may be left."""
    done = person.python_script(PRELUDE + script, timeout=timeout)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    inode, _, said = done.stdout.decode().partition("\n")
    end = time.monotonic() + 3
    while (left := in_network(int(inode))) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == [], left
    return said


def in_network(inode: int) -> list[str]:
    """The command lines of the processes in a network namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "ns/net").stat().st_ino == inode:
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                pass  # it has ended
    return [each for each in found if each]


def alive(pid: int) -> bool:
    """Whether a process of that number is there and no zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")
