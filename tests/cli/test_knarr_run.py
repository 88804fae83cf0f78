"""``knarr run``, black box, as root and as ordinary users."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import enginekit
import pytest

from knarr.kernel.landlock import landlock_version

if TYPE_CHECKING:
    import subprocess

    from enginekit import Person


def out(done: subprocess.CompletedProcess[bytes], code: int = 0) -> str:
    """Standard output of a run that ended as it should, with nothing on standard error."""
    assert (done.returncode, done.stderr.decode()) == (code, "")
    return done.stdout.decode()


def sentence(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> str:
    """The one sentence of a run that failed."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert text.startswith("knarr")
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert word in text, text
    return text


def seen(person: Person, image: str, field: str, *words: str) -> str:
    """A field of /proc/self/status in a container run with these options."""
    status = out(person.knarr("run", "--rm", *words, image, "cat", "/proc/self/status"))
    return next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))


def test_output_and_exit_code(person: Person, image: str) -> None:
    assert out(person.knarr("run", "--rm", image, "echo", "-n", "hello")) == "hello"
    assert out(person.knarr("run", "--rm", image, "sh", "-c", "exit 42"), 42) == ""
    assert out(person.knarr("run", "--rm", image, "sh", "-c", "kill -TERM $$; exit 9"), 9) == ""  # pid 1 ignores it
    both = person.knarr("run", "--rm", image, "--", "sh", "-c", "echo o; echo e >&2")
    assert (both.stdout, both.stderr) == (b"o\n", b"e\n")


def test_what_the_program_sees(person: Person, image: str) -> None:
    """P-2: the posture from inside."""
    status = out(person.knarr("run", "--rm", image, "cat", "/proc/self/status"))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["CapInh"] == fields["CapAmb"] == "0" * 16
    expected = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18))
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == expected
    assert fields["Pid"] == "1"
    look = out(
        person.knarr(
            "run", "--rm", "--hostname", "box", image, "sh", "-c",
            "hostname; cat /etc/hostname; grep -c box /etc/hosts; umask; ulimit -n; pwd; ls /proc/self/fd | wc -l",
        )
    )  # fmt: skip
    assert look.split() == ["box", "box", "1", "0022", "1024", "/", "4"]
    script = (
        "cat /proc/keys /proc/timer_list; ls /sys/firmware; (echo x > /proc/sysrq-trigger) 2>/dev/null || echo refused"
    )
    assert out(person.knarr("run", "--rm", image, "sh", "-c", script)) == "refused\n"


def test_input(person: Person, image: str) -> None:
    assert out(person.knarr("run", "--rm", "-i", image, "cat", input=b"typed\n")) == "typed\n"
    assert out(person.knarr("run", "--rm", image, "cat", input=b"typed\n")) == ""  # without -i: nothing


def test_environment_user_and_directory(person: Person, image: str) -> None:
    (person.folder / "vars").write_text("FILE=1\nBOTH=file\n")
    words = ["-e", "A=1", "-e", "TAKEN", "-e", "UNSET", "-e", "BOTH=option", "--env-file", str(person.folder / "vars")]
    done = person.knarr("run", "--rm", *words, "-w", "/data", image, "sh", "-c", "env; pwd", env={"TAKEN": "t"})
    lines = set(out(done).splitlines())
    assert {"A=1", "TAKEN=t", "FILE=1", "BOTH=option", "FROM=image", "/data", "container=knarr"} <= lines
    assert not any(line.startswith("UNSET") for line in lines)
    if person.kind in ("root", "nobody-subids"):
        assert out(person.knarr("run", "--rm", "-u", "app", image, "id")) == (
            "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)\n"
        )
        assert out(person.knarr("run", "--rm", "-u", "7:8", image, "id")).startswith("uid=7 gid=8")
    else:
        sentence(person.knarr("run", "--rm", "-u", "app", image, "id"), 125, "1000")


