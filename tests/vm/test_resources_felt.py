"""Limits and policies that CI's machine has no hardware for, as the container feels them: huge pages, RDMA, disks, network
classes, memory nodes. The guest of make test-vm has them all, on cgroup v2 and, booted once more, on v1."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import PURE_V2, Bundle, Runtime, cgroup_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    "KNARR_VM" not in os.environ, reason="changes the machine: in the guest of make test-vm"
)

DISK = Path("/dev/vdb")
PAGES = Path("/proc/sys/vm/nr_hugepages")
VERBS = Path("/dev/infiniband/uverbs0")


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime("knarr", tmp_path)
    yield made
    made.clean()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle")
    (made.rootfs / "bin/fallocate").symlink_to("busybox")
    (made.rootfs / "bin/nc").symlink_to("busybox")
    return made


def running(runtime: Runtime, bundle: Bundle, **resources: Any) -> tuple[str, int]:
    """A container with these limits; its id and pid."""
    bundle.config["linux"]["resources"].update(resources)
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    return id, int(runtime.state(id)["pid"])


def value(pid: int, controller: str, v1: str, v2: str) -> str:
    return (cgroup_of(pid, controller) / (v2 if PURE_V2 else v1)).read_text(encoding="ascii").strip()


def system(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


# -- huge pages --------------------------------------------------------------------------------------------------------


def test_huge_pages(ours: Runtime, bundle: Bundle) -> None:
    before = PAGES.read_text(encoding="ascii")
    PAGES.write_text("8", encoding="ascii")
    try:
        assert int(PAGES.read_text(encoding="ascii")) == 8
        bundle.config["mounts"].append({"destination": "/huge", "type": "hugetlbfs", "source": "huge"})
        id, pid = running(ours, bundle, hugepageLimits=[{"pageSize": "2MB", "limit": 4 << 20}])
        for name in ("", "rsvd."):
            file = f"hugetlb.2MB.{name}"
            assert value(pid, "hugetlb", f"{file}limit_in_bytes", f"{file}max") == str(4 << 20)
        ours.ok("exec", id, "fallocate", "-l", str(4 << 20), "/huge/two")
        done = ours("exec", id, "fallocate", "-l", str(2 << 20), "/huge/third")
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert value(pid, "hugetlb", "hugetlb.2MB.usage_in_bytes", "hugetlb.2MB.current") == str(4 << 20)
        ours.ok("exec", id, "rm", "/huge/two")
        ours.ok("exec", id, "fallocate", "-l", str(2 << 20), "/huge/third")
    finally:
        PAGES.write_text(before, encoding="ascii")


# -- RDMA --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rdma() -> Iterator[str]:
    """A device for RDMA that the kernel makes of a network device."""
    system("modprobe", "-a", "dummy", "rdma_rxe", "ib_uverbs")
    system("ip", "link", "add", "knarr0", "type", "dummy")
    system("ip", "link", "set", "knarr0", "up")
    try:
        system("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "knarr0")
        deadline = time.monotonic() + 10
        while not VERBS.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield "rxe0"
    finally:
        system("ip", "link", "del", "knarr0")


def handle_of(group: Path) -> int:
    """A process of that group asks the device for a context, which is one handle; the errno, or 0.

    It opens the device before it joins, as the container's device rules do not let it.
    """
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            fd = os.open(VERBS, os.O_RDWR | os.O_CLOEXEC)
            (group / "cgroup.procs").write_text("0", encoding="ascii")
            room = ctypes.create_string_buffer(64)
            # struct ib_uverbs_cmd_hdr (GET_CONTEXT, words in, words out), struct ib_uverbs_get_context
            os.write(fd, struct.pack("<IHHQ", 0, 4, 2, ctypes.addressof(room)))
            number = 0
        except OSError as error:
            number = error.errno or 255
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_rdma(ours: Runtime, bundle: Bundle, rdma: str) -> None:
    _, pid = running(ours, bundle, rdma={rdma: {"hcaHandles": 0, "hcaObjects": 10}})
    assert value(pid, "rdma", "rdma.max", "rdma.max") == f"{rdma} hca_handle=0 hca_object=10"
    assert handle_of(cgroup_of(pid, "rdma")) == 11  # EAGAIN
    _, pid = running(ours, bundle, rdma={rdma: {"hcaHandles": 1}})
    assert value(pid, "rdma", "rdma.max", "rdma.max") == f"{rdma} hca_handle=1 hca_object=max"
    assert handle_of(cgroup_of(pid, "rdma")) == 0


# -- disks -------------------------------------------------------------------------------------------------------------


def disk_node(bundle: Bundle) -> tuple[int, int]:
    device = DISK.stat().st_rdev
    major, minor = os.major(device), os.minor(device)
    bundle.config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
    bundle.config["linux"]["resources"]["devices"].append(
        {"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"}
    )
    return major, minor


def test_a_disk_is_read_no_faster(ours: Runtime, bundle: Bundle) -> None:
    major, minor = disk_node(bundle)

    def seconds(**resources: Any) -> float:
        id, _ = running(ours, bundle, **resources)
        begun = time.monotonic()
        ours.ok("exec", id, "dd", "if=/dev/disk", "of=/dev/null", "bs=4k", "count=40", "iflag=direct")
        return time.monotonic() - begun

    rate = {"major": major, "minor": minor, "rate": 10}
    free, slow = seconds(), seconds(blockIO={"throttleReadIOPSDevice": [rate]})
    assert slow > 3 > free
    assert slow < 8


def test_the_weight_of_a_disk_is_the_schedulers(ours: Runtime, bundle: Bundle) -> None:
    """The weights themselves are the kernel's affair; here they reach the scheduler that has them."""
    major, minor = disk_node(bundle)
    system("modprobe", "bfq")
    scheduler = Path(f"/sys/block/{DISK.name}/queue/scheduler")
    before = scheduler.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    scheduler.write_text("bfq", encoding="ascii")
    try:
        weights = [{"major": major, "minor": minor, "weight": 700}]
        _, pid = running(ours, bundle, blockIO={"weight": 200, "weightDevice": weights})
        lines = (cgroup_of(pid, "blkio") / ("io.bfq.weight" if PURE_V2 else "blkio.bfq.weight_device")).read_text()
        assert f"{major}:{minor} 700" in lines.splitlines()
        assert value(pid, "blkio", "blkio.bfq.weight", "io.bfq.weight").splitlines()[0].split()[-1] == "200"
    finally:
        scheduler.write_text(before or "none", encoding="ascii")


