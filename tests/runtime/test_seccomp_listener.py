"""SCMP_ACT_NOTIFY: the listener and the container process state reach listenerPath, and who listens decides.

Who listens here is a thread that answers mkdir: it lets /allowed be made by the container's own call, says that
/pretended was made, and answers all others with EXFULL.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

import pytest
from blackbox import Bundle, Runtime, command_for_others, left_behind, needs_busybox, needs_root, run_to_files

pytestmark = [needs_busybox, needs_root]

RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1  # seccomp_unotify(2)
NOTICE = struct.Struct("<QIIiIQ6Q")
MKDIRS = {"x86_64": (83,), "aarch64": ()}[os.uname().machine] + ({"x86_64": 258, "aarch64": 34}[os.uname().machine],)


class Agent:
    """A listener; ``states`` are the documents it was sent, ``calls`` (pid, number, path) it decided on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: list[dict[str, Any]] = []
        self.calls: list[tuple[int, int, str]] = []
        self.arrived = threading.Event()
        self.sock = socket.socket(socket.AF_UNIX)
        directory = os.open(path.parent, os.O_PATH)
        self.sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        self.sock.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            data, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(16))
            while (document := self.document(data)) is None:  # runc keeps the connection open
                data += connection.recv(1 << 20)
            connection.close()
            fds = array.array("i")
            for level, kind, rights in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                fds.frombytes(rights)
            assert len(fds) == len(document["fds"])
            self.states.append(document)
            self.arrived.set()
            threading.Thread(target=self.serve, args=(fds[document["fds"].index("seccompFd")],), daemon=True).start()

    @staticmethod
    def document(data: bytes) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(data)
        except ValueError:
            return None
        return found

    def serve(self, fd: int) -> None:
        while True:
            notice = bytearray(80)
            try:
                fcntl.ioctl(fd, RECEIVE, notice)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                os.close(fd)
                return
            id, pid, _, number, _, _, *args = NOTICE.unpack(notice[:80])
            path = self.text(pid, args[0] if number == 83 else args[1])
            self.calls.append((pid, number, path))
            answer, flags = -errno.EXFULL, 0
            if path == "/allowed":
                answer, flags = 0, CONTINUE
            elif path == "/pretended":
                answer = 0
            try:
                fcntl.ioctl(fd, SEND, struct.pack("<QqiI", id, 0, answer, flags))
            except OSError:
                pass  # the process was killed meanwhile

    @staticmethod
    def text(pid: int, address: int) -> str:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(64).split(b"\0")[0].decode()


def profile(path: Path, *names: str, **more: Any) -> dict[str, Any]:
    rule = {"names": [*names], "action": "SCMP_ACT_NOTIFY"}
    return {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(path), "syscalls": [rule], **more}


SCRIPT = "mkdir /allowed; mkdir /pretended && echo pretended; mkdir /refused; ls -d /allowed /pretended"