def test_entrypoint(me: Person, image: str) -> None:
    assert out(me.knarr("run", "--rm", "--entrypoint", "echo", image, "a", "b")) == "a b\n"
    assert out(me.knarr("run", "--rm", "--entrypoint", '["echo", "x"]', image, "y")) == "x y\n"
    assert out(me.knarr("run", "--rm", "--entrypoint", "", image, "echo", "z")) == "z\n"
    sentence(me.knarr("run", "--entrypoint", "", image), 125, "no command")


def test_files(person: Person, image: str) -> None:
    shared = person.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "seen").write_text("by the host\n")
    words = ["-v", f"{shared}:/s", "--mount", f"type=bind,source={shared},target=/r,readonly", "--tmpfs", "/t:size=1m"]
    script = "cat /s/seen /r/seen; echo back > /s/made; touch /r/x || echo refused; touch /t/x && df -k /t | tail -1"
    text = person.knarr("run", "--rm", *words, image, "sh", "-c", script).stdout.decode().split("\n")
    assert text[:3] == ["by the host", "by the host", "refused"]
    assert text[3].split()[1] == "1024"
    assert (shared / "made").read_text() == "back\n"
    ro = person.knarr(
        "run", "--rm", "--read-only", "--tmpfs", "/tmp", image, "sh", "-c", "touch /x || touch /tmp/x && echo yes"
    )
    assert ro.stdout == b"yes\n"


def test_volumes_of_the_image_keep_their_files(person: Person, image: str) -> None:
    script = "cat /data/file; echo more > /data/new; echo f > /fresh/f; grep -c -e ' /data ' -e ' /fresh ' /proc/mounts"
    for _ in range(2):  # the second finds what the image has, not what the first wrote
        assert out(person.knarr("run", "--rm", image, "sh", "-c", "ls /data /fresh; " + script)) == (
            "/data:\nfile\n\n/fresh:\nof the image\n2\n"
        )
    assert (
        out(person.knarr("run", "--rm", "--read-only", image, "sh", "-c", "echo x > /data/y && cat /data/y")) == "x\n"
    )


def test_links_of_the_image_lead_nowhere(person: Person) -> None:
    """R-13, E-6, E-7: where the engine puts files and makes directories, the image has links that lead out of it."""
    victim = person.folder / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    (victim / "f").write_text("keep")
    folder = enginekit.new_folder()
    try:
        reference = enginekit.layout(
            folder / "image",
            links={"etc/hosts": f"{victim}/f", "etc/hostname": f"../..{victim}/new", "etc/resolv.conf": "loop",
                   "etc/loop": "/etc/loop", "etc/passwd": f"{victim}/f", "l": str(victim)},
            WorkingDir="/l/made",
            Volumes={"/l/volume": {}},
        )  # fmt: skip
        done = person.knarr("run", "--rm", reference, "sh", "-c", "pwd; cat /etc/hosts /etc/passwd")
        assert b"keep" not in done.stdout
        assert b"Traceback" not in done.stderr
    finally:
        enginekit.remove_folder(folder)
    assert [path.name for path in victim.iterdir()] == ["f"]
    assert (victim / "f").read_text() == "keep"


def test_network(person: Person, image: str) -> None:
    names = out(person.knarr("run", "--rm", image, "ls", "/sys/class/net"))
    assert names.split() == ["lo"]
    assert out(person.knarr("run", "--rm", image, "cat", "/etc/resolv.conf")) == ""
    host = out(person.knarr("run", "--rm", "--network", "host", image, "readlink", "/proc/self/ns/net")).strip()
    assert host == os.readlink("/proc/self/ns/net")
    resolv = Path("/etc/resolv.conf")
    if resolv.exists():
        assert (
            out(person.knarr("run", "--rm", "--network", "host", image, "cat", "/etc/resolv.conf"))
            == resolv.read_text()
        )


