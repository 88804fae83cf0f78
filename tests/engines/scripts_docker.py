"""What the tests have Docker do: a function per subject, each a list of steps for any runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transcript import Recorder

# What a process can do and see, in lines that two runs have in common. Left out, because they say the same in other words:
# the sysfs superblock's own "ro" (the mount's is there), what a masked file is covered with (a null device), whether
# the tmpfs that holds v1 cgroups is read-only (ours is, as Docker asks for; runc's stays writable), whether a tmpfs got
# the mode of the directory it hides (Podman's /run) at once or by chmod.
POSTURE = """
grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status
ulimit -a
cut -d' ' -f4- /proc/self/mountinfo | sed -E 's/ (shared|master):[0-9]+//; s/ - overlay .*//; s/ - sysfs .*//;
    s#^[^ ]*/(containers|volumes)/[^ ]*#.#; s#^/null ([^ ]*) .*#masked \\1#; s# (/sys/fs/cgroup) r[ow],# \\1 #; s#^(/ /run .*),mode=755#\\1#' | sort
ls -la /dev | awk 'NR > 1 {print $1, $3, $4, $5, $6 ~ /,/ ? "" : "", $NF}' | grep -v '^d.*[.]$' | sort
cat /proc/sys/net/ipv4/ip_unprivileged_port_start
ls -l /proc/self/fd | awk 'NR > 1 {print $9}'
id
pwd
umask
"""

NOT_PERMITTED = "operation not permitted"
LEFT_OUT = "a capability that nobody can grant here is left out, with a warning; runc does not start (runtime-spec 1.3)"


def running(d: Recorder, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000")) -> None:
    """Start a container that stays."""
    d("run", "-d", "--name", name, *options, "small", *command)


def no_numbers(out: str) -> str:
    """A table without its numbers: pids, times of day."""
    return re.sub(r"[ \d:]+", " ", out)


def nothing(_out: str) -> str:
    """For an output that only has ids and counts in it."""
    return ""


def state(d: Recorder, name: str) -> None:
    d(
        "inspect",
        name,
        "--format",
        "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Error}} {{.RestartCount}}",
    )


def every_capability() -> bool:
    """Whether root here may everything; in a virtual machine or container it may lack some, which nobody can then give away."""
    bounding = re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())
    assert bounding is not None
    return (int(bounding[1], 16) + 1).bit_count() == 1


def script_run(d: Recorder) -> None:
    d("run", "--rm", "small", "echo", "hello", out="hello\n")
    d("run", "--rm", "small", "sh", "-c", "echo out; echo err >&2; exit 7", code=7, out="out\n")
    d("run", "--rm", "-i", "small", "cat", stdin="through\n", out="through\n")
    d("run", "--rm", "small", "sh", "-c", "sh -c 'kill -9 $$'; echo $?", out="137\n")
    d("run", "--rm", "small", "no-such-program", code=127, own=("executable file not found",))
    d("run", "--rm", "small", "/no/such/program", code=127, own=("no such file or directory",))
    d("run", "--rm", "small", "/etc/not-a-program", code=126, own=("permission denied",))
    options = ("-e", "A=b", "--hostname", "host1", "--domainname", "example", "--label", "k=v", "-w", "/made/dir")
    d(
        "run",
        "--name",
        "one",
        *options,
        "small",
        "sh",
        "-c",
        "pwd; env | sort; hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname",
    )
    d.document("inspect", "one")
    d("ps", "-a", "--format", "{{.Names}} {{.Image}} {{.Status}} {{.Command}} {{.Labels}}")
    d("start", "-a", "one")
    d("rm", "one")
    d("run", "--rm", "--entrypoint", "/bin/id", "small", "-u", out="0\n")


def script_failed_create_keeps_its_reason(d: Recorder) -> None:
    d("create", "--name", "bad", "small", "no-such-program")
    d("start", "bad", code=1, own=("executable file not found",))
    d("inspect", "bad", "--format", "{{.State.Status}} {{.State.ExitCode}}")
    d("rm", "bad")
    d("run", "--rm", "-v", "/dev/null:/etc/passwd/below", "small", "true", code=125, own=("not a directory",))


def script_programs_that_only_the_kernel_refuses(d: Recorder) -> None:
    why = "runc starts it and it ends with 1 or 255; ours says why, and containers that cannot start are not started"
    folder = Path(d.folder, "bad")
    folder.mkdir(exist_ok=True)
    for name, text in (("no-interpreter", "#!/no/such/interpreter\n"), ("no-program", "text\n")):
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
        part = "/no/such/interpreter" if name == "no-interpreter" else "exec format error"
        code = 127 if name == "no-interpreter" else 125
        d.apart(why, "run", "--rm", "-v", f"{folder}:/bad", "small", f"/bad/{name}", runc=(1, ""), ours=(code, part))


# A shell at a terminal without the editing of lines, which repaints them as time allows.
SHELL = ("sh", "-c", 'trap : INT; while printf "> " && read -r line; do eval "$line"; done')


def script_terminal(d: Recorder) -> None:
    talk = d.terminal("run", "-it", "--name", "term", "small", *SHELL, size=(33, 101))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty")
    talk.until("33 101\r\n/dev/pts/0\r\n")
    talk.resize(44, 99)
    talk.ask("> ", "sleep 1; stty size")
    talk.until("44 99\r\n")
    talk.ask("> ", "sh -c 'echo re\"\"ady; exec sleep 100'; echo $?")
    talk.until("ready\r\n")
    talk.send("\x03")
    talk.ask("> ", "ls -l /dev/console | cut -c1-10; stty -a | head -3; exit 5")
    talk.end(5)
    d.document("inspect", "term")
    d("rm", "term")
    # detached by its keys, attached again
    talk = d.terminal("run", "-it", "--name", "term", "small", *SHELL)
    talk.until("> ")
    talk.send("\x10\x11")
    talk.end(0)
    state(d, "term")
    talk = d.terminal("attach", "term")
    talk.send("echo again-$((1 + 1))\r")
    talk.until("again-2\r\n")
    talk.send("exit 6\r")
    talk.end(6, view=lambda text: "again-2" if "again-2" in text else text)
    d("wait", "term", out="6\n")
    d("rm", "term")
    # a terminal nobody looks at
    d("run", "-dt", "--name", "term", "small", "sh", "-c", "tty; [ -t 2 ] && echo a terminal; cat")
    d.wait_for("its output", "logs", "term", until=lambda out: out.count("\n") == 2)
    d("logs", "term")
    d("rm", "-f", "term")


def script_exec(d: Recorder) -> None:
    running(d, "exec1", "-e", "A=container", "--group-add", "2000")
    d("exec", "exec1", "sh", "-c", "echo out; echo err >&2; exit 3", code=3, out="out\n")
    d("exec", "-i", "exec1", "cat", stdin="through\n", out="through\n")
    d("exec", "-u", "app", "exec1", "id", out="uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n")
    d("exec", "-u", "1234:4321", "exec1", "id")
    d("exec", "-w", "/data", "exec1", "pwd", out="/data\n")
    d("exec", "-w", "/not/there", "exec1", "pwd", code=126, own=("no such file or directory",))
    d("exec", "-e", "A=exec", "-e", "B=more", "exec1", "sh", "-c", "env | sort")
    d("exec", "exec1", "sh", "-c", POSTURE)
    if every_capability():
        d("exec", "--privileged", "exec1", "sh", "-c", POSTURE)
    else:
        d.apart(LEFT_OUT, "exec", "--privileged", "exec1", "true", runc=(126, NOT_PERMITTED), ours=(0, ""))
    d("exec", "exec1", "no-such-program", code=126, own=("executable file not found",))
    d("exec", "exec1", "/etc/not-a-program", code=126, own=("permission denied",))
    d("exec", "exec1", "sh", "-c", "kill -9 $$", code=137)
    d("exec", "-d", "exec1", "sh", "-c", "echo done > /tmp/done; sleep 1000")
    d.wait_for("the detached one", "exec", "exec1", "cat", "/tmp/done", until=lambda out: out == "done\n")
    d("top", "exec1", "-eo", "pid,user,args", view=no_numbers)
    talk = d.terminal("exec", "-it", "-u", "app", "-w", "/tmp", "exec1", *SHELL, size=(20, 77))
    talk.ask("> ", "until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done; tty; id -u; pwd")
    talk.until("\r\n1000\r\n/tmp\r\n")
    talk.ask("> ", "exit 9")
    talk.end(9)
    d("kill", "exec1")
    d("wait", "exec1")
    d("exec", "exec1", "true", code=1)
    d("rm", "exec1")
    d("exec", "exec1", "true", code=1)


def script_attach_and_logs(d: Recorder) -> None:
    running(
        d,
        "logs1",
        "-i",
        command=(
            "sh",
            "-c",
            "echo begin; while read line && [ $line != last ]; do echo got $line; done; sleep 0.3; echo end >&2",
        ),
    )
    d.wait_for("the first line", "logs", "logs1", until=lambda out: out == "begin\n")
    follower = d.background("logs", "-f", "logs1")
    attached = d.background("attach", "logs1")
    attached.say("one\ntwo\n")
    d.wait_for("what it makes of it", "logs", "logs1", until=lambda out: "got two" in out)
    attached.say("last\n")
    attached.end()
    follower.end()
    d("wait", "logs1", out="0\n")
    d("logs", "logs1")
    d("logs", "--tail", "1", "logs1")
    d("logs", "--timestamps", "logs1")
    d("rm", "logs1")


def script_stop_kill_wait_restart(d: Recorder) -> None:
    trap = "trap 'echo got TERM; exit 4' TERM; trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done"
    running(d, "stop1", command=("sh", "-c", trap))
    d.wait_for("the traps", "logs", "stop1", until=lambda out: out == "ready\n")
    d("kill", "-s", "USR1", "stop1")
    d.wait_for("USR1", "logs", "stop1", until=lambda out: "USR1" in out)
    waiting = d.background("wait", "stop1")
    d("stop", "stop1")
    waiting.end()
    d("logs", "stop1")
    state(d, "stop1")
    d("stop", "stop1")
    d("kill", "stop1", code=1)
    d("restart", "stop1")
    d.wait_for("the traps again", "logs", "stop1", until=lambda out: out.count("ready") == 2)
    d("rename", "stop1", "renamed")
    d("ps", "--format", "{{.Names}}")
    d("rm", "renamed", code=1)
    d("rm", "-f", "renamed")
    # who ignores SIGTERM is killed
    running(d, "kill1", command=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    d.wait_for("the trap", "logs", "kill1", until=lambda out: out == "ready\n")
    d("stop", "-t", "1", "kill1")
    state(d, "kill1")
    d("rm", "kill1")
    running(
        d,
        "quit1",
        "--stop-signal",
        "QUIT",
        command=("sh", "-c", "trap 'exit 8' QUIT; echo ready; while :; do sleep 0.05; done"),
    )
    d.wait_for("the trap", "logs", "quit1", until=lambda out: out == "ready\n")
    d("stop", "quit1")
    state(d, "quit1")
    d("rm", "quit1")
    d("create", "--name", "never", "small", "true")
    state(d, "never")
    d("rm", "never")
    d("kill", "nobody", code=1)


def script_restart_policies(d: Recorder) -> None:
    d("run", "-d", "--restart", "on-failure:2", "--name", "again", "small", "sh", "-c", "echo try; exit 3")
    d.wait_for(
        "three attempts",
        "inspect",
        "again",
        "--format",
        "{{.RestartCount}} {{.State.Status}}",
        until=lambda out: out == "2 exited\n",
    )
    d("logs", "again", out="try\ntry\ntry\n")
    state(d, "again")
    d("rm", "again")
    running(d, "again", "--restart", "always")
    pid = d.quiet("inspect", "again", "--format", "{{.State.Pid}}").stdout
    d.box.run("kill", "-9", pid.strip())
    d.wait_for(
        "another process", "inspect", "again", "--format", "{{.State.Pid}}", until=lambda out: out not in (pid, "0\n")
    )
    state(d, "again")
    d("update", "--restart", "no", "again")
    d("stop", "-t", "0", "again")
    state(d, "again")
    d("rm", "again")


def script_pause(d: Recorder) -> None:
    running(d, "paused", command=("sh", "-c", "n=0; while :; do n=$((n + 1)); echo $n > /tmp/n; done"))
    d.wait_for("counting", "exec", "paused", "cat", "/tmp/n", until=lambda out: len(out) > 1)
    d("pause", "paused")
    state(d, "paused")
    d("ps", "--format", "{{.Names}} {{.Status}}")
    d("exec", "paused", "true", code=1)
    d("pause", "paused", code=1)
    d("top", "paused", "-eo", "pid,stat,args", view=lambda out: no_numbers(re.sub(r"\bD\S*", "D", out)))
    d("unpause", "paused")
    d("unpause", "paused", code=1)
    state(d, "paused")
    d("exec", "paused", "echo", "alive", out="alive\n")
    d("pause", "paused")
    d("kill", "paused")
    d("wait", "paused", out="137\n")
    d("rm", "paused")
    running(d, "paused")
    d("pause", "paused")
    d("rm", "-f", "paused")


V1 = "/sys/fs/cgroup"
LIMITS = (
    "memory/memory.limit_in_bytes",
    "memory/memory.memsw.limit_in_bytes",
    "memory/memory.soft_limit_in_bytes",
    "memory/memory.swappiness",
    "memory/memory.oom_control",
    "cpu/cpu.shares",
    "cpu/cpu.cfs_period_us",
    "cpu/cpu.cfs_quota_us",
    "cpuset/cpuset.cpus",
    "cpuset/cpuset.mems",
    "pids/pids.max",
    "devices/devices.list",
    "blkio/blkio.throttle.read_bps_device",
)


def device_rules(out: str) -> str:
    """Device rules but three that runc gives to everybody, and ours only to who asks (docs/cgroups.md, Devices)."""
    return "\n".join(sorted(set(out.splitlines()) - {"b *:* m", "c *:* m", "c 10:200 rwm"}))


def limits(d: Recorder, name: str) -> None:
    """Record what the container finds in its cgroups."""
    for file in LIMITS:
        d("exec", name, "cat", f"{V1}/{file}", view=device_rules if "devices" in file else None)


def script_limits_update_stats_top(d: Recorder) -> None:
    limited = (
        "-m",
        "64m",
        "--memory-swap",
        "96m",
        "--memory-reservation",
        "32m",
        "--cpus",
        "0.5",
        "--cpuset-cpus",
        "0",
    )
    running(d, "limited", *limited, "--pids-limit", "50", "--cpu-shares", "512", "--oom-kill-disable")
    limits(d, "limited")
    d("update", "--memory", "80m", "--memory-swap", "160m", "limited")
    d("update", "--cpus", "1.5", "limited")
    d("update", "--pids-limit", "77", "limited")
    d("update", "--cpuset-cpus", "0-1", "--cpu-shares", "300", "limited")
    limits(d, "limited")
    d("update", "--memory", "200m", "limited", code=1)  # above memory and swap together
    d("update", "--cpuset-cpus", "4000", "limited", code=1)
    d("update", "--pids-limit", "-1", "limited")
    limits(d, "limited")
    d.document("inspect", "limited")
    d(
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.MemUsage}} {{.PIDs}}",
        "limited",
        view=lambda out: re.sub(r" [\d.]+[KM]iB /", " <used> /", out),
    )
    d("top", "limited", view=no_numbers)
    d("top", "limited", "-eo", "pid,user,args", view=no_numbers)
    d("exec", "limited", "sh", "-c", "for i in 1 2 3; do sleep 100 & done")
    d("stats", "--no-stream", "--format", "{{.PIDs}}", "limited", out="4\n")
    d("rm", "-f", "limited")
    d(
        "run",
        "--rm",
        "--pids-limit",
        "5",
        "small",
        "sh",
        "-c",
        "{ sleep 0.3; for i in 1 2 3 4 5 6 7; do sleep 1 & done; } 2>&1 | grep -c fork; true",
        view=nothing,
    )


def script_oom(d: Recorder) -> None:
    d("run", "--name", "oom1", "-m", "16m", "--memory-swap", "16m", "small", "tail", "/dev/zero", code=137)
    d.wait_for(
        "the news of it", "inspect", "oom1", "--format", "{{.State.OOMKilled}}", until=lambda out: out == "true\n"
    )
    state(d, "oom1")
    d("rm", "oom1")
    # one process of several: the container goes on
    running(d, "oom1", "-m", "16m", "--memory-swap", "16m")
    d("exec", "oom1", "tail", "/dev/zero", code=137)
    state(d, "oom1")
    d("rm", "-f", "oom1")


def script_posture(d: Recorder) -> None:
    """What the program finds, for every option that has a say in it."""

    def look(*options: str, command: str = POSTURE) -> str:
        return d("run", "--rm", "--network", "none", *options, "small", "sh", "-c", command)

    look()
    assert "/ ro," in look("--read-only")
    look("--read-only", "--tmpfs", "/run:rw,noexec,size=65536k,mode=1770", "--tmpfs", "/tmp")
    look("--user", "app", "--group-add", "2000")
    look("--user", "1234:4321")
    look("--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN")
    look("--cap-drop", "ALL")
    look("--cap-drop", "ALL", "--user", "app", "--cap-add", "NET_RAW")
    for options in (("--cap-add", "ALL"), ("--privileged",), ("--privileged", "--read-only")):
        if every_capability():
            look(*options)
        else:
            words = ("run", "--rm", *options, "small", "true")
            d.apart(LEFT_OUT, *words, runc=(125, NOT_PERMITTED), ours=(0, ""))
    look("--privileged", "--user", "app")
    look("--security-opt", "seccomp=unconfined")
    look("--security-opt", "no-new-privileges")
    look("--security-opt", "systempaths=unconfined")
    look("--ulimit", "nofile=64:128", "--ulimit", "core=0", "--ulimit", "nproc=99:100")
    look(
        "--sysctl",
        "net.ipv4.ip_unprivileged_port_start=80",
        "--sysctl",
        "kernel.msgmax=4096",
        command="cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
    )
    look(
        "--device",
        "/dev/fuse",
        "--device",
        "/dev/null:/dev/other:r",
        command="ls -l /dev/fuse /dev/other | cut -c1-10; echo x > /dev/other; head -c1 /dev/other; echo $?",
    )
    look("--init", command="ps -o args; cat /proc/1/comm; [ $$ != 1 ] && echo a child")
    look("--shm-size", "1m", "--ipc", "private", command="grep /dev/shm /proc/self/mountinfo | grep -o size=.*")
    look("--ipc", "host", command="mount | grep -c /dev/shm")
    look("--pid", "host", command="[ $$ -gt 1 ] && [ -d /proc/1 ] && echo the host\\'s processes")
    look("--uts", "host", command="cat /proc/sys/kernel/hostname")
    look("--cgroupns", "private", command="cut -d: -f3 /proc/self/cgroup | sort -u")
    look("--cgroupns", "host", command="cut -d: -f3 /proc/self/cgroup | sort -u")
    look("--oom-score-adj", "500", command="cat /proc/self/oom_score_adj")
    for how in ("ro", "rslave", "rshared", "ro,rprivate", "z"):
        look(
            "-v",
            f"/sys:/host-sys:{how}",
            command="grep /host-sys /proc/self/mountinfo | cut -d' ' -f5- | sed 's/:[0-9]*/:n/g' | sort",
        )
    look(
        "--mount",
        "type=tmpfs,destination=/m,tmpfs-size=65536,tmpfs-mode=0700",
        command="stat -c %a /m; grep ' /m ' /proc/self/mountinfo | cut -d' ' -f5-",
    )


def script_seccomp_profile(d: Recorder) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    path = Path(d.folder, "profile.json")
    path.write_text(json.dumps(profile))
    d("run", "--rm", "--security-opt", f"seccomp={path}", "small", "mkdir", "/x", code=1)
    d("run", "--rm", "small", "unshare", "-U", "true", code=1)
    d("run", "--rm", "--security-opt", "seccomp=unconfined", "small", "unshare", "-U", "true")


def script_volumes(d: Recorder) -> None:
    source = Path(d.folder, "source")
    source.mkdir(exist_ok=True)
    (source / "file").write_text("from outside\n")
    d("run", "--rm", "-v", f"{source}:/in", "small", "sh", "-c", "cat /in/file; echo more > /in/made")
    d.note("made", (source / "made").read_text())
    d("run", "--rm", "-v", f"{source}:/in:ro", "small", "touch", "/in/file", code=1)
    d("run", "--rm", "-v", f"{source}/file:/etc/one-file:ro", "small", "cat", "/etc/one-file", out="from outside\n")
    d("run", "--rm", "-v", f"{source}:/new/deep/place", "small", "ls", "/new/deep/place")
    d("volume", "create", "vol")
    d("run", "--rm", "-v", "vol:/data", "small", "sh", "-c", "cat /data/seed; stat -c %u /data; echo kept > /data/kept")
    d("run", "--rm", "-v", "vol:/elsewhere", "small", "ls", "/elsewhere")
    d("run", "--rm", "-v", "vol:/data:nocopy", "--user", "app", "small", "cat", "/data/kept", out="kept\n")
    running(d, "holder", "-v", "/anonymous")
    d("run", "--rm", "--volumes-from", "holder", "small", "sh", "-c", "touch /anonymous/x; ls /anonymous")
    d("rm", "-f", "-v", "holder")
    d("volume", "rm", "vol")


def script_cgroup_parent(d: Recorder) -> None:
    running(d, "below1", "--cgroup-parent", f"{d.cgroup}/below", "--cgroupns", "host")
    d("exec", "below1", "sh", "-c", "cut -d: -f2,3 /proc/self/cgroup | sort")
    d("rm", "-f", "below1")


def script_networks(d: Recorder) -> None:
    d("run", "--rm", "--network", "none", "small", "ip", "-o", "link", view=lambda out: re.sub(r"(?m)^\d+: ", "", out))
    running(
        d,
        "web",
        "-p",
        "127.0.0.1:18080:80",
        command=("sh", "-c", "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"),
    )
    d("exec", "web", "sh", "-c", "ip -o -4 addr | tr -s ' ' | cut -d' ' -f2-4; ip route; cat /etc/hosts")
    d("exec", "web", "ping", "-c1", "-W5", "172.17.0.1", view=lambda out: re.sub(r"[\d./]+ ms", "<ms>", out))
    d("run", "--rm", "--network", "container:web", "small", "wget", "-qO-", "http://127.0.0.1/", out="page\n")
    d("run", "--rm", "small", "wget", "-qO-", "http://172.17.0.2/", out="page\n")
    d("port", "web")
    d.note("through the published port", d.box.run("busybox", "wget", "-qO-", "http://127.0.0.1:18080/"))
    d("run", "--rm", "--pid", "container:web", "small", "ps", "-o", "args", view=lambda out: str("httpd" in out))
    d("rm", "-f", "web")
    d("network", "create", "--subnet", "10.213.0.0/24", "net1")
    running(d, "both", "--network", "net1", "--network-alias", "other-name", command=("httpd", "-f", "-h", "/data"))
    d("run", "--rm", "--network", "net1", "small", "wget", "-qO-", "http://other-name/seed", out="from the image\n")
    d("network", "connect", "bridge", "both")
    d("exec", "both", "sh", "-c", "ip -o -4 addr | tr -s ' ' | cut -d' ' -f2-4")
    d("network", "disconnect", "net1", "both")
    d("exec", "both", "sh", "-c", "ip -o -4 addr | tr -s ' ' | cut -d' ' -f2-4")
    d("rm", "-f", "both")
    d("network", "rm", "net1")
    d("run", "--rm", "--network", "host", "small", "sh", "-c", "ip -o link | grep -c docker0", out="1\n")


def script_health(d: Recorder) -> None:
    health = (
        "--health-cmd",
        "cat /tmp/healthy",
        "--health-interval",
        "1s",
        "--health-retries",
        "2",
        "--health-timeout",
        "5s",
    )
    running(d, "health1", *health)
    status = ("inspect", "health1", "--format", "{{.State.Health.Status}}")
    d(*status, out="starting\n")
    d.wait_for("unhealthy", *status, until=lambda out: out == "unhealthy\n")
    d("exec", "health1", "sh", "-c", "echo fine > /tmp/healthy")
    d.wait_for("healthy", *status, until=lambda out: out == "healthy\n")
    d("inspect", "health1", "--format", "{{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}{{end}}")
    d("rm", "-f", "health1")


def script_build(d: Recorder) -> None:
    folder = Path(d.folder, "build")
    folder.mkdir(exist_ok=True)
    (folder / "added").write_text("added\n")
    (folder / "Dockerfile").write_text(
        "FROM small\nARG WHAT=nothing\nENV A=b\nRUN echo $WHAT > /what && id -u >> /what && pwd >> /what\nWORKDIR /work\nCOPY added .\n"
        'RUN ["cat", "added"]\nUSER app\nRUN id > /tmp/id; cat /proc/self/status | grep CapEff\nCMD ["cat", "/what", "/tmp/id"]\n'
    )
    d("build", "--build-arg", "WHAT=this", "-t", "built", str(folder))
    d("run", "--rm", "built", out="this\n0\n/\nuid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n")
    d("build", "-q", "--network", "none", "--memory", "64m", "--no-cache", str(folder))
    (folder / "Dockerfile").write_text("FROM small\nRUN echo before; exit 3\n")
    d("build", str(folder), code=3)
    (folder / "Dockerfile").write_text('FROM small\nRUN ["no-such-program"]\n')
    d("build", str(folder), code=1, own=("executable file not found",))
    d("ps", "-a", "--format", "{{.Status}} {{.Command}}")
    d("image", "rm", "built", view=nothing)


def script_files(d: Recorder) -> None:
    folder = Path(d.folder, "copied")
    folder.mkdir(exist_ok=True)
    (folder / "in").write_text("in\n")
    running(d, "files1", command=("sh", "-c", "echo out > /tmp/out; rm /data/seed; exec sleep 1000"))
    d("cp", str(folder / "in"), "files1:/tmp/in")
    d("exec", "files1", "cat", "/tmp/in", out="in\n")
    d("cp", "files1:/tmp/out", str(folder / "out"))
    d.note("copied", (folder / "out").read_text())
    d("diff", "files1", view=lambda out: "\n".join(sorted(out.splitlines())))
    d("pause", "files1")
    d("cp", str(folder / "in"), "files1:/tmp/in2")
    d("unpause", "files1")
    d("commit", "-c", "CMD cat /tmp/in2", "files1", "committed")
    d("run", "--rm", "committed", out="in\n")
    d("rm", "-f", "files1")
    d("image", "rm", "committed", view=nothing)


def script_events(d: Recorder) -> None:
    now = ("info", "--format", "{{.SystemTime}}")
    begin = d.quiet(*now).stdout.strip()
    running(d, "ev")
    d("exec", "ev", "true")
    d("pause", "ev")
    d("unpause", "ev")
    d("update", "--memory", "64m", "--memory-swap", "64m", "ev")
    d("stop", "-t", "0", "ev")
    d("rm", "ev")
    end = d.quiet(*now).stdout.strip()
    words = ("--filter", "container=ev", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes}}")
    d("events", "--since", begin, "--until", end, *words)
