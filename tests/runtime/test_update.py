"""update: every option and --resources, seen in the cgroup's files. Runs on v1 and, in user-mode Linux, on v2."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blackbox import PURE_V2, Bundle, Runtime, cgroup_of, limit_of, needs_busybox, needs_root

from knarr.cli.runtime.update import size

if TYPE_CHECKING:
    import subprocess

pytestmark = [needs_busybox, needs_root]

M = 1 << 20
OLD = ("runc", "crun")


class Container:
    """A running container to update; ``says`` reads a limit."""

    def __init__(self, runtime: Runtime, bundle: Bundle, **resources: Any) -> None:
        self.runtime = runtime
        self.id = runtime.new_id()
        bundle.config["linux"]["resources"].update(resources)
        runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), self.id)
        self.pid = runtime.state(self.id)["pid"]

    def update(self, *words: str, **more: Any) -> None:
        self.runtime.ok("update", *words, self.id, **more)

    def refused(self, *words: str, **more: Any) -> str:
        done = self.runtime("update", *words, self.id, **more)
        assert done.returncode == 1, done
        return done.stderr

    def says(self, v1: str, v2: str) -> str:
        return limit_of(self.pid, v1, v2)

    def has(self, v1: str, v2: str) -> bool:
        controller = v1.partition(".")[0]
        return (cgroup_of(self.pid, controller) / (v2 if PURE_V2 else v1)).exists()


LIMIT, SWAP, SOFT = (
    ("memory.limit_in_bytes", "memory.max"),
    ("memory.memsw.limit_in_bytes", "memory.swap.max"),
    ("memory.soft_limit_in_bytes", "memory.low"),
)


def test_memory(runtime: Runtime, bundle: Bundle) -> None:
    made = Container(runtime, bundle, memory={"limit": 64 * M})
    assert made.says(*LIMIT) == str(64 * M)
    made.update("--memory", str(32 * M))
    assert made.says(*LIMIT) == str(32 * M)
    made.update("--memory-reservation", str(20 * M))
    assert made.says(*SOFT) == str(20 * M)
    if not made.has(*SWAP):
        return
    made.update("--memory", str(33 * M), "--memory-swap", str(50 * M))
    assert made.says(*SWAP) == str((17 if PURE_V2 else 50) * M)
    # both above the old sum: on v1 in the other order; and below it again
    made.update("--memory", str(100 * M), "--memory-swap", str(200 * M))
    assert (made.says(*LIMIT), made.says(*SWAP)) == (str(100 * M), str((100 if PURE_V2 else 200) * M))
    made.update("--memory", str(40 * M), "--memory-swap", str(60 * M))
    assert (made.says(*LIMIT), made.says(*SWAP)) == (str(40 * M), str((20 if PURE_V2 else 60) * M))


def test_memory_without_a_limit_again(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("crun 1.8.1 writes the limit alone, which the kernel refuses beside one of memory and swap")
    made = Container(runtime, bundle, memory={"limit": 64 * M, "swap": 96 * M})
    made.update("--memory", "-1")
    unlimited = "max" if PURE_V2 else str((1 << 63) - 4096)
    assert made.says(*LIMIT) == unlimited
    if made.has(*SWAP):
        assert made.says(*SWAP) == unlimited


def test_sizes_with_units(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("crun takes bytes only")
    made = Container(runtime, bundle)
    made.update("--memory", "40m", "--memory-reservation", "0.5M")
    assert (made.says(*LIMIT), made.says(*SOFT)) == (str(40 * M), str(M // 2))
    assert "x" in made.refused("--memory", "x")


@pytest.mark.parametrize(
    ("words", "v1", "v2", "value"),
    [
        (("--cpu-share", "512"), "cpu.shares", "cpu.weight", ("512", {"knarr": "59", "runc": "20", "crun": "20"})),
        (("--cpuset-cpus", "0"), "cpuset.cpus", "cpuset.cpus", "0"),
        (("--cpuset-mems", "0"), "cpuset.mems", "cpuset.mems", "0"),
        (("--pids-limit", "33"), "pids.max", "pids.max", "33"),
        (("--blkio-weight", "300"), "blkio.bfq.weight", "io.bfq.weight", ("300", "default 300")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_one_number(runtime: Runtime, bundle: Bundle, words: tuple[str, ...], v1: str, v2: str, value: Any) -> None:
    made = Container(runtime, bundle)
    if not made.has(v1, v2):
        pytest.skip(f"this kernel has no {v2 if PURE_V2 else v1}")
    if runtime.name == "crun" and "bfq" in v1:
        pytest.skip("crun 1.8.1 knows no blkio.bfq.weight")
    made.update(*words)
    expected = value[PURE_V2] if isinstance(value, tuple) else value
    assert made.says(v1, v2) == (expected[runtime.name] if isinstance(expected, dict) else expected)


def test_no_limit_of_processes(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("crun 1.8.1 writes -1 itself, which the kernel refuses")
    made = Container(runtime, bundle, pids={"limit": 20})
    made.update("--pids-limit", "-1")
    assert made.says("pids.max", "pids.max") == "max"


def test_cpu_time(runtime: Runtime, bundle: Bundle) -> None:
    """A quota alone keeps the period and the other way round, also in the one file of v2."""
    made = Container(runtime, bundle, cpu={"quota": 40000, "period": 100000})

    def both() -> tuple[str, str]:
        if PURE_V2:
            quota, period = made.says("cpu.x", "cpu.max").split()
            return quota, period
        return made.says("cpu.cfs_quota_us", ""), made.says("cpu.cfs_period_us", "")

    made.update("--cpu-quota", "50000")
    assert both() == ("50000", "100000")
    if runtime.name == "crun" and PURE_V2:
        pytest.skip("crun 1.8.1 forgets the quota when the period is changed")
    made.update("--cpu-period", "200000")
    assert both() == ("50000", "200000")
    if runtime.name == "crun":
        return  # 1.8.1 writes -1 as 18446744073709551615
    made.update("--cpu-quota", "-1")
    assert both() == ("max" if PURE_V2 else "-1", "200000")


def test_cpu_burst_and_idle(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name in OLD and "--cpu-burst" not in runtime("update", "--help").stdout:
        pytest.skip(f"this {runtime.name} has neither --cpu-burst nor --cpu-idle")
    made = Container(runtime, bundle, cpu={"quota": 40000, "period": 100000, "shares": 512})
    burst = ("cpu.cfs_burst_us", "cpu.max.burst")
    if made.has(*burst):
        made.update("--cpu-burst", "10000")
        assert made.says(*burst) == "10000"
        # below the burst there was: only together
        assert "burst" in made.refused("--cpu-quota", "5000")
        made.update("--cpu-quota", "5000", "--cpu-burst", "0")
        assert made.says(*burst) == "0"
    idle, shares = ("cpu.idle", "cpu.idle"), ("cpu.shares", "cpu.weight")
    if not made.has(*idle):
        pytest.skip("this kernel has no cpu.idle")
    weight = made.says(*shares)
    made.update("--cpu-idle", "1")
    assert made.says(*idle) == "1"
    made.update("--cpu-idle", "0")
    assert made.says(*idle) == "0"
    if runtime.name == "knarr":  # the kernel had forgotten the weight
        assert made.says(*shares) == weight


def test_real_time(runtime: Runtime, bundle: Bundle) -> None:
    made = Container(runtime, bundle)
    if PURE_V2:
        if runtime.name == "knarr":
            assert "cgroup v2 has no such setting" in made.refused("--cpu-rt-runtime", "1000")
        return
    files = ("cpu.rt_period_us", ""), ("cpu.rt_runtime_us", "")
    if made.has(*files[0]):
        made.update("--cpu-rt-period", "500000", "--cpu-rt-runtime", "0")
        assert made.says(*files[0]) == "500000"
    elif runtime.name == "knarr":
        assert "cpu.rt_period_us" in made.refused("--cpu-rt-period", "500000")


def test_kernel_memory_is_ignored_with_a_warning(runtime: Runtime, bundle: Bundle) -> None:
    if runtime.name == "crun":
        pytest.skip("crun writes it")
    made = Container(runtime, bundle)
    done = runtime("update", "--kernel-memory", "64m", "--kernel-memory-tcp", "-1", "--pids-limit", "44", made.id)
    assert done.returncode == 0
    assert "ignored" in done.stderr
    assert made.says("pids.max", "pids.max") == "44"


def test_rdt_without_a_machine_that_has_it(runtime: Runtime, bundle: Bundle) -> None:
    if os.path.isdir("/sys/fs/resctrl/info"):
        pytest.skip("this machine has resctrl")
    made = Container(runtime, bundle)
    for option in ("--l3-cache-schema", "--mem-bw-schema"):
        done = runtime("update", option, "L3:0=f", made.id)
        assert done.returncode != 0
        assert option in done.stderr or "not enabled" in done.stderr or "unrecognized" in done.stderr


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_resources(runtime: Runtime, bundle: Bundle, tmp_path: Path, source: str) -> None:
    made = Container(runtime, bundle, cpu={"shares": 512})
    # as Docker writes it, with zeros for what is to stay as it is
    resources = {
        "memory": {"limit": 48 * M, "reservation": 0, "swap": 0},
        "cpu": {"shares": 0, "quota": 30000, "period": 0, "cpus": "", "mems": ""},
        "pids": {"limit": 21},
        "blockIO": {"weight": 0},
    }
    if runtime.name == "crun":
        resources = {"memory": {"limit": 48 * M}, "cpu": {"quota": 30000}, "pids": {"limit": 21}}
    text = json.dumps(resources)
    if source == "file":
        (tmp_path / "limits").write_text(text)
        made.update("--resources", str(tmp_path / "limits"))
    elif runtime.name == "crun":
        pytest.skip("crun 1.8.1 cannot read standard input")
    else:
        with (tmp_path / "limits").open("w+") as stdin:
            stdin.write(text)
            stdin.seek(0)
            made.update("--resources", "-", stdin=stdin)
    assert made.says(*LIMIT) == str(48 * M)
    assert made.says("pids.max", "pids.max") == "21"
    quota = made.says("cpu.cfs_quota_us", "cpu.max").split()[0]
    assert quota == "30000"
    if not PURE_V2:
        assert made.says("cpu.shares", "") == "512"


def test_throttles_of_devices(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A device named again gets the new rate, the others keep theirs, and a rate of 0 takes one back."""
    devices = [path.read_text().strip() for path in Path("/sys/block").glob("*/dev")]
    if not devices:
        pytest.skip("this machine has no block device")
    major, minor = (int(number) for number in devices[0].split(":"))
    made = Container(ours, bundle)
    files = ("blkio.throttle.read_bps_device", "io.max")

    def throttle(rate: int) -> None:
        entry = {"major": major, "minor": minor, "rate": rate}
        (tmp_path / "limits").write_text(json.dumps({"blockIO": {"throttleReadBpsDevice": [entry]}}))
        made.update("--resources", str(tmp_path / "limits"))

    throttle(4096)
    assert devices[0] in made.says(*files)
    assert "4096" in made.says(*files)
    throttle(8192)
    assert "4096" not in made.says(*files)
    assert "8192" in made.says(*files)
    throttle(0)
    assert "8192" not in made.says(*files)


