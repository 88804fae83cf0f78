"""A guest in a container's network: a real veth pair, real streams both ways, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from behind import ISOLATION, need
from blackbox import left_behind, needs_busybox, needs_root
from wired import CALL, IN4, IN6, NAMES, OUT4, OUT6, STREAMS, Link, ip, link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blackbox import Bundle, Runtime

pytestmark = [
    needs_busybox,
    needs_root,
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]
BYTES = {"kernel": 8 << 20, "vm": 1 << 20}


@pytest.fixture(params=["kernel", "vm"])
def guest(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


@pytest.fixture
def wired() -> Iterator[Link]:
    with link() as made:
        yield made


def networked(bundle: Bundle, kind: str, path: str) -> Bundle:
    """The bundle in a guest and in that network namespace."""
    bundle.config["annotations"] = {ISOLATION: kind}
    spaces = [each for each in bundle.config["linux"]["namespaces"] if each["type"] != "network"]
    bundle.config["linux"]["namespaces"] = [*spaces, {"type": "network", "path": path}]
    for kind_of in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind_of] += ["CAP_NET_RAW"]
    for applet in ("ip", "nc", "ping", "nslookup", "crc32"):
        (bundle.rootfs / "bin" / applet).symlink_to("busybox")
    return bundle


def streams(runtime: Runtime, id: str, wired: Link, address: str, count: int) -> None:
    """A stream each way, of which the other side tells the digest."""
    sending = count // 65536
    server = wired.python(STREAMS, address, str(count))
    with server:
        runtime.ok("exec", id, "sh", "-c", f"dd if=/dev/zero bs=64k count={sending} 2>/dev/null | nc {address} 7000")
        assert server.stdout is not None
        assert int(server.stdout.readline()) == zlib.crc32(bytes(sending * 65536))
        got = runtime.ok("exec", id, "sh", "-c", f"nc {address} 7000 </dev/null | crc32")
        assert int(got.split()[0], 16) == zlib.crc32(bytes(range(256)) * (count // 256))


def test_streams_datagrams_and_both_families(runtime: Runtime, bundle: Bundle, guest: str, wired: Link) -> None:
    id = runtime.new_id()
    mac = json.loads(ip("-n", wired.inner, "-j", "link", "show", "eth0"))[0]["address"]
    path = networked(bundle, guest, wired.path).write("sleep", "1000")
    runtime.ok("create", "-b", path, id)
    assert IN4 in ip("-n", wired.inner, "address")  # it is the guest's from its start on
    runtime.ok("start", id)
    assert "inet" not in ip("-n", wired.inner, "address", "show", "eth0")
    said = runtime.ok("exec", id, "sh", "-c", "ip address; ip route; ip -6 route")
    assert f"link/ether {mac}" in said
    assert f"inet {IN4}/24" in said
    assert f"inet6 {IN6}/64" in said
    assert f"default via {OUT4} dev eth0" in said
    streams(runtime, id, wired, OUT4, BYTES[guest])
    streams(runtime, id, wired, OUT6, BYTES[guest] // 4)
    with wired.python(NAMES, OUT4, "53") as names:
        said = runtime.ok("exec", id, "nslookup", "-type=a", "some.test", OUT4)
        names.kill()
    assert "192.0.2.77" in said
    served = runtime.popen("exec", id, "nc", "-l", "-p", "7002", "-e", "cat")
    with served, wired.python(CALL, IN4) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "from outside\n"
    runtime.ok("kill", id, "KILL")
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


def test_a_smaller_mtu_and_four_devices(runtime: Runtime, bundle: Bundle) -> None:
    need("kernel")
    with link(mtu=1280, devices=4) as wired:
        id = runtime.new_id()
        words = f"ip link; ping -c 1 -s 1252 {OUT4}; ping -c 1 -s 3000 {OUT6}"
        done = runtime("run", "-b", networked(bundle, "kernel", wired.path).write("sh", "-c", words), id)
        assert done.stdout.count("mtu 1280") == 4, done
        assert done.stdout.count("1 packets received") == 2, done
    with link(devices=5) as wired:
        id = runtime.new_id()
        path = bundle.path
        bundle.config["linux"]["namespaces"][-1]["path"] = wired.path
        done = runtime("run", "-b", bundle.write("true"), id)
        assert "take over 5 network devices: the guest has 4" in done.stderr, (done, path)
        assert left_behind(runtime, id, 5) == []


def test_a_device_put_there_by_a_hook_and_one_put_there_before_the_start(runtime: Runtime, bundle: Bundle) -> None:
    """As Docker does it, and as it does with newer versions: the namespace is found by the container's pid."""
    need("kernel")
    with link(devices=2) as wired:
        hook = bundle.path / "hook"
        hook.write_text(
            "#!/bin/sh\npid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/')\n"
            f"ip -n {wired.inner} link set eth0 netns $pid && nsenter -t $pid -n ip link set eth0 up\n"
            f"nsenter -t $pid -n ip address add {IN4}/24 dev eth0\n"
        )
        hook.chmod(0o755)
        words = f"ip address; ping -c 1 {OUT4}"
        networked(bundle, "kernel", "").config["hooks"] = {"createRuntime": [{"path": str(hook), "args": ["hook"]}]}
        bundle.config["linux"]["namespaces"][-1] = {"type": "network"}
        bundle.config["hooks"]["createRuntime"][0]["env"] = [f"PATH={os.environ['PATH']}"]
        id = runtime.new_id()
        with (bundle.path / "out").open("w+") as out:
            made = runtime("create", "-b", bundle.write("sh", "-c", words), id, stdout=out)
            assert made.returncode == 0, made
            pid = str(runtime.state(id)["pid"])
            ip("-n", wired.inner, "link", "set", "eth1", "netns", pid)
            runtime.ok("start", id)
            runtime.wait_for(id, "stopped")
            out.seek(0)
            said = out.read()
        assert f"inet {IN4}/24" in said
        assert ": eth1:" in said
        assert "1 packets received" in said


