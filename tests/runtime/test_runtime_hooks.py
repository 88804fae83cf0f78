"""Hooks in the runtime's namespaces: what they get, how they end, what is left of them (docs/security.md I7)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from knarr.base.errors import HookError, Interrupted, KnarrError
from knarr.runtime.hooks import KEEP, run_hook, run_hooks
from knarr.runtime.launch import init_path

pytestmark = pytest.mark.skipif(not os.path.exists(init_path()), reason="knarr-init is not built (make build)")
STATE = b'{"ociVersion":"1.3.0","id":"x","status":"creating","pid":1,"bundle":"/b"}'


def shell(script: str, **more: object) -> dict[str, object]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def failing(hook: dict[str, object], state: bytes = STATE) -> str:
    with pytest.raises(HookError) as caught:
        run_hook(hook, "/hooks/prestart/0", state, "/")
    return str(caught.value)


def test_a_hook_gets_state_environment_and_directory_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_LIKE", "of the caller")
    keep_open = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(keep_open, True)
    try:
        out = tmp_path / "out"
        script = f"cat >{out}; echo >>{out}; env >>{out}; pwd >>{out}; ls -l /proc/self/fd >>{out}"
        run_hook(shell(script, env=["GIVEN=yes"]), "/hooks/prestart/0", STATE, str(tmp_path))
    finally:
        os.close(keep_open)
    state, *rest = out.read_text().splitlines()
    assert state.encode() == STATE
    environment = [line for line in rest if "=" in line]
    assert [line for line in environment if line.split("=")[0] not in {"PWD", "_", "SHLVL", "OLDPWD"}] == ["GIVEN=yes"]
    assert str(tmp_path) in rest
    assert "/etc/passwd" not in out.read_text()


def test_the_default_arguments_are_the_path_and_the_environment_is_empty(tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\necho "$0|$#" > {tmp_path}/said\n/usr/bin/env > {tmp_path}/env\n')
    script.chmod(0o755)
    run_hook({"path": str(script)}, "/hooks/prestart/0", STATE, "/")
    assert (tmp_path / "said").read_text() == f"{script}|0\n"
    assert {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()} <= {"PWD", "_", "SHLVL"}


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ({"path": "/bin/false"}, "hook /bin/false ended with exit status 1"),
        (shell("echo no luck >&2; exit 3"), "ended with exit status 3: no luck"),
        (shell("kill -9 $$"), "was killed by signal 9"),
        ({"path": "/no/such"}, "cannot be started: no such file or directory"),
        ({"path": "/etc"}, "cannot be started: permission denied: /etc is a directory"),
        ({"path": "/etc/passwd"}, "has no execute permission"),
    ],
)
def test_failures_name_the_field_and_the_reason(hook: dict[str, object], words: str) -> None:
    message = failing(hook)
    assert message.startswith("config.json /hooks/prestart/0: hook ")
    assert words in message


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & sleep 60", "yes", "cat; sleep 60 & exec sleep 60"])
def test_a_timeout_kills_the_whole_group(script: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert "did not end within its timeout" in failing(shell(f"echo $$ >{tmp_path}/pid; {script}", timeout=1))
    assert time.monotonic() - begun < 1.5
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.05)
    assert not alive_in_group(pid)


def alive_in_group(group: int) -> list[str]:
    """Processes of a group, zombies apart: those are for the machine's init to reap."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        state, _, process_group = text.rpartition(")")[2].split()[:3]
        if int(process_group) == group and state not in "ZX":
            found.append(text)
    return found


def test_a_daemon_left_behind_does_not_hold_us_up() -> None:
    begun = time.monotonic()
    run_hook(shell("sleep 5 & exit 0", timeout=4), "/hooks/prestart/0", STATE, "/")
    assert time.monotonic() - begun < 1


def test_endless_output_is_bounded() -> None:
    message = failing(
        shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890; i=$((i+1)); done; exit 1")
    )
    assert len(message) < KEEP


@pytest.mark.parametrize("script", ["exec <&-; sleep 0.05", "cat >/dev/null", "head -c 5", "exit 0"])
def test_a_large_state_is_fed_or_left(script: str) -> None:
    run_hook(shell(script, timeout=5), "/hooks/prestart/0", STATE * 4000, "/")


def test_the_first_failure_ends_the_row(tmp_path: Path) -> None:
    hooks = [("prestart", n, shell(f"echo {n} >>{tmp_path}/log; exit {int(n == 1)}")) for n in range(3)]
    with pytest.raises(HookError, match="/hooks/prestart/1"):
        run_hooks(hooks, STATE, "/")
    assert (tmp_path / "log").read_text().split() == ["0", "1"]


def test_a_request_to_stop_kills_the_hook() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    begun = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            run_hook(shell("sleep 60"), "/hooks/prestart/0", STATE, "/", stop=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert time.monotonic() - begun < 1


def test_nothing_stays_open() -> None:
    run_hook({"path": "/bin/true"}, "/hooks/prestart/0", STATE, "/")  # knarr-init's memory stays, on purpose
    before = sorted(os.listdir("/proc/self/fd"))
    for hook in (shell("exit 0"), shell("exit 1"), {"path": "/no/such"}, shell("sleep 9", timeout=1)):
        try:
            run_hook(hook, "/hooks/prestart/0", STATE, "/")
        except KnarrError:
            pass
    assert sorted(os.listdir("/proc/self/fd")) == before