def test_limits(person: Person, image: str) -> None:
    if person.rootless and person.kind != "self":
        for words in (["--memory", "64m"], ["--cpus", "1"], ["--pids-limit", "5"]):
            sentence(person.knarr("run", *words, image, "true"), 125, words[0], "cannot be kept")
        return
    if person.kind == "self":
        pytest.skip("whether this user may limit anything depends on the machine")
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done; echo"
    done = person.knarr("run", "--rm", "--pids-limit", "5", image, "sh", "-c", script)
    assert b"can't fork" in done.stderr
    done = person.knarr(
        "run", "--rm", "--memory", "16m", image, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"
    )
    assert done.returncode == 137
    assert out(person.knarr("run", "--rm", "--memory", "64m", "--cpus", "0.5", image, "echo", "fine")) == "fine\n"


def test_ulimit_and_shm(person: Person, image: str) -> None:
    assert (
        out(person.knarr("run", "--rm", "--ulimit", "nofile=100:200", image, "sh", "-c", "ulimit -Sn; ulimit -Hn"))
        == "100\n200\n"
    )
    size = out(person.knarr("run", "--rm", "--shm-size", "1m", image, "sh", "-c", "df -k /dev/shm | tail -1"))
    assert size.split()[1] == "1024"


def test_security_options(person: Person, image: str) -> None:
    assert seen(person, image, "CapEff", "--cap-drop", "ALL") == "0" * 16
    assert seen(person, image, "CapEff", "--cap-drop", "all", "--cap-add", "chown,kill") == f"{0x21:016x}"
    off = ["--security-opt", "seccomp=unconfined", "--allow-new-privs"]
    assert (seen(person, image, "NoNewPrivs", *off), seen(person, image, "Seccomp", *off)) == ("0", "0")
    profile = person.folder / "p.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    done = person.knarr("run", "--rm", "--security-opt", f"seccomp={profile}", image, "mkdir", "/x")
    assert b"Input/output error" in done.stderr
    sentence(person.knarr("run", "--security-opt", "apparmor=nosuch", image, "true"), 125, "nosuch")


@pytest.mark.skipif(landlock_version() < 3, reason="this kernel has no Landlock, or an old one")
def test_landlock(person: Person, image: str) -> None:
    rules = person.folder / "rules.json"
    paths = [{"path": "/", "access": ["read", "execute"]}, {"path": "/tmp", "access": ["read", "write"]}]
    rules.write_text(json.dumps({"paths": paths}))
    script = "touch /tmp/x && echo made; touch /x"
    words = ("run", "--rm", "--security-opt", f"landlock={rules}", image, "sh", "-c", script)
    done = person.knarr(*words)
    assert done.stdout == b"made\n", done
    assert b"/x: Permission denied" in done.stderr
    rules.write_text("{}")
    sentence(person.knarr(*words), 125, "org.knarr.landlock", "paths, ports or scopes")


def test_privileged(person: Person, image: str) -> None:
    assert seen(person, image, "NoNewPrivs", "--privileged") == "0"
    assert seen(person, image, "Seccomp", "--privileged") == "0"
    done = person.knarr("run", "--rm", "--privileged", image, "sh", "-c", "mount -t tmpfs t /tmp && echo ok")
    assert done.stdout == b"ok\n", done.stderr
    assert b"ok" not in person.knarr("run", "--rm", image, "mount", "-t", "tmpfs", "t", "/tmp").stdout


def test_a_container_without_rm_stays(person: Person, image: str) -> None:
    assert out(person.knarr("run", "--name", "kept", "-l", "k=v", image, "sh", "-c", "exit 5"), 5) == ""
    row = json.loads(out(person.knarr("ps", "-a", "--format", "json")))[0]
    assert (row["Name"], row["State"], row["ExitCode"], row["Labels"]) == ("kept", "exited", 5, {"k": "v"})
    assert out(person.knarr("ps")).splitlines()[1:] == []
    sentence(person.knarr("run", "--name", "kept", image), 125, "kept already exists", "knarr rm kept")
    assert out(person.knarr("rm", "kept")) == "kept\n"
    assert json.loads(out(person.knarr("ps", "-a", "--format", "json"))) == []