@pytest.mark.parametrize("how", ["create", "run"])
def test_the_hosts_network_and_what_is_no_ethernet_is_refused(runtime: Runtime, bundle: Bundle, how: str) -> None:
    need("kernel")
    id = runtime.new_id()
    done = runtime(how, "-b", networked(bundle, "kernel", "/proc/self/ns/net").write("true"), id)
    number = len(bundle.config["linux"]["namespaces"]) - 1
    assert done.returncode != 0
    assert f"config.json /linux/namespaces/{number}: take over the container's network: it is the host's" in done.stderr
    assert left_behind(runtime, id, 5) == []
    with link() as wired:
        ip("-n", wired.inner, "tuntap", "add", "dev", "tun7", "mode", "tun")
        bundle.config["linux"]["namespaces"][-1]["path"] = wired.path
        id = runtime.new_id()
        done = runtime(how, "-b", bundle.write("true"), id)
        assert "take over the network device tun7: it is no Ethernet device" in done.stderr, done
        assert left_behind(runtime, id, 5) == []
        assert IN4 in ip("-n", wired.inner, "address")  # nothing was taken


def test_a_network_that_somebody_else_is_in_is_left_to_him(runtime: Runtime, bundle: Bundle, wired: Link) -> None:
    need("kernel")
    other = subprocess.Popen(["ip", "netns", "exec", wired.inner, "sleep", "100"])
    try:
        id = runtime.new_id()
        done = runtime("run", "-b", networked(bundle, "kernel", wired.path).write("true"), id)
        assert f"process {other.pid} is in it too, and would be left without" in done.stderr, done
        assert IN4 in ip("-n", wired.inner, "address")
    finally:
        other.kill()
        other.wait()


def test_what_cannot_be_had_at_the_start_is_said_there(runtime: Runtime, bundle: Bundle, wired: Link) -> None:
    need("kernel")
    id = runtime.new_id()
    runtime.ok("create", "-b", networked(bundle, "kernel", wired.path).write("true"), id)
    ip("-n", wired.inner, "tuntap", "add", "dev", "tun7", "mode", "tun")
    done = runtime("start", id)
    assert done.returncode != 0
    assert "tun7: it is no Ethernet device" in done.stderr
    assert "it is no Ethernet device" in runtime.wait_for(id, "stopped")["reason"]
    runtime.ok("delete", id)
    assert left_behind(runtime, id, 5) == []


def test_a_killed_monitor_takes_its_wires_along(runtime: Runtime, bundle: Bundle, wired: Link) -> None:
    need("kernel")
    id = runtime.new_id()
    runtime.ok("run", "-d", "-b", networked(bundle, "kernel", wired.path).write("ping", OUT4), id)
    watching = ["ip", "netns", "exec", wired.inner, "cat", "/proc/net/packet"]
    assert len(subprocess.run(watching, capture_output=True, text=True, check=True).stdout.splitlines()) == 2
    os.kill(int(runtime.state(id)["pid"]) or sys.maxsize, signal.SIGKILL)
    runtime.wait_for(id, "stopped")
    runtime.ok("delete", id)
    deadline = time.monotonic() + 5
    while len(subprocess.run(watching, capture_output=True, text=True, check=True).stdout.splitlines()) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert left_behind(runtime, id, 5) == []


HOSTILE = """
import os, socket, subprocess, sys, time
from knarr.isolation import nic
from knarr.isolation.wire import Wire, begin
run = lambda *words: subprocess.run(words, check=True)
run("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
run("ip", "link", "set", "one", "up")
run("ip", "link", "set", "two", "up")
ours, theirs = nic.pair()
begin([Wire("one", ours)])
other = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
other.bind(("two", 0x88B5))
other.settimeout(0.5)
def frame(text, size=60):
    return bytes(12) + b"\\x88\\xb5" + text.ljust(size - 14, b".")
def send(data):
    try:
        os.write(theirs, data)
    except BlockingIOError:
        pass
for size in (0, 1, 13, 14, 1515, 9000, 60000):
    send(frame(b"odd", size)[:size])
for number in range(20000):
    send(frame(b"flood"))
def until(text):
    # send it until it comes out, as whoever is on a network has to; gives the longest frame that came
    longest, deadline = 0, time.monotonic() + 20
    while time.monotonic() < deadline:
        send(frame(text))
        try:
            while True:
                got = other.recv(70000)
                longest = max(longest, len(got))
                if got[14:].startswith(text):
                    return longest
        except TimeoutError:
            pass
    raise AssertionError(text)
longest = until(b"good")
assert longest <= 1514, longest
# nobody reads on the guest's side: what comes is lost, and what goes still goes
for number in range(20000):
    other.send(frame(b"flood"))
until(b"once more")
# the guest's end is closed: nothing turns round and round
os.close(theirs)
time.sleep(0.3)
before = time.process_time()
time.sleep(0.5)
assert time.process_time() - before < 0.1
print("held")
"""


def test_frames_of_a_hostile_guest() -> None:
    """Odd sizes, floods, a side that reads nothing: bounded, dropped, and the wire goes on."""
    command = ["unshare", "-n", sys.executable, "-c", HOSTILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "held\n", done.stderr
