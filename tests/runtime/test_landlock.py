"""Landlock by the annotation org.knarr.landlock: what the program, and what descends from it, may no longer do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from blackbox import Bundle, Runtime, command_for_others, left_behind, needs_busybox, needs_root, run_to_files

from knarr.kernel.landlock import landlock_version

VERSION = landlock_version()
pytestmark = [
    needs_busybox,
    needs_root,
    pytest.mark.skipif(VERSION < 3, reason=f"this kernel has Landlock {VERSION or 'not at all'}, these rules take 3"),
]
BASIS: list[dict[str, Any]] = [
    {"path": "/bin", "access": ["read", "execute"]},
    {"path": "/dev/null", "access": ["read_file", "write_file"]},
    {"path": "/tmp", "access": ["read", "write"]},
]


def ruled(bundle: Bundle, **rules: Any) -> Bundle:
    bundle.config["annotations"] = {"org.knarr.landlock": json.dumps(rules)}
    return bundle


def run(runtime: Runtime, bundle: Bundle, script: str) -> subprocess.CompletedProcess[str]:
    return runtime("run", "--bundle", bundle.write("sh", "-c", script), runtime.new_id())


def test_paths(ours: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "etc/secret").write_text("secret\n")
    (bundle.rootfs / "etc/open").write_text("open\n")
    ruled(bundle, paths=[*BASIS, {"path": "/etc/open", "access": ["read"]}])
    script = """
        cat /etc/open; cat /etc/secret; echo x >/etc/open; ls /etc; echo y >/tmp/y && cat /tmp/y
        mkdir /tmp/d && rm -r /tmp/d /tmp/y && touch /x; /bin/true && echo runs; ls /proc/self/fd
    """
    done = run(ours, bundle, script)
    assert done.stdout.split() == ["open", "y", "runs"], done
    for refused in ("'/etc/secret'", "/etc/open", "/etc", "/x", "/proc/self/fd"):
        assert any(refused in line and "ermission denied" in line for line in done.stderr.splitlines()), (refused, done)


def test_it_is_inherited_and_exec_has_it_too(ours: Runtime, bundle: Bundle) -> None:
    ruled(bundle, paths=BASIS)
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    ours.ok("start", id)
    done = ours("exec", id, "sh", "-c", "sh -c 'ls /etc; ls /; true'; echo z >/tmp/z; cat /tmp/z")
    assert done.stdout == "z\n"
    assert done.stderr.count("ermission denied") == 2, done.stderr


def test_without_no_new_privs_root_needs_its_capability_only_until_then(ours: Runtime, bundle: Bundle) -> None:
    bundle.config["process"]["noNewPrivileges"] = False
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    done = run(ours, ruled(bundle, paths=BASIS), "ls /etc; echo z >/tmp/z && cat /tmp/z; id -u")
    assert done.stdout.split() == ["z", "0"]
    assert "ermission denied" in done.stderr


def test_a_filter_that_knows_nothing_of_landlock_is_no_hindrance(ours: Runtime, bundle: Bundle) -> None:
    names = ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]
    rule = {"names": names, "action": "SCMP_ACT_KILL_PROCESS"}
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert run(ours, ruled(bundle, paths=BASIS), "echo runs").stdout == "runs\n"


def greet(server: socket.socket) -> None:
    """Let everybody in and go."""
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


@pytest.mark.skipif(VERSION < 4, reason="TCP ports take Landlock 4 (Linux 6.7)")
def test_ports(ours: Runtime, bundle: Bundle) -> None:
    for name in ("nc", "timeout"):
        (bundle.rootfs / "bin" / name).symlink_to("busybox")
    spaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [entry for entry in spaces if entry["type"] != "network"]
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        for server in (one, two):
            threading.Thread(target=greet, args=(server,), daemon=True).start()
        open_port, shut = one.getsockname()[1], two.getsockname()[1]
        ruled(bundle, ports=[{"port": open_port, "access": ["connect"]}])
        script = f"""
            nc -w 2 127.0.0.1 {open_port} </dev/null && echo connected
            nc -w 2 127.0.0.1 {shut} </dev/null && echo wrong
            timeout 1 nc -l -p 0 && echo wrong; cat /etc/no; true
        """
        done = run(ours, bundle, script)
    assert done.stdout == "connected\n", done
    assert done.stderr.count("ermission denied") == 2, done.stderr
    assert "/etc/no': No such file" in done.stderr, "without paths, files are not restricted"


@pytest.mark.skipif(VERSION < 6, reason="scopes take Landlock 6 (Linux 6.12)")
def test_scopes(ours: Runtime, bundle: Bundle) -> None:
    ruled(bundle, scopes=["signal", "abstract-unix-socket"])
    id = ours.new_id()
    ours.ok("create", "--bundle", bundle.write("sleep", "60"), id)
    ours.ok("start", id)
    # The two are siblings: each has its own domain.
    done = ours("exec", id, "sh", "-c", "kill -0 1 || echo refused; kill -0 $$ && echo itself")
    assert done.stdout.split() == ["refused", "itself"]


def test_optional_paths(ours: Runtime, bundle: Bundle) -> None:
    missing = {"path": "/no/such", "access": ["read"]}
    done = run(ours, ruled(bundle, paths=[*BASIS, missing]), "echo runs")
    assert done.returncode == 1
    said = "config.json /annotations/org.knarr.landlock: make a Landlock rule for /no/such: no such file or directory"
    assert said in done.stderr
    assert run(ours, ruled(bundle, paths=[*BASIS, {**missing, "optional": True}]), "echo runs").stdout == "runs\n"


@pytest.mark.parametrize("verb", ["run", "start"])
def test_a_program_that_may_not_be_executed(verb: str, ours: Runtime, bundle: Bundle) -> None:
    ruled(bundle, paths=BASIS[1:]).write("sh", "-c", "true")
    id = ours.new_id()
    if verb == "start":
        ours.ok("create", "--bundle", str(bundle.path), id)
        done = ours("start", id)
    else:
        done = ours("run", "--bundle", str(bundle.path), id)
        assert left_behind(ours, id) == []
    assert done.returncode == 1
    assert "permission denied: /bin/sh" in done.stderr
    assert "Landlock rules must let it execute" in done.stderr


def test_an_ordinary_user() -> None:
    """Without any capability: no_new_privs is enough."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), 65534
        folder.chmod(0o755)
        bundle = ruled(Bundle(folder / "bundle"), paths=BASIS)
        config = bundle.config
        spaces = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "network"]
        config["linux"]["namespaces"] = [*spaces, {"type": "user"}]
        for side in ("uidMappings", "gidMappings"):
            config["linux"][side] = [{"containerID": 0, "hostID": user, "size": 1}]
        del config["linux"]["resources"]
        config["mounts"] = [config["mounts"][0]]
        config["process"]["capabilities"] = {}
        (bundle.rootfs / "dev/null").touch()
        (folder / "run").mkdir()
        bundle.write("sh", "-c", "ls /etc; echo z >/tmp/z; cat /tmp/z")
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
        assert done.stdout == "z\n", done
        assert "ermission denied" in done.stderr


def test_rules_that_are_none_are_told_all_at_once(ours: Runtime, bundle: Bundle) -> None:
    ruled(bundle, paths=[{"path": "etc", "access": ["read"]}, {"path": "/etc", "access": ["fly"]}])
    done = run(ours, bundle, "true")
    assert done.returncode == 1
    assert "/annotations/org.knarr.landlock: /paths/0/path: must be an absolute path" in done.stderr
    assert "/annotations/org.knarr.landlock: /paths/1/access/0: 'fly' is no access to a path" in done.stderr