def test_programs_that_cannot_run(person: Person, image: str) -> None:
    sentence(person.knarr("run", "--rm", image, "nosuch"), 127, "nosuch")
    sentence(person.knarr("run", "--rm", image, "/etc/passwd"), 126, "permission denied")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "nobody"], "user nobody does not exist; there is root, app"),
        (["-u", "+0"], "neither a name nor an id"),
        (["-u", "4294967295"], "not a number"),
        (["-v", "/tmp:/proc"], "would cover /proc"),
        (["-v", "/nonexistent:/x"], "no such file"),
        (["-v", "name:/x"], "name of a volume"),
        (["--tmpfs", "/a", "--tmpfs", "/a/"], "two mounts"),
        (["--network", "moon"], "none, host, private, slirp4netns, pasta"),
        (["--memory", "many"], "is not a size"),
        (["--cap-add", "FLY"], "FLY"),
        (["--pull", "sometimes"], "pull policy"),
        (["--platform", "linux"], "linux"),
        (["--platform", "windows/amd64"], "linux/"),
        (["--name", "../x"], "../x"),
        (["--hostname", "a b"], "host name"),
        (["--ulimit", "x=1"], "NAME=SOFT"),
        (["--security-opt", "seccomp=/nonexistent"], "/nonexistent"),
        (["--sysctl", "kernel.core_pattern=x"], "core_pattern"),
        (["--sysctl", "net.ipv4.ip_forward"], "KEY=VALUE"),
        (["--host-show", "/root"], "host: only"),
        (["-w", "relative"], "absolute"),
        (["-e", "A B=1"], "not the name of a variable"),
        (["--env-file", "/nonexistent"], "/nonexistent"),
        (["--annotation", "=x"], "KEY=VALUE"),
        (["--shm-size", "-1"], "not a size"),
        (["--pids-limit", "0"], "above 0"),
    ],
)
def test_mistakes(words: list[str], said: str, me: Person, image: str) -> None:
    sentence(me.knarr("run", *words, image, "true"), 125, said)


def test_usage(me: Person) -> None:
    sentence(me.knarr("run"), 125, "IMAGE", "knarr run --help")
    sentence(me.knarr("run", "--nosuch", "x", "y"), 125, "--nosuch")
    assert b"examples:" in me.knarr("run", "--help").stdout