# -- network classes, of v1 alone --------------------------------------------------------------------------------------


@pytest.mark.skipif(PURE_V2, reason="net_cls and net_prio are cgroup v1's (the guest's second boot)")
def test_packets_carry_class_and_priority(ours: Runtime, bundle: Bundle) -> None:
    """A rule of the firewall's counts what the container sends, by its class and by its priority."""
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [each for each in spaces if each["type"] != "network"]
    id, pid = running(ours, bundle, network={"classID": 0x10_0001, "priorities": [{"name": "lo", "priority": 5}]})
    assert value(pid, "net_cls", "net_cls.classid", "") == str(0x10_0001)
    assert "lo 5" in value(pid, "net_prio", "net_prio.ifpriomap", "").splitlines()
    rules = """
    table inet knarr { chain out { type filter hook output priority 0; meta cgroup 1048577 tcp dport 9 counter; }; }
    table netdev knarr { chain out { type filter hook egress device lo priority 0; tcp dport 9 meta priority 0:5 counter; }; }
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        # Nobody listens: one packet each, and an answer that says so.
        assert ours("exec", id, "nc", "127.0.0.1", "9").returncode == 1
        assert subprocess.run(["busybox", "nc", "127.0.0.1", "9"], capture_output=True, check=False).returncode == 1
        for family in ("inet", "netdev"):
            assert "counter packets 1 bytes" in system("nft", "list", "table", family, "knarr"), family
    finally:
        system("nft", "delete", "table", "inet", "knarr")
        system("nft", "delete", "table", "netdev", "knarr")


# -- memory nodes ------------------------------------------------------------------------------------------------------


def policy_and_nodes(runtime: Runtime, bundle: Bundle) -> tuple[str, set[str]]:
    """The policy of a program's heap, and the nodes where what it has written itself lies."""
    (bundle.rootfs / "bin/awk").symlink_to("busybox")
    # awk fills some memory, then reads of itself what lies where: lines of numa_maps with anon= are its own.
    script = 'BEGIN{for(i=0;i<20000;i++)a[i]="x" i; while((getline l<"/proc/self/numa_maps")>0)if(l~/heap/)print l}'
    line = runtime.ok("run", "--bundle", bundle.write("awk", script), runtime.new_id()).split()
    return line[1], {word.partition("=")[0] for word in line if word[0] == "N" and word[1].isdigit()}


@pytest.mark.parametrize("node", ["0", "1"])
def test_memory_lies_where_the_policy_has_it(node: str, ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": node}
    assert policy_and_nodes(ours, bundle) == (f"bind:{node}", {f"N{node}"})


def test_memory_lies_on_both_nodes(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["memoryPolicy"] = {"mode": "MPOL_INTERLEAVE", "nodes": "0-1"}
    assert policy_and_nodes(ours, bundle) == ("interleave:0-1", {"N0", "N1"})


@pytest.mark.parametrize("node", ["0", "1"])
def test_memory_lies_where_the_cpuset_has_it(node: str, ours: Runtime, bundle: Bundle) -> None:
    bundle.config["linux"]["resources"]["cpu"] = {"mems": node}
    assert policy_and_nodes(ours, bundle) == ("default", {f"N{node}"})
