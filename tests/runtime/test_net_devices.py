"""linux.netDevices: devices of the host move in, are renamed, keep their addresses, and come back when all fails.

Neither runc 1.1.5 nor crun 1.8.1 has it (runc since 1.4, crun since 1.24).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import Bundle, Runtime, left_behind, needs_busybox, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

IP = shutil.which("ip") or "/sbin/ip"
pytestmark = [
    needs_busybox,
    needs_root,
    pytest.mark.skipif(not os.path.exists(IP), reason="iproute2 is not installed"),
]


def ip(*words: str) -> None:
    subprocess.run([IP, *words], check=True, capture_output=True)


def shown(name: str, *before: str) -> dict[str, Any]:
    """A device as ip shows it; ``before``: how to get to its namespace."""
    done = subprocess.run(
        [*before, IP, "-j", "address", "show", "dev", name], check=True, capture_output=True, text=True
    )
    (found,) = json.loads(done.stdout)
    return found  # type: ignore[no-any-return]


def addresses(device: dict[str, Any]) -> set[tuple[str, int, str]]:
    return {
        (each["local"], each["prefixlen"], each.get("broadcast") or each.get("address") or "")
        for each in device["addr_info"]
        if each["scope"] == "global"
    }


@pytest.fixture
def pairs() -> Iterator[list[str]]:
    """The first ends of two veth pairs, with addresses, up."""
    mark = uuid.uuid4().hex[:6]
    names = [f"ka{mark}", f"kb{mark}"]
    try:
        for number, name in enumerate(names):
            try:
                ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no veth devices here: {error.stderr!r}")
            ip("link", "set", name, "mtu", "1400", "address", f"02:00:00:00:00:0{number + 1}")
            ip("address", "add", f"10.199.{number}.2/24", "broadcast", "10.199.0.255", "dev", name)
            ip("address", "add", f"10.199.{number}.9", "peer", f"10.198.{number}.1/32", "dev", name)
            if os.path.exists("/proc/sys/net/ipv6"):
                ip("address", "add", f"fd00:1:{number}::2/64", "dev", name)
            ip("link", "set", name, "up")
            ip("link", "set", f"{name}p", "up")
        yield names
    finally:
        for name in names:
            subprocess.run([IP, "link", "delete", f"{name}p"], check=False, capture_output=True)


def inside(runtime: Runtime, id: str) -> list[str]:
    return ["nsenter", "--net", "--target", str(runtime.state(id)["pid"])]


def test_they_move_are_renamed_and_keep_their_addresses(ours: Runtime, bundle: Bundle, pairs: list[str]) -> None:
    before = [shown(name) for name in pairs]
    bundle.config["linux"]["netDevices"] = {pairs[0]: {"name": "eth0"}, pairs[1]: {}}
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    for name in pairs:
        with pytest.raises(subprocess.CalledProcessError):
            shown(name)
    for old, name in zip(before, ("eth0", pairs[1]), strict=True):
        new = shown(name, *inside(ours, id))
        assert addresses(new) == addresses(old)
        assert addresses(new)
        assert (new["mtu"], new["address"]) == (old["mtu"], old["address"])
        assert "UP" in new["flags"]
    ours.ok("delete", "--force", id)
    assert left_behind(ours, id) == []


def test_into_a_namespace_that_is_joined(ours: Runtime, bundle: Bundle, pairs: list[str]) -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            pass
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = f"/proc/{holder.pid}/ns/net"
        bundle.config["linux"]["netDevices"] = {pairs[0]: {"name": "eth%d"}}
        ours.ok("run", "--bundle", bundle.write("true"), ours.new_id())
        there = ["nsenter", "--net", "--target", str(holder.pid)]
        assert "UP" in shown("eth0", *there)["flags"]
        assert addresses(shown("eth0", *there))
    finally:
        holder.kill()
        holder.wait()


def test_in_a_user_namespace(ours: Runtime, bundle: Bundle, pairs: list[str]) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    for side in ("uidMappings", "gidMappings"):
        bundle.config["linux"][side] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.config["linux"]["netDevices"] = {pairs[0]: {"name": "eth0"}}
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    assert "UP" in shown("eth0", *inside(ours, id))["flags"]


def comparable(device: dict[str, Any]) -> tuple[Any, ...]:
    return addresses(device), device["mtu"], device["address"], sorted(device["flags"]), device["ifname"]


@pytest.mark.parametrize("failure", ["missing device", "name taken", "program", "hook"])
def test_when_something_fails_they_are_put_back(failure: str, ours: Runtime, bundle: Bundle, pairs: list[str]) -> None:
    before = [comparable(shown(name)) for name in pairs]
    devices = bundle.config["linux"]["netDevices"] = {pairs[0]: {"name": "eth0"}, pairs[1]: {"name": "eth1"}}
    words = ""
    arguments = ["true"]
    if failure == "missing device":
        devices["nosuchdev"] = {}
        words = (
            "config.json /linux/netDevices/nosuchdev: move network device nosuchdev into the container: no such device"
        )
    elif failure == "name taken":
        devices[pairs[1]]["name"] = "lo"
        words = (
            f"config.json /linux/netDevices/{pairs[1]}: move network device {pairs[1]} into the container: file exists"
        )
    elif failure == "program":
        arguments = ["no-such-program"]
        words = "executable file not found"
    else:
        bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
        words = "/hooks/createRuntime/0"
    id = ours.new_id()
    done = ours("create", "--bundle", bundle.write(*arguments), id)
    assert done.returncode == 1, done
    assert words in done.stderr
    assert [comparable(shown(name)) for name in pairs] == before
    assert left_behind(ours, id) == []


def test_the_plan_says_it(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["netDevices"] = {"eth7": {"name": "eth0"}}
    said = ours.ok("plan", bundle.write("true"))
    assert any(
        line.split(None, 1) == ["/linux/netDevices/eth7", "network device eth7 becomes eth0"]
        for line in said.splitlines()
    )
