"""What a container with a kernel of its own sees of the host: not its kernel, processes, devices, network, memory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from behind import ISOLATION, need
from blackbox import needs_busybox

if TYPE_CHECKING:
    from blackbox import Bundle, Runtime

pytestmark = needs_busybox
MEMORY = 128 << 20
SCRIPT = """
cat /proc/sys/kernel/random/boot_id /proc/version
grep MemTotal /proc/meminfo
echo pids $(ls /proc | grep '^[0-9]*$')
echo net $(sed -n 's/ *\\(.*\\):.*/\\1/p' /proc/net/dev)
echo block $(ls /sys/block 2>/dev/null)
echo dev $(ls /dev)
cat /proc/1/environ | tr '\\0' '\\n' | sed 's/^/env /'
"""


def test_nothing_of_the_host_is_seen(runtime: Runtime, bundle: Bundle) -> None:
    need("kernel")
    bundle.config["annotations"] = {ISOLATION: "kernel"}
    if os.geteuid() == 0:  # an ordinary user has no cgroup of the host's to write a limit to
        bundle.config["linux"]["resources"] = {"memory": {"limit": MEMORY}}
    done = runtime("run", "-b", bundle.write("sh", "-c", SCRIPT), runtime.new_id(), env={**os.environ, "SECRET": "s3"})
    assert done.returncode == 0, done.stderr
    boot, version, *rest = done.stdout.splitlines()
    assert boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert os.uname().release not in version
    seen = {line.split()[0]: line.split()[1:] for line in rest if line and not line.startswith("env")}
    if os.geteuid() == 0:
        assert int(seen["MemTotal:"][0]) << 10 < 2 * MEMORY
    assert max(map(int, seen["pids"])) < 100  # sh and its own children; the host counts into the thousands
    assert seen["net"] == ["lo"]
    assert not set(seen["block"]) & set(os.listdir("/sys/block"))
    expected = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"}
    assert set(seen["dev"]) <= expected | {"stdout", "tty", "urandom", "zero"}
    assert not re.search("SECRET|s3", done.stdout)
