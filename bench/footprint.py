"""What a container takes of memory beside its program: all that stands for it on the host, by proportional set size."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


_LIBC = ctypes.CDLL(None)


def _group(pid: int) -> Path:
    """Its memory cgroup, v1 or v2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return Path(f"/sys/fs/cgroup/memory{path}")
        if not controllers and Path(f"/sys/fs/cgroup{path}/cgroup.procs").exists():
            return Path(f"/sys/fs/cgroup{path}")
    raise RuntimeError(f"no cgroup of process {pid}")


def _proportional(pid: int) -> int:
    """Bytes of a process, what it shares divided among those it is shared with; 0 when it is gone."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) << 10 for row in rows if row.startswith("Pss:")), 0)


def _same_memory(one: int, other: int) -> bool:
    """Whether they share their address space, as user-mode Linux and its helper threads do: kcmp(2), KCMP_VM."""
    number = 312 if platform.machine() == "x86_64" else 272
    return _LIBC.syscall(number, one, other, 1, 0, 0) == 0


def _members(pid: int) -> list[int]:
    """The processes of its cgroup, one for each address space."""
    found: list[int] = []
    for each in map(int, (_group(pid) / "cgroup.procs").read_text().split()):
        if not any(_same_memory(each, other) for other in found):
            found.append(each)
    return found


def footprint(line: list[str], bundle: Path, count: int, before: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Bytes a container takes, while ``count`` of them sleep: by the name of the program, and altogether.

    ``before`` is called before each is made.
    """
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["sleep", "600"]
    (bundle / "config.json").write_text(json.dumps(config))
    ids = [f"bench-{uuid.uuid4().hex[:10]}" for _ in range(count)]
    found: dict[str, float] = {}
    try:
        for id in ids:
            before()
            command = [*line, "run", "--detach", "--bundle", str(bundle), id]
            null = subprocess.DEVNULL
            subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null)
        time.sleep(0.5)
        for id in ids:
            state = json.loads(subprocess.run([*line, "state", id], check=True, capture_output=True).stdout)
            for pid in _members(state["pid"]):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                found[name] = found.get(name, 0.0) + _proportional(pid) / count
    finally:
        for id in ids:
            subprocess.run([*line, "delete", "--force", id], check=False, capture_output=True)
    return {**found, "altogether": sum(found.values())}


def table(kinds: dict[str, dict[str, float]]) -> str:
    """A Markdown table."""
    lines = [
        "### memory of a container that sleeps, with nothing of its own",
        "",
        "| | MiB | of which |",
        "| --- | --- | --- |",
    ]
    for kind, parts in kinds.items():
        each = {name: size for name, size in parts.items() if name != "altogether"}
        ordered = sorted(each.items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in ordered if size > 2**16)
        lines.append(f"| {kind} | {parts['altogether'] / 2**20:.1f} | {told} |")
    return "\n".join(lines) + "\n"