def wait_for(person: Person, name: str) -> None:
    """Until a container runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if name in person.knarr("ps", "--format", "{{.Name}}").stdout.decode().split():
            return
        time.sleep(0.05)
    pytest.fail(f"{name} does not run")


@pytest.mark.parametrize(
    ("number", "script", "code"),
    [
        (signal.SIGTERM, "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.05; done", 3),
        (signal.SIGINT, "echo up; exec sleep 100", 130),  # a pid 1 would never notice: it is ended all the same
        (signal.SIGTERM, "echo up; exec sleep 100", 143),
        (signal.SIGUSR1, "trap 'echo got; exit 4' USR1; echo up; while :; do sleep 0.05; done", 4),
    ],
)
def test_signals_are_passed_on(number: int, script: str, code: int, person: Person, image: str) -> None:
    run = person.start("run", "--rm", image, "sh", "-c", script)
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    # Until it has become sleep the shell catches SIGINT; what comes between that and its exec is lost, as with any pid 1.
    time.sleep(0.5)
    run.send_signal(number)
    rest, errors = run.communicate(timeout=20)
    assert (run.returncode, errors) == (code, b"")
    assert rest == (b"got\n" if code < 100 else b"")


def test_killed_waiter(person: Person, image: str) -> None:
    """SIGKILL of ``knarr run``: the container goes on, can be seen, entered and removed."""
    run = person.start("run", "--name", "orphan", image, "sleep", "100", stdout=DEVNULL, stderr=DEVNULL)
    wait_for(person, "orphan")
    run.kill()
    run.wait(timeout=10)
    assert out(person.knarr("exec", "orphan", "echo", "alive")) == "alive\n"
    assert out(person.knarr("rm", "-f", "orphan")) == "orphan\n"
    assert json.loads(out(person.knarr("ps", "-a", "--format", "json"))) == []


def test_killed_waiter_of_a_container_that_was_to_go(person: Person, image: str) -> None:
    run = person.start("run", "--rm", "--name", "orphan", image, "sleep", "100", stdout=DEVNULL, stderr=DEVNULL)
    wait_for(person, "orphan")
    run.kill()
    run.wait(timeout=10)
    assert out(person.knarr("kill", "orphan")) == "orphan\n"
    deadline = time.monotonic() + 10
    while json.loads(out(person.knarr("ps", "-a", "--format", "json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert json.loads(out(person.knarr("ps", "-a", "--format", "json"))) == []  # nobody waits for it: it was swept


def test_host_image(person: Person) -> None:
    script = "echo $0; ls -d /usr /etc; ls /home /root /run; test -e /etc/shadow || echo hidden; echo w > /etc/made; cat /etc/made"
    lines = out(person.knarr("run", "host:", "--", "/bin/sh", "-c", script)).splitlines()
    assert lines[:3] == ["/bin/sh", "/etc", "/usr"]
    assert lines[-2:] == ["hidden", "w"]
    assert not Path("/etc/made").exists()
    assert json.loads(out(person.knarr("ps", "-a", "--format", "json"))) == []
    names = out(person.knarr("run", "host:", "--", "/bin/sh", "-c", "hostname; grep -c $(hostname) /etc/hosts")).split()
    assert len(names[0]) == 12  # not this machine's name: a prompt shall tell where one is
    assert names[1] == "1"
    assert out(person.knarr("run", "--network", "host", "host:", "hostname")).strip() == os.uname().nodename
    sentence(person.knarr("run", "--host-show", "/etc/hosts", "host:", "true"), 125, "not hidden")
    sentence(person.knarr("run", "--platform", "linux/arm64", "host:", "true"), 125, "--platform")


def test_host_show(me: Person) -> None:
    (me.folder / "x").write_text("x")
    hidden = me.knarr("run", "host:", "test", "-e", str(me.folder / "x"))
    assert hidden.returncode == 1  # /tmp is empty
    if os.stat("/tmp").st_dev != os.stat("/").st_dev:
        pytest.skip("/tmp is a file system of its own here, which host: does not show")
    for _ in range(5):
        shown = me.knarr("run", "--host-show", "/tmp", "host:", "test", "-e", str(me.folder / "x"))
        if b"no such file" not in shown.stderr:
            break  # else another test's directory in /tmp went while the mounts were made
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_a_root_by_copy(person: Person, image: str) -> None:
    """Where overlayfs cannot be used."""
    env = {"KNARR_DRIVER": "copy"}
    script = "cat /data/file; echo x > /data/new; touch /new; while read a b c; do [ $b = / ] && echo $c; done < /proc/mounts"
    text = person.knarr("run", "--rm", image, "sh", "-c", script, env=env).stdout.decode()
    assert text.startswith("of the image\n")
    assert "overlay" not in text
    sentence(person.knarr("run", "--rm", image, env={"KNARR_DRIVER": "magic"}), 125, "magic")


def test_bundle(person: Person, image: str) -> None:
    folder = person.folder / "b"
    assert out(person.knarr("bundle", "-e", "A=1", image, str(folder), "--", "sh", "-c", "echo $A")) == f"{folder}\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["ociVersion"] == "1.0.2"
    assert (folder / "rootfs/bin/busybox").exists()
    assert out(person.knarr("run", "--rm", f"bundle:{folder}")) == "1\n"
    sentence(person.knarr("bundle", image, str(folder)), 125, "not empty")
    sentence(person.knarr("bundle", "-u", "nosuch", image, str(person.folder / "c")), 125, "nosuch")
    assert not (person.folder / "c").exists()
