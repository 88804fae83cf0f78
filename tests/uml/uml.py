"""Run a command under user-mode Linux: another kernel, with cgroup v2, as an ordinary process.

Debian's user-mode-linux (Linux 6.1) needs neither root nor KVM. The guest sees the host's files read-only through
hostfs; /tmp and /run are its own tmpfs (but for this checkout and its Python, should they lie there); results leave
through the one writable folder.

``python tests/uml/uml.py -- COMMAND ARG...`` does it by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

KERNEL = "linux.uml"
ROOT = Path(__file__).resolve().parents[2]

INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t hostfs host /mnt -o {results}
mount -t tmpfs -o mode=1777,size=700m tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
for folder in {visible}; do
    case $folder in /tmp/*|/run/*) mkdir -p $folder; mount -t hostfs host $folder -o $folder; mount -o remount,ro $folder;; esac
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
for module in overlay veth bridge tun; do
    find /usr/lib/uml/modules -name $module.ko -exec insmod {{}} \\; 2>/dev/null
done
ip link set lo up 2>/dev/null || ifconfig lo up 2>/dev/null
mkdir -p /run/user/65534 /var/lib/knarr 2>/dev/null
cd {cwd}
{exports}
{command} >/mnt/stdout 2>/mnt/stderr </dev/null
echo $? > /mnt/status
sync
poweroff -f
"""


class NoUml(Exception):
    """User-mode Linux is not there or does not boot; the text says why."""


def run(
    command: list[str],
    *,
    cwd: str = "/",
    timeout: float = 300,
    env: dict[str, str] | None = None,
    memory: str = "1500M",
    visible: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Boot, run ``command`` as the guest's root, power off; times in seconds.

    ``visible``: further folders below the host's /tmp or /run that the guest sees, read-only.
    """
    kernel = shutil.which(KERNEL)
    if kernel is None:
        raise NoUml("user-mode-linux is not installed")
    folder = Path(tempfile.mkdtemp(prefix="knarr-uml-", dir="/tmp"))
    try:
        script = folder / "init"
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items())
        # The results folder is under the host's /tmp, which the guest hides behind its own: mounted before that.
        script.write_text(
            INIT.format(
                results=folder,
                visible=shlex.join([sys.prefix, str(ROOT), *visible]),
                cwd=shlex.quote(cwd),
                exports=exports,
                command=shlex.join(command),
            )
        )
        script.chmod(0o755)
        arguments = [kernel, f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}", "con=null"]
        arguments += ["con0=fd:0,fd:1", "quiet", "initcall_blacklist=raid6_select_algo", f"umid=knarr{os.getpid()}"]
        with (folder / "console").open("w") as console:
            boot = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder), "TMPDIR": str(folder)},
            )
        try:
            boot.wait(timeout)
        except subprocess.TimeoutExpired:
            raise NoUml(f"the guest did not end within {timeout:.0f} s; its console says:\n{_tail(folder)}") from None
        finally:
            if boot.poll() is None:
                os.killpg(boot.pid, signal.SIGKILL)
                boot.wait()
        if not (folder / "status").exists():
            raise NoUml(f"the guest did not boot; its console says:\n{_tail(folder)}")
        texts = [(folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, int((folder / "status").read_text()), *texts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tail(folder: Path) -> str:
    return (folder / "console").read_text(errors="replace")[-2000:]


if __name__ == "__main__":
    words = sys.argv[1:]
    done = run(words[words.index("--") + 1 :] if "--" in words else words, cwd=os.getcwd())
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