def test_the_listener_decides(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.sock") as agent:
        bundle.config["linux"]["seccomp"] = profile(agent.path, "mkdir", "mkdirat", listenerMetadata="of the test")
        bundle.config["annotations"] = {"org.example.a": "b"}
        id = runtime.new_id()
        done = runtime("run", "--bundle", bundle.write("sh", "-c", SCRIPT), id)
        assert done.stdout.split("\n")[:2] == ["pretended", "/allowed"], done
        assert "/pretended: No such file or directory" in done.stderr
        assert "'/refused': " in done.stderr
        (state,) = agent.states
        assert state["ociVersion"]
        assert state["fds"] == ["seccompFd"]
        assert state["metadata"] == "of the test"
        assert state["state"]["id"] == id
        assert state["state"]["status"] in ("creating", "created")
        assert state["state"]["pid"] == state["pid"]
        assert os.path.realpath(state["state"]["bundle"]) == os.path.realpath(bundle.path)
        assert state["state"]["annotations"]["org.example.a"] == "b"
        assert [call[2] for call in agent.calls] == ["/allowed", "/pretended", "/refused"]
    assert left_behind(runtime, id) == []


def test_create_start_and_exec(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.sock") as agent:
        bundle.config["linux"]["seccomp"] = profile(agent.path, "mkdir", "mkdirat")
        id = runtime.new_id()
        runtime.ok("create", "--bundle", bundle.write("sleep", "60"), id)
        runtime.ok("start", id)
        assert agent.arrived.wait(10)
        assert agent.states[0]["pid"] == runtime.state(id)["pid"]
        agent.arrived.clear()
        done = runtime("exec", id, "sh", "-c", "mkdir /pretended && echo yes; mkdir /other")
        assert done.stdout == "yes\n", done
        assert len(agent.states) == 2
        assert agent.states[1]["state"]["id"] == id
        assert agent.states[1]["state"]["status"] == "running"
        if runtime.name == "crun" and agent.states[1]["pid"] == 0:
            pytest.skip("this crun does not say which process it is")
        assert agent.states[1]["pid"] != agent.states[1]["state"]["pid"]


# All the calls our own init could make between the filter and the program; runc and crun cannot do without some.
AWKWARD = ("sendmsg", "recvmsg", "read", "close", "exit", "exit_group", "futex", "execve", "ppoll", "sched_yield")


@pytest.mark.parametrize("new_privs", [False, True])
def test_the_runtime_itself_waits_for_nobody(new_privs: bool, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """bypass4netns asks about sendmsg, close and exit_group, too."""

    class Yes(Agent):
        @staticmethod
        def text(_pid: int, _address: int) -> str:
            return "/allowed"

    with Yes(tmp_path / "agent.sock") as agent:
        bundle.config["linux"]["seccomp"] = profile(agent.path, *AWKWARD)
        bundle.config["process"]["noNewPrivileges"] = not new_privs
        assert ours.ok("run", "--bundle", bundle.write("cat", "/proc/self/cmdline"), ours.new_id())
        execve = {"x86_64": 59, "aarch64": 221}[os.uname().machine]
        assert agent.calls[0][1] == execve, "the init made another call before"


@pytest.mark.parametrize("verb", ["run", "start", "exec"])
def test_nobody_listens(verb: str, ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    missing = tmp_path / "nobody.sock"
    bundle.config["linux"]["seccomp"] = profile(missing, "mkdir")
    id = ours.new_id()
    bundle.write("sleep", "60")
    if verb == "run":
        done = ours("run", "--bundle", str(bundle.path), id)
    elif verb == "start":
        ours.ok("create", "--bundle", str(bundle.path), id)
        done = ours("start", id)
    else:
        with Agent(missing):
            ours.ok("create", "--bundle", str(bundle.path), id)
            ours.ok("start", id)
        missing.unlink()
        done = ours("exec", id, "true")
    assert done.returncode != 0
    said = f"config.json /linux/seccomp/listenerPath: send the listener to {missing}: no such file or directory"
    assert said in done.stderr
    if verb == "run":
        assert left_behind(ours, id) == []
    else:
        ours.wait_for(id, "running" if verb == "exec" else "stopped")


def test_flags_that_belong_to_a_listener(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.sock") as agent:
        flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]
        bundle.config["linux"]["seccomp"] = profile(agent.path, "mkdir", "mkdirat", flags=flags)
        done = ours("run", "--bundle", bundle.write("sh", "-c", SCRIPT), ours.new_id())
        numbers = tuple(int(part) for part in os.uname().release.split(".")[:2])
        if numbers < (5, 19):
            assert "WAIT_KILLABLE_RECV came with Linux 5.19" in done.stderr
        else:
            assert done.stdout.split("\n")[:2] == ["pretended", "/allowed"], done


def test_a_path_longer_than_a_sockets_name_and_a_long_document(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with Agent(folder / "agent.sock") as agent:
        seccomp = profile(agent.path, "mkdir", "mkdirat", listenerMetadata="m" * 500_000)
        bundle.config["linux"]["seccomp"] = seccomp
        ours("run", "--bundle", bundle.write("sh", "-c", SCRIPT), ours.new_id())
        assert agent.states[0]["metadata"] == "m" * 500_000
        assert agent.calls


def test_without_a_rule_that_notifies_nobody_is_told(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.sock") as agent:
        seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(agent.path)}
        bundle.config["linux"]["seccomp"] = seccomp
        runtime.ok("run", "--bundle", bundle.write("true"), runtime.new_id())
        if runtime.name == "crun" and agent.states:
            pytest.skip("this crun sends a listener that will never have anything to do")
        assert agent.states == []


def test_for_an_ordinary_user() -> None:
    """Nothing is traced, so what an ordinary user may do is enough (PTRACE_MODE_ATTACH would not be given)."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), 65534
        folder.chmod(0o755)
        bundle = Bundle(folder / "bundle")
        config = bundle.config
        spaces = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "network"]
        config["linux"]["namespaces"] = [*spaces, {"type": "user"}]
        for side in ("uidMappings", "gidMappings"):
            config["linux"][side] = [{"containerID": 0, "hostID": user, "size": 1}]
        del config["linux"]["resources"]
        config["mounts"] = [config["mounts"][0]]
        (folder / "run").mkdir()
        with Agent(folder / "agent.sock") as agent:
            config["linux"]["seccomp"] = profile(agent.path, "mkdir", "mkdirat", "sendmsg")
            bundle.write("sh", "-c", SCRIPT)
            for top, names, files in os.walk(folder):
                for each in (*names, *files, "."):
                    os.chown(f"{top}/{each}", user, user, follow_symlinks=False)
            done = run_to_files(
                [*command_for_others(folder), "--root", f"{folder}/run/k", "run", "--bundle", str(bundle.path), "x"],
                user=user,
                group=user,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                timeout=30,
                env={"PATH": os.environ["PATH"]},
            )
        assert done.stdout.split("\n")[:2] == ["pretended", "/allowed"], done
        assert len(agent.states) == 1


def test_the_program_has_no_descriptor_of_it(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.sock") as agent:
        bundle.config["linux"]["seccomp"] = profile(agent.path, "mkdir")
        seen = ours.ok("run", "--bundle", bundle.write("ls", "/proc/self/fd"), ours.new_id())
    assert seen.split() == ["0", "1", "2", "3"]  # 3 is ls's own
