"""``knarr`` on cgroup v2 and an older kernel (no time namespace, no user xattrs on tmpfs): under user-mode Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "uml"))
import uml  # pyright: ignore[reportMissingImports]

# Each line is what is run and, after the bar, what it must print.
AS_ROOT = """\
run host: -- /bin/sh -c 'id -u; cat /sys/fs/cgroup/pids.max' | 0 2048
image create t:1 --from-host /bin/sh,cat,dd | sha256:
run --rm t:1 sh -c 'cat /sys/fs/cgroup/memory.max' | max
run --rm --memory 64m --cpus 0.5 --pids-limit 7 t:1 sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max pids.max' | 67108864 50000 100000 7
run --rm --memory 16m t:1 sh -c 'dd if=/dev/zero of=/dev/null bs=64M count=1; echo not reached: $?' | not reached: 137
ps -a --format json | []
"""
AS_USER = """\
run host: -- /bin/sh -c 'id -u; echo x > /etc/made && echo wrote' | 0 wrote
image create t:1 --from-host /bin/sh,id | sha256:
run --rm t:1 sh -c 'id -u; echo x > /made && echo wrote' | 0 wrote
ps -a --format json | []
"""


def script(python: str, lines: str) -> str:
    """A shell script that runs the lines and prints each result on one line after a bar."""
    calls = [line.partition(" | ")[0] for line in lines.splitlines()]
    return "\n".join(f'echo "| $({python} -m knarr.cli.main {call} 2>&1 | tr "\\n" " ")"' for call in calls)


def test_on_cgroup_v2() -> None:
    version = "import sys; print(sys.version_info[:2])"
    system = subprocess.run(["/usr/bin/python3", "-c", version], capture_output=True, text=True, check=False)
    user_python = "/usr/bin/python3" if system.stdout.strip() == str(sys.version_info[:2]) else ""
    paths = [path for path in sys.path if path.startswith("/")]
    text = "export KNARR_STORE=/tmp/store KNARR_RUN=/run/knarr\n" + script(sys.executable, AS_ROOT)
    text += "\nfind /sys/fs/cgroup -mindepth 1 -type d\n"
    if user_python:
        text += "\nmkdir /tmp/home; chown 65534 /tmp/home; export HOME=/tmp/home KNARR_STORE=/tmp/home/s KNARR_RUN=/tmp/home/r\n"
        text += f"setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{quoted(script(user_python, AS_USER))}'\n"
    packages = [path for path in paths if path.endswith(("site-packages", "/src"))]
    try:
        done = uml.run(["sh", "-c", text], timeout=280, env={"PYTHONPATH": ":".join(packages)})
    except uml.NoUml as error:
        pytest.skip(str(error))
    got = [line[2:].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    wanted = [line.partition(" | ")[2] for line in (AS_ROOT + (AS_USER if user_python else "")).splitlines()]
    assert len(got) == len(wanted), done.stdout + done.stderr
    for line, want in zip(got, wanted, strict=True):
        assert line.startswith(want) if want.endswith(":") else line.endswith(want), done.stdout + done.stderr
    left = [line for line in done.stdout.splitlines() if line.startswith("/sys/fs/cgroup/")]
    assert [path for path in left if len(path.rsplit("/", 1)[1]) == 64] == []  # no container's group


def quoted(text: str) -> str:
    """Fit for single quotes of a shell."""
    return text.replace("'", "'\\''")