def test_device_rules_are_replaced(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    made = Container(ours, bundle)
    bundle.config["process"]["capabilities"] = {}
    zero = ("exec", made.id, "head", "-c", "1", "/dev/zero")
    assert ours(*zero).returncode == 0
    rules = [{"allow": False, "access": "rwm"}]
    (tmp_path / "limits").write_text(json.dumps({"devices": rules, "pids": {"limit": 90}}))
    made.update("--resources", str(tmp_path / "limits"))  # the same as before: nothing is touched
    assert ours(*zero).returncode == 0
    rules.append({"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"})
    (tmp_path / "limits").write_text(json.dumps({"devices": rules}))
    if not PURE_V2:
        listed = cgroup_of(made.pid, "devices") / "devices.list"
        assert "c 10:229" not in listed.read_text()
    made.update("--resources", str(tmp_path / "limits"))
    if not PURE_V2:
        assert "c 10:229 rw" in listed.read_text()
        assert "c 1:5 rwm" in listed.read_text()
    assert ours(*zero).returncode == 0  # the default devices are always allowed


def test_all_or_nothing(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """What was written before the kernel refused something is taken back."""
    made = Container(ours, bundle, memory={"limit": 64 * M}, pids={"limit": 20})
    nowhere = {"major": 4000, "minor": 1, "rate": 4096}
    limits = {"memory": {"limit": 32 * M}, "pids": {"limit": 30}, "blockIO": {"throttleReadBpsDevice": [nowhere]}}
    (tmp_path / "limits").write_text(json.dumps(limits))
    said = made.refused("--resources", str(tmp_path / "limits"))
    assert "4000:1" in said
    assert "config.json" not in said
    assert made.says(*LIMIT) == str(64 * M)
    assert made.says("pids.max", "pids.max") == "20"
    config = json.loads((ours.root / made.id / "config.json").read_text())
    assert config["linux"]["resources"]["pids"] == {"limit": 20}


def test_a_limit_below_what_is_in_use(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """With checkBeforeUpdate the kernel is not asked to kill; v1 never does."""
    made = Container(ours, bundle, memory={"limit": 64 * M})
    asked: dict[str, Any] = {"memory": {"limit": 4096, "checkBeforeUpdate": True}}
    (tmp_path / "limits").write_text(json.dumps(asked))
    said = made.refused("--resources", str(tmp_path / "limits"))
    assert "in use" in said or "busy" in said
    assert made.says(*LIMIT) == str(64 * M)


def test_the_recorded_config_follows(ours: Runtime, bundle: Bundle) -> None:
    made = Container(ours, bundle, memory={"limit": 64 * M}, cpu={"shares": 300})
    made.update("--memory", "32m", "--cpu-quota", "20000")
    config = json.loads((ours.root / made.id / "config.json").read_text())
    assert config["linux"]["resources"]["memory"] == {"limit": 32 * M}
    assert config["linux"]["resources"]["cpu"] == {"shares": 300, "quota": 20000}
    assert config["linux"]["resources"]["devices"] == bundle.config["linux"]["resources"]["devices"]
    assert json.loads((bundle.path / "config.json").read_text())["linux"]["resources"]["memory"] == {"limit": 64 * M}
    assert ours("exec", made.id, "true").returncode == 0


def test_what_makes_no_sense_is_said_before_anything_is_written(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    made = Container(ours, bundle, memory={"limit": 64 * M, "swap": 64 * M})
    for words, said in (
        (("--memory", "100m"), "/memory/swap: is 67108864, must be at least the memory limit 104857600"),
        (("--cpu-share", "1"), "/cpu/shares"),
        (("--cpu-quota", "5"), "/cpu/quota"),
        (("--cpuset-cpus", "a"), "/cpu/cpus"),
        (("--pids-limit", "-5"), "/pids/limit"),
        (("--pids-limit", "many"), "option --pids-limit: 'many' is not a number"),
    ):
        assert said in made.refused(*words)
    (tmp_path / "limits").write_text('{"memory": {"limit": "5"}}')
    assert "/memory/limit" in made.refused("--resources", str(tmp_path / "limits"))
    (tmp_path / "limits").write_text("{")
    assert str(tmp_path / "limits") in made.refused("--resources", str(tmp_path / "limits"))
    assert "no such file" in made.refused("--resources", str(tmp_path / "none"))
    assert made.says(*LIMIT) == str(64 * M)


def test_the_wrong_status(runtime: Runtime, bundle: Bundle) -> None:
    made = Container(runtime, bundle)
    runtime.ok("pause", made.id)
    made.update("--pids-limit", "55")
    runtime.ok("resume", made.id)
    assert made.says("pids.max", "pids.max") == "55"
    runtime.ok("kill", made.id, "KILL")
    runtime.wait_for(made.id, "stopped")
    if runtime.name != "crun":
        assert "not running" in made.refused("--pids-limit", "66")
    assert runtime("update", "--pids-limit", "5", "nobody").returncode == 1


def test_many_updates_at_once_are_one_after_the_other(ours: Runtime, bundle: Bundle) -> None:
    """Each is there in the end: none overwrites the record of another."""
    made = Container(ours, bundle)
    words = (("--pids-limit", "61"), ("--cpu-share", "301"), ("--memory", "61m"), ("--cpu-quota", "61000"))
    done: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda w=each: done.append(ours("update", *w, made.id))) for each in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.returncode for each in done] == [0] * 4, done
    resources = json.loads((ours.root / made.id / "config.json").read_text())["linux"]["resources"]
    assert resources["pids"] == {"limit": 61}
    assert resources["cpu"] == {"shares": 301, "quota": 61000}
    assert resources["memory"] == {"limit": 61 * M}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("-1", -1), ("0", 0), ("4096", 4096), ("4096b", 4096), ("1k", 1024), ("1K", 1024), ("2kb", 2048)),
        *(("3KiB", 3072), ("64m", 64 << 20), ("1.5g", 3 << 29), ("1 GiB", 1 << 30), ("2T", 2 << 40), ("1P", 1 << 50)),
    ],
)
def test_sizes(text: str, number: int) -> None:
    assert size("memory", text) == number


@pytest.mark.parametrize("text", ["", "x", "m", "-2", "1.", ".5m", "1e3", "1mm", "1mk", "²", "1.5.5m", "9" * 30])
def test_no_sizes(text: str) -> None:
    with pytest.raises(Exception, match="is not a size"):
        size("memory", text)
