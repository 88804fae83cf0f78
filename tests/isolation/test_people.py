"""``knarr run --isolation`` and ``knarr.run(isolation=…)``: the same program behind each wall."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from behind import ISOLATION, need
from blackbox import end, needs_busybox

import knarr
from knarr.base.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from blackbox import Bundle

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: an ordinary user's host: is put together by mounts"
)


def test_one_program_on_two_kernels(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the volume\n")
    words = ["sh", "-c", "uname -r; cat /v/file; cat; echo written > /v/new; echo err >&2; exit 6"]
    done = knarr.run("host:", words, input=b"input\n", isolation=kind, volumes=[f"{tmp_path}:/v"])
    release, *rest = done.stdout.decode().splitlines()
    assert (release == os.uname().release) == (kind == "namespace")
    assert (rest, done.stderr, done.exit_code) == (["from the volume", "input"], b"err\n", 6)
    assert (tmp_path / "new").read_text() == "written\n"


def test_a_container_that_stays(kind: str) -> None:
    with knarr.Container("host:", ["sleep", "100"], isolation=kind) as box:
        done = box.exec(["sh", "-c", "cat; exit 3"], input=b"x" * 100_000)
        assert (done.exit_code, len(done.stdout)) == (3, 100_000)


def test_the_command_line(knarr_program: str, kind: str) -> None:
    command = [knarr_program, "run", "--isolation", kind, "host:", "--", "sh", "-c", "echo $((6*7)); exit 5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (5, "42\n"), done.stderr


def test_what_cannot_be(knarr_program: str) -> None:
    with pytest.raises(UsageError, match="isolation 'moat' is not known"):
        knarr.run("host:", ["true"], isolation="moat")
    need("kernel")
    command = [knarr_program, "run", "--isolation", "kernel", "--network", "host", "host:", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 125
    assert "the guest cannot use the host's network" in done.stderr


@needs_busybox
@pytest.mark.parametrize("where", ["namespace", "kernel"])
def test_a_container_without_memory_left_is_known_afterwards(
    knarr_program: str, where: str, tmp_path: Path, bundle: Bundle
) -> None:
    if where != "namespace":
        need(where)
    bundle.config["linux"]["resources"]["memory"] = {"limit": 32 << 20}
    bundle.config["annotations"] = {ISOLATION: where}
    image = f"bundle:{bundle.write('tail', '/dev/zero')}"
    environment = {**os.environ, "KNARR_STORE": str(tmp_path / "store"), "KNARR_RUN": str(tmp_path / "run")}

    def knarr_does(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [knarr_program, *words], capture_output=True, text=True, check=False, timeout=60, env=environment
        )

    done = knarr_does("run", "--name", "it", image)
    try:
        assert done.returncode == 137, done.stderr
        state = json.loads(knarr_does("inspect", "--format", "{{json .State}}", "it").stdout)
        assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)
        assert state["Error"].startswith("out of memory") == (where == "kernel")
    finally:
        assert knarr_does("rm", "it").returncode == 0


def test_a_signal_to_knarr_ends_a_program_that_does_not_care(knarr_program: str, kind: str) -> None:
    """As first process of a pid namespace it would not notice; a person who presses Ctrl-C means it."""
    command = [knarr_program, "run", "--isolation", kind, "host:", "--", "tail", "-n", "1", "-f", "/etc/passwd"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, contextlib.ExitStack() as finally_:
        finally_.callback(end, process)
        assert process.stdout is not None
        assert b":" in process.stdout.readline()  # no shell says it: dash catches SIGINT, until it executes another
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT


def test_a_signal_to_knarr_is_for_a_program_that_cares(knarr_program: str, kind: str) -> None:
    script = "trap 'echo heard; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    command = [knarr_program, "run", "--isolation", kind, "host:", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, contextlib.ExitStack() as finally_:
        finally_.callback(end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert (process.wait(20), process.stdout.read()) == (3, b"heard\n")
